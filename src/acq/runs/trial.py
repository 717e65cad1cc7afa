"""Tries a student that was read from a file, so that a graph whose parts do not fit is found before it is used."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from acq.core.interpreter import all_values
from acq.files.limits import VALUES_AT_ONCE, images_at_once
from acq.network.names import name_of
from acq.quantization.student import Student


def try_out(student: Student) -> None:
    """Run the student once on a black image, so that a graph whose parts do not fit fails here.

    First only shapes are computed, for as many images as are run together: a few lines may ask for terabytes.

    Args:
        student: As its file describes it.

    Raises:
        ValueError: Sizes, shapes or outputs are not those that the file declares.
        Exception: An operator refuses its arguments; the type depends on the operator.
    """
    size = student.input_size
    if student.preprocessing is not None and student.preprocessing.input_size != size:
        raise ValueError(f"its images are {student.preprocessing.input_size} and its graph takes {size}")
    twin = copy.deepcopy(student).to("meta")
    with torch.no_grad():
        with _Bounded():  # type: ignore[no-untyped-call]
            few, more, _ = (_shapes(twin, count) for count in (2, 3, images_at_once(size)))
        _compare_shapes(student, few, more)
        image = torch.zeros(1, *size)
        logits, values = student.logits(image), student.returned(image)
    if logits.shape != (1, student.output.numbers):
        raise ValueError(f"its logits have shape {tuple(logits.shape)}")
    if not all(isinstance(value, Tensor) for value in values):
        raise ValueError("it returns a value that is no tensor")


def _shapes(student: Student, images: int) -> dict[str, torch.Size]:
    """The shapes of all tensors of a graph for a number of images, by the node's public name."""
    values = all_values(student, student.graph, torch.empty(images, *student.input_size, device="meta"))
    return {name_of(node): value.shape for node, value in values.items() if isinstance(value, Tensor)}


def _compare_shapes(student: Student, few: Mapping[str, torch.Size], more: Mapping[str, torch.Size]) -> None:
    """Refuse a node that declares another shape than it has: an exported file relies on these shapes."""
    for node in student.graph.nodes:
        name = name_of(node)
        if name in few:
            pairs = zip(few[name], more[name], strict=True)
            found = tuple(-1 if two != three else two for two, three in pairs)
            if found != node.meta["shape"]:
                raise ValueError(f"{name} has the shape {found} and declares {node.meta['shape']}")


class _Bounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses tensors that are larger than those of any network, before memory is taken for them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(value, Tensor) for value in tree_leaves((args, kwargs))):
            kwargs = {**kwargs, "device": "meta"}  # an operator that makes a tensor from numbers
        values = func(*args, **kwargs)
        for value in values if isinstance(values, tuple | list) else (values,):
            if isinstance(value, Tensor) and value.numel() > VALUES_AT_ONCE:
                raise ValueError(f"{func} returns {value.numel():,} values")
        return values
