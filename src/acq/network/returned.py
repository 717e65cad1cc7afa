"""What a module returned in one forward pass: how its tensors are nested, and which of them decide."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from acq.core.outputs import BETWEEN
from acq.core.scores import Kind
from acq.core.structures import ALONE, TENSOR, Structure, flattened, names_in
from acq.errors import RequestError, nearest

RETURNED = "returned"  # key of this value in the meta data of a traced graph
_SHOWN = 12  # names in a message


@dataclass(frozen=True)
class Returned:
    """What a network returns, before its graph is known.

    Attributes:
        structure: How the tensors are nested.
        places: The indices of the tensors that decide.
        kinds: How each decides, where the user says so.
    """

    structure: Structure
    places: tuple[int, ...]
    kinds: tuple[Kind | None, ...]


def returned(value: Any, images: int, outputs: str | None = None, kinds: Sequence[Kind] = ()) -> Returned:
    """Read what a network returned for a batch.

    Args:
        value: What it returned.
        images: Number of images of the batch.
        outputs: The names or indices of the tensors that decide, joined by commas, if the user chose some.
        kinds: How each decides, if the user says so; one stands for all.

    Raises:
        RequestError: No tensor can decide, several can and none is chosen, or the kinds are not as many.
    """
    try:
        structure, tensors = flattened(value)
    except TypeError as error:
        raise RequestError(f"the network returns {error}, not tensors of scores; {_WRAPPER}") from None
    names = names_in(structure)
    if len(set(names)) < len(names):
        raise RequestError(f"the network returns two tensors of one name among {_listed(names, tensors)}; {_WRAPPER}")
    able = [place for place, tensor in enumerate(tensors) if _decides(tensor, images)]
    if outputs is None:
        places: tuple[int, ...] = (_found(names, tensors, able),)
    else:
        places = tuple(_chosen(names, tensors, text.strip()) for text in outputs.split(BETWEEN))
    for place in places:
        if place not in able:
            raise _refusal(names, tensors, place)
    if len(set(places)) < len(places):
        raise RequestError(f"--outputs {outputs} names one tensor twice; name each once")
    return Returned(structure, places, _for_each(kinds, places))


@contextmanager
def flat_answers(model: nn.Module, structure: Structure) -> Iterator[None]:
    """Let a module return its tensors as a flat tuple, which torch.export takes whatever they were nested in."""
    if structure == TENSOR:
        yield
        return
    inner, own = model.forward, model.__dict__.get("forward")

    def forward(images: Tensor) -> tuple[Tensor, ...]:
        found, tensors = flattened(inner(images))
        if found != structure:
            raise ValueError("what it returns depends on the images")
        return tuple(tensors)

    model.__dict__["forward"] = forward
    try:
        yield
    finally:
        del model.__dict__["forward"]
        if own is not None:
            model.__dict__["forward"] = own


def _for_each(kinds: Sequence[Kind], places: Sequence[int]) -> tuple[Kind | None, ...]:
    """A kind per tensor."""
    if len(kinds) <= 1:
        return (*kinds, None)[:1] * len(places)
    if len(kinds) != len(places):
        raise RequestError(
            f"--output-kind has {len(kinds)} kinds for {len(places)} tensors; give one per name in --outputs, or one "
            "for all"
        )
    return tuple(kinds)


def _found(names: Sequence[str], tensors: Sequence[Tensor], able: Sequence[int]) -> int:
    """The place of the only tensor that can decide, or of the one that is called logits.

    Tensors with one row of scores per image come before maps and sequences.
    """
    fit = [place for place in able if math.prod(tensors[place].shape[2:]) == 1] or able
    called = [place for place in fit if names[place].rpartition(".")[2] == ALONE]
    for choice in (fit, called):
        if len(choice) == 1:
            return choice[0]
    if not fit:
        raise _refusal(names, tensors, 0 if tensors else None)
    raise RequestError(
        f"the network returns several tensors: {_listed(names, tensors)}; "
        f"name the one that decides, such as --outputs {names[fit[0]]}, or all that count, with commas between"
    )


def _chosen(names: Sequence[str], tensors: Sequence[Tensor], outputs: str) -> int:
    if outputs in names:
        return names.index(outputs)
    if outputs.isdecimal() and int(outputs) < len(names):
        return int(outputs)
    raise RequestError(
        f"the network returns no {outputs!r}{nearest(outputs, names)}; "
        f"give one of these as --outputs: {_listed(names, tensors)}"
    )


def _decides(tensor: Tensor, images: int) -> bool:
    """Whether a tensor has floats, and a row per image."""
    return tensor.shape[:1] == (images,) and tensor.is_floating_point() and tensor.numel() > 0


def _listed(names: Sequence[str], tensors: Sequence[Tensor]) -> str:
    shown = [f"{name} {_shape(tensor)}" for name, tensor in zip(names, tensors, strict=True)][:_SHOWN]
    return ", ".join(shown) + (" and more" if len(names) > _SHOWN else "")


def _shape(tensor: Tensor) -> str:
    return f"[{', '.join(['N', *map(str, tensor.shape[1:])])}]" if tensor.dim() else "[]"


def _refusal(names: Sequence[str], tensors: Sequence[Tensor], place: int | None) -> RequestError:
    """The error where what a network returns is no scores, with the module that would help."""
    if place is None:
        return RequestError(f"the network returns no tensor, but scores with a row per image are needed; {_WRAPPER}")
    tensor = tensors[place]
    what = f"a tensor {_shape(tensor)}" if len(tensors) == 1 else _listed(names, tensors)
    what += "" if tensor.is_floating_point() else f" of {str(tensor.dtype).removeprefix('torch.')}"
    return RequestError(f"the network returns {what}, not scores with a row per image; {_WRAPPER}")


_WRAPPER = """wrap it in a module that returns those, such as
    class Scores(nn.Module):
        def __init__(self, network): super().__init__(); self.network = network
        def forward(self, images): return self.network(images)[...]"""
