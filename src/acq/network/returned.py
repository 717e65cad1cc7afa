"""What a module returned in one forward pass: how its tensors are nested, and which of them decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from acq.core.outputs import Kind
from acq.core.structures import ALONE, TENSOR, Structure, flattened, names_in
from acq.errors import RequestError, nearest

RETURNED = "returned"  # key of this value in the meta data of a traced graph
_SHOWN = 12  # names in a message


@dataclass(frozen=True)
class Returned:
    """What a network returns, before its graph is known.

    Attributes:
        structure: How the tensors are nested.
        place: The index of the tensor that decides.
        kind: How it decides, where the user says so.
    """

    structure: Structure
    place: int
    kind: Kind | None


def returned(value: Any, images: int, outputs: str | None = None, kind: Kind | None = None) -> Returned:
    """Read what a network returned for a batch.

    Args:
        value: What it returned.
        images: Number of images of the batch.
        outputs: The name or the index of the tensor that decides, if the user chose one.
        kind: How it decides, if the user says so.

    Raises:
        RequestError: No tensor can decide, or several can and none is chosen.
    """
    try:
        structure, tensors = flattened(value)
    except TypeError as error:
        raise RequestError(f"the network returns {error}, not class scores [N, K]; {_WRAPPER}") from None
    names = names_in(structure)
    if len(set(names)) < len(names):
        raise RequestError(f"the network returns two tensors of one name among {_listed(names, tensors)}; {_WRAPPER}")
    fit = [place for place, tensor in enumerate(tensors) if _decides(tensor, images)]
    place = _found(names, tensors, fit) if outputs is None else _chosen(names, tensors, outputs)
    if place not in fit:
        raise _refusal(names, tensors, place)
    return Returned(structure, place, kind)


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


def _found(names: Sequence[str], tensors: Sequence[Tensor], fit: Sequence[int]) -> int:
    """The place of the only tensor that fits, or of the one among those that is called logits."""
    called = [place for place in fit if names[place].rpartition(".")[2] == ALONE]
    for choice in (fit, called):
        if len(choice) == 1:
            return choice[0]
    if not fit:
        raise _refusal(names, tensors, 0 if tensors else None)
    raise RequestError(
        f"the network returns several tensors: {_listed(names, tensors)}; "
        f"name the one with the class scores, such as --outputs {names[fit[0]]}"
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
    """Whether a tensor has floats [N], [N, K] or [N, K, 1, 1]."""
    flat = tensor.shape[:1] == (images,) and all(size == 1 for size in tensor.shape[2:])
    return flat and tensor.is_floating_point() and tensor.numel() > 0


def _listed(names: Sequence[str], tensors: Sequence[Tensor]) -> str:
    shown = [f"{name} {_shape(tensor)}" for name, tensor in zip(names, tensors, strict=True)][:_SHOWN]
    return ", ".join(shown) + (" and more" if len(names) > _SHOWN else "")


def _shape(tensor: Tensor) -> str:
    return f"[{', '.join(['N', *map(str, tensor.shape[1:])])}]" if tensor.dim() else "[]"


def _refusal(names: Sequence[str], tensors: Sequence[Tensor], place: int | None) -> RequestError:
    """The error where what a network returns is no class scores, with the module that would help."""
    if place is None:
        return RequestError(f"the network returns no tensor, but class scores [N, K] are needed; {_WRAPPER}")
    tensor = tensors[place]
    what = f"a tensor {_shape(tensor)}" if len(tensors) == 1 else _listed(names, tensors)
    what += "" if tensor.is_floating_point() else f" of {str(tensor.dtype).removeprefix('torch.')}"
    mean = {3: ".mean(1)", 4: ".mean((2, 3))"}.get(tensor.dim(), "") if len(tensors) == 1 else "[...]"
    return RequestError(
        f"the network returns {what}, not class scores [N, K]; {_WRAPPER.replace('[...]', mean or '[...]')}"
    )


_WRAPPER = """wrap it in a module that returns those, such as
    class Scores(nn.Module):
        def __init__(self, network): super().__init__(); self.network = network
        def forward(self, images): return self.network(images)[...]"""
