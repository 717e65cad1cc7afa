"""Pools and means are exact on integer kernels, for all their arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from helpers import SIZE, Head, conv, images, settled, student_from
from hypothesis import assume, given
from hypothesis import strategies as st
from one_operator import Written, quantizer, some_bytes
from torch import Tensor, nn
from torch.nn import functional as F

from acq.errors import RequestError
from acq.export.check import check
from acq.export.graph import onnx_model
from acq.network.trace import trace
from acq.quantization.integers import convert_to_integers

aten = torch.ops.aten
X = some_bytes(2, 3, 6, 8)
sizes = st.integers(1, 9)


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of a pool that torch accepts."""
    kernel = [draw(st.integers(1, 3)), draw(st.integers(1, 4))]
    return {
        "shape": [2, 2, draw(sizes), draw(sizes)],
        "kernel": kernel,
        "stride": draw(st.sampled_from([[], [1, 2], [3, 2], [4, 4]])),
        "padding": [draw(st.integers(0, size // 2)) for size in kernel],
        "ceil": draw(st.booleans()),
    }


def fits(found: dict[str, Any], dilation: int = 1) -> bool:
    """Whether at least one window fits."""
    axes = zip(found["shape"][2:], found["kernel"], found["padding"], strict=True)
    return all(size + 2 * pad >= dilation * (kernel - 1) + 1 for size, kernel, pad in axes)


@given(found=windows(), dilation=st.integers(1, 3), two=st.booleans())
def test_max_pools(found: dict[str, Any], dilation: int, two: bool) -> None:
    """They work on bytes; the last window may begin before the end only, as in torch."""
    assume(fits(found, dilation))
    operator = aten.max_pool2d_with_indices.default if two else aten.max_pool2d.default
    x = some_bytes(*found["shape"])
    ceil = found["ceil"] and dilation == 1
    call = (operator, x, found["kernel"], found["stride"], found["padding"], [dilation, dilation], ceil)
    first = operator(x.float(), *call[2:])
    assume((first[0] if two else first).isfinite().all())  # torch has windows of nothing but padding
    written = Written(*call)
    assert written.moves_bytes()
    assert written.is_exact()


@given(found=windows(), counted=st.booleans())
def test_average_pools(found: dict[str, Any], counted: bool) -> None:
    """A window at the edge is divided as in torch, whether padding counts or not."""
    assume(fits(found))
    x = some_bytes(*found["shape"])
    call = (aten.avg_pool2d.default, x, found["kernel"], found["stride"], found["padding"], found["ceil"], counted)
    assert Written(*call, behind=quantizer()).is_exact()


@pytest.mark.parametrize(
    "call",
    [
        (aten.max_pool1d.default, X.flatten(2), [3], [2], [1], [2], True),
        (aten.adaptive_max_pool1d.default, X.flatten(2), [5]),
        (aten.adaptive_max_pool2d.default, X, [1, 1]),
        (aten.adaptive_avg_pool1d.default, X[:, :, :, 0], [12]),
        (aten.adaptive_avg_pool2d.default, X[:, :, :1, :1], [7, 7]),
        (aten.adaptive_avg_pool2d.default, X, [12, 8]),
    ],
)
def test_pools_that_select_values(call: tuple[Any, ...]) -> None:
    """Maxima of sequences, and averages of single values, are bytes of the input."""
    written = Written(*call)
    assert written.moves_bytes()
    assert written.is_exact()


@given(before=st.tuples(sizes, sizes), after=st.tuples(sizes, sizes), largest=st.booleans())
def test_adaptive_pools_of_any_size(before: tuple[int, int], after: tuple[int, int], largest: bool) -> None:
    """Windows may differ and overlap."""
    x = some_bytes(2, 2, *before)
    if largest:
        assert Written(aten.adaptive_max_pool2d.default, x, [*after]).is_exact()
    else:
        assert Written(aten.adaptive_avg_pool2d.default, x, [*after], behind=quantizer()).is_exact()


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("axes", [[1], [2], [3], [-1, -2], [1, 2], [3, 1], [1, 2, 3]])
def test_means(axes: list[int], keep: bool) -> None:
    """Means over adjacent axes are pools, which have integer kernels; others are exact too."""
    written = Written(aten.mean.dim, X, axes, keep, behind=quantizer())
    assert written.is_exact()
    assert ("ReduceMean" in written.kinds) is (axes == [3, 1])


def test_means_of_sequences_and_of_vectors() -> None:
    """Any number of dimensions."""
    assert Written(aten.mean.dim, X.flatten(2), [1], behind=quantizer()).is_exact()
    assert Written(aten.mean.dim, X[:, :, 0, 0], [-1], True, behind=quantizer()).is_exact()
    assert Written(aten.avg_pool1d.default, X.flatten(2), [3], [2], [1], True, behind=quantizer()).is_exact()


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("axes", [[1], [-1, 2]])
def test_sums(axes: list[int], keep: bool) -> None:
    """They have a quantizer behind them."""
    assert Written(aten.sum.dim_IntList, X, axes, keep, behind=quantizer(3.7)).is_exact()


@given(
    factors=st.tuples(st.floats(0.3, 3.4), st.floats(0.3, 3.4)),
    aligned=st.booleans(),
    spelling=st.sampled_from(["factors", "size", "both"]),
)
def test_bilinear_resizes_are_those_of_torch(factors: tuple[float, float], aligned: bool, spelling: str) -> None:
    """Engines interpolate floats, because they round bytes in ways of their own; a level may differ at a tie."""
    size = [max(int(size * factor), 1) for size, factor in zip(X.shape[2:], factors, strict=True)]
    if spelling == "both":
        call = (aten.upsample_bilinear2d.default, X, size, aligned, *factors)
    else:
        call = (
            aten.upsample_bilinear2d.vec,
            X,
            *((None, aligned, [*factors]) if spelling == "factors" else (size, aligned, None)),
        )
    written = Written(*call, behind=quantizer())
    difference = (written.run().float() - written.wanted).abs()
    assert difference.max() <= 1
    assert difference.mean() < 0.01


class Pyramid(nn.Module):
    """Means of parts of the image, scaled back to its size beside it."""

    def __init__(self, parts: int, aligned: bool, row: bool) -> None:
        super().__init__()
        self.parts, self.aligned, self.row = parts, aligned, row
        self.stem, self.coarse, self.last, self.head = conv(3, 8, stride=2), conv(8, 8, 1), conv(16, 8, 1), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = F.relu(self.coarse(F.adaptive_avg_pool2d(x, self.parts)))
        if self.row:
            y = F.interpolate(y.flatten(2), 64, mode="linear", align_corners=self.aligned).view(-1, 8, 8, 8)
        else:
            y = F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=self.aligned)
        return self.head(F.relu(self.last(torch.cat([x, y], 1))))


@pytest.mark.parametrize("row", [False, True])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_resizes_between_layers_run_on_engines(parts: int, aligned: bool, row: bool, tmp_path: Path) -> None:
    """Engines move the axis of channels behind the others, and a resize among layers goes along."""
    student = student_from(trace(settled(Pyramid(parts, aligned, row)), SIZE), "w8a8")
    convert_to_integers(student.eval())
    onnx.save(onnx_model(student), tmp_path / "model.onnx")
    found = check(tmp_path / "model.onnx", student, images(32, SIZE, 5))
    assert found.openvino is not None
    for match in (found.plain, found.optimised, found.openvino.match):
        assert match.agreement == 100


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ((aten.avg_pool2d.default, X, [2, 2], [], [0, 0], False, True, 3), "with a divisor of its own"),
        ((aten.max_pool2d.default, X[:, :, :2], [2, 2], [], [1, 1], [2, 2], True), "more padding behind the image"),
        ((aten.max_pool2d.default, X[0], [2, 2]), r"for other values than \[N, C, H, W\]"),
        ((aten.adaptive_avg_pool2d.default, some_bytes(1, 1, 95, 95), [12, 12]), "because its windows differ"),
    ],
)
def test_pools_without_a_form_are_refused(call: tuple[Any, ...], words: str) -> None:
    """Nothing similar is written instead."""
    with pytest.raises(RequestError, match=words):
        Written(*call, behind=quantizer())
