from __future__ import annotations

import builtins
import re
from collections.abc import Callable

import pytest
import torch
from helpers import SIZE, Applied, Chain, images
from torch import Tensor

from acq.errors import RequestError
from acq.network.export import exported


def by_length(x: Tensor) -> Tensor:
    return x.view(len(x), -1).reshape(len(x), *x.shape[1:]).expand(len(x), -1, -1, -1)


def test_the_length_of_a_batch_is_its_size() -> None:
    """``len`` of the images does not fix their number, and Python's own ``len`` is back afterwards."""
    model, plain = Chain(Applied(by_length)).eval(), builtins.len
    graph = exported(model, images(2))
    assert builtins.len is plain
    for count in (1, 5):
        with torch.no_grad():
            torch.testing.assert_close(graph(images(count)), model(images(count)))


def brightness(x: Tensor) -> Tensor:
    if x.max() > 1:
        return x / 2
    return x


def one_by_one(x: Tensor) -> Tensor:
    return torch.stack([x[i] * 2 for i in range(x.shape[0])])


def fixed(x: Tensor) -> Tensor:
    return x.reshape(int(x.shape[0]), -1).reshape(x.shape)


def outside(x: Tensor) -> Tensor:
    return x + torch.from_numpy(x.detach().numpy())


def line_of(function: Callable[[Tensor], Tensor], offset: int) -> int:
    return function.__code__.co_firstlineno + offset


@pytest.mark.parametrize(
    ("function", "fact", "offset"),
    [
        (brightness, "depends on the values of its images", 1),
        (one_by_one, r"number of its images as a plain number.*x\.shape\[0\]", 1),
        (fixed, r"number of its images as a plain number.*x\.shape\[0\]", 1),
        (outside, "cannot be traced by torch.export", 1),
    ],
)
def test_refusals_name_the_line(function: Callable[[Tensor], Tensor], fact: str, offset: int) -> None:
    """What no graph can hold is refused in one line, with file and line of the network's code."""
    with pytest.raises(RequestError, match=fact) as caught:
        exported(Chain(Applied(function)).eval(), images(2))
    assert "\n" not in str(caught.value)
    found = re.search(r"\((?P<file>\S*test_export\.py), line (?P<line>\d+)\)", str(caught.value))
    assert found is not None
    assert int(found["line"]) == line_of(function, offset)


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """The error says it; torch's own pages of text stay away."""
    with pytest.raises(RequestError):
        exported(Chain(Applied(fixed)).eval(), images(2))
    assert capsys.readouterr() == ("", "")


def test_images_of_the_callers_size() -> None:
    """The placeholder has the size of the images and a free batch."""
    graph = exported(Chain().eval(), torch.zeros(2, *SIZE))
    image = next(node for node in graph.graph.nodes if node.op == "placeholder")
    assert tuple(image.meta["val"].shape[1:]) == SIZE
