"""What each layer and grid costs by itself: it alone is quantized, all the others stay in floating point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from acq.core.evaluate import evaluating
from acq.quantization.quantizers import ActivationQuantizer, WeightQuantizer
from acq.quantization.student import QuantLayer, Student, layer_name_of, quantizers_off


@dataclass(frozen=True)
class Sensitivity:
    """One layer quantized alone (this project's definition): its weights, and the grid of the values that it gives;
    or a grid alone, of values that no layer gives, such as a sum's.

    ``layer`` is its node in the plan, of ``weights`` numbers (none for a grid alone); ``bits`` are those of the grid
    and ``low`` to ``high`` what it reaches (None for logits, which have none). ``ratio_db`` is the ratio of signal to
    quantization noise in these values, ``logits_db`` that in the logits, and ``agreement`` how often the class is the
    float network's, in percent.
    """

    layer: str
    weights: int
    weight_bits: int | None
    bits: int | None
    low: float | None
    high: float | None
    ratio_db: float
    logits_db: float
    agreement: float


def sensitivities(student: Student, batches: Sequence[Tensor]) -> list[Sensitivity]:
    """Every layer and grid of a calibrated ``student`` in order of execution, on images [N, C, H, W] given in batches.

    Raises:
        ValueError: there are no batches.
    """
    if not batches:
        raise ValueError("sensitivities need at least one batch of images")
    places = list(_places(student))
    sums = torch.zeros(len(places), 5, dtype=torch.float64)  # signal and noise of values and of logits, same classes
    with evaluating(student):
        for batch in batches:
            with quantizers_off(student):
                logits, values = student.read(batch, [place.tap for place in places])
                for row, place in zip(sums, places, strict=True):
                    with _on(place):
                        found, given = student.read(batch, (place.tap,))
                    row += _compared(values[place.tap], given[place.tap], logits, found)
    count = sum(map(len, batches))
    return [_described(place, row.tolist(), count) for place, row in zip(places, sums, strict=True)]


@dataclass(frozen=True)
class _Place:
    """A layer, the grid of what it gives, and the node whose values lie on it; one of both may be missing."""

    name: str
    layer: QuantLayer | None
    grid: ActivationQuantizer | None
    tap: str


def _places(student: Student) -> Iterator[_Place]:
    seen: set[ActivationQuantizer | None] = set()
    for node, module in student.placed():
        if isinstance(module, QuantLayer):
            last, grid = _grid_after(student, node)
            seen.add(grid)
            yield _Place(layer_name_of(node), module, grid, last.name)
        elif isinstance(module, ActivationQuantizer) and module not in seen:
            yield _Place(module.name, None, module, node.name)


def _grid_after(student: Student, node: fx.Node) -> tuple[fx.Node, ActivationQuantizer | None]:
    """The first quantizer that a layer's values meet where they go one way only, and the node before it."""
    last = node
    while len(last.users) == 1:
        (user,) = last.users
        module = student.get_submodule(str(user.target)) if user.op == "call_module" else None
        if isinstance(module, ActivationQuantizer):
            return last, module
        if module is not None or user.op != "call_function" or len(user.all_input_nodes) > 1:
            break
        last = user
    return node, None


@contextmanager
def _on(place: _Place) -> Iterator[None]:
    quantizers: list[WeightQuantizer | ActivationQuantizer] = [place.grid] if place.grid else []
    quantizers += [place.layer.weight_quantizer] if place.layer else []
    for quantizer in quantizers:
        quantizer.enabled = True
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.enabled = False


def _compared(values: Tensor, given: Tensor, logits: Tensor, found: Tensor) -> Tensor:
    energies = [values, given - values, logits, found - logits]
    same = (found.argmax(1) == logits.argmax(1)).sum()
    return torch.stack([*(value.double().square().sum() for value in energies), same.double()]).cpu()


def _described(place: _Place, row: Sequence[float], count: int) -> Sensitivity:
    signal, noise, logit_signal, logit_noise, same = row
    layer, grid = place.layer, place.grid
    return Sensitivity(
        layer=place.name,
        weights=0 if layer is None else layer.weight.numel(),
        weight_bits=None if layer is None else layer.weight_quantizer.bits,
        bits=None if grid is None else grid.bits,
        low=None if grid is None else _value(grid, grid.qmin),
        high=None if grid is None else _value(grid, grid.qmax),
        ratio_db=_decibels(signal, noise),
        logits_db=_decibels(logit_signal, logit_noise),
        agreement=100 * same / count,
    )


def _value(grid: ActivationQuantizer, integer: int) -> float:
    return float((integer - grid.zero_point.item()) * grid.scale.item())


def _decibels(signal: float, noise: float) -> float:
    """At most 120, which is what 32-bit floats resolve."""
    ratio = torch.tensor(signal / max(noise, 1e-12 * signal, 1e-300))
    return 10 * torch.log10(ratio.clamp_min(1e-12)).item()
