"""Weights from files, for any network: read safely, and applied only where they fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from acq.errors import RequestError
from acq.files import tensors
from acq.zoo.loaders import describe

SUFFIXES = (".safetensors", ".pth", ".pt", ".th")
NESTED = ("state_dict", "model", "model_state_dict", "net")
SHOWN = 3  # names of each kind that a message spells out


def load_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by parameter name, on the CPU.

    Nested dictionaries (``state_dict``, ``model``, ``model_state_dict``, ``net``) are opened, and the name
    parts that data parallelism (``module.``) and compilation (``_orig_mod.``) add are dropped. Entries that
    are no tensors, such as an epoch, are left out. Pickles are read with ``weights_only=True`` and nothing
    else, after ``acq.files.tensors`` has held what they claim against what they have.

    Raises:
        RequestError: there is no such file, it is no checkpoint of weights, or claims more than it has.
    """
    _check_file(path)
    content = _read(path, tensors.load_safetensors if path.suffix == ".safetensors" else _unpickle)
    while isinstance(content, Mapping) and (inner := _inner(content)) is not None:
        content = inner
    named = content.items() if isinstance(content, Mapping) else ()
    found = {name: value for name, value in named if isinstance(name, str) and isinstance(value, Tensor)}
    if not found:
        raise RequestError(f"{path} holds no named tensors; save the network's state_dict()")
    state = {_bare(name): value for name, value in found.items()}
    if len(state) != len(found):
        raise RequestError(f"{path} has weights both with and without 'module.'; save one state_dict()")
    return state


def apply_state(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Put weights into a network; each must be there, fit and be finite, or the network is left as it was.

    Only ``num_batches_tracked``, which no evaluation reads, may be missing. ``path`` is named in messages.

    Raises:
        RequestError: names are missing or unexpected, shapes differ, or values are not finite.
    """
    own = {_bare(name): (name, value) for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    kinds = {
        "missing": [n for n in own if n not in state and not n.endswith("num_batches_tracked")],
        "unexpected": [n for n in state if n not in own],
        "wrongly shaped": [
            f"{n} {list(state[n].shape)} instead of {list(value.shape)}"
            for n, (_, value) in own.items()
            if n in state and state[n].shape != value.shape
        ],
    }
    misfits = [f"{kind}: {_some(names)}" for kind, names in kinds.items() if names]
    if misfits:
        raise RequestError(
            f"{path} does not fit the network ({'; '.join(misfits)}); "
            "give the checkpoint of this architecture, or set it with --model-args"
        )
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise RequestError(f"{path} has values in {name!r} that are not finite; give another checkpoint")
    model.load_state_dict({own[name][0]: value for name, value in state.items()}, strict=False)


def _check_file(path: Path) -> None:
    if not path.exists():
        raise RequestError(f"no checkpoint at {path}; give a file that ends in {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise RequestError(f"the checkpoint {path} is a folder; give the file of weights in it")
    if path.suffix not in SUFFIXES:
        raise RequestError(f"the checkpoint {path} has an unknown suffix; it must be {', '.join(SUFFIXES)}")
    if not path.stat().st_size:
        raise RequestError(f"the checkpoint {path} is empty; save or download it again")
    tensors.require_weights_size(path)


def _unpickle(path: Path) -> Any:
    with path.open("rb") as file:
        return tensors.read_pickle(file)


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except Exception as error:  # a damaged pickle may raise anything
        text = str(error)
        if "TorchScript" in text:
            fact = "is a TorchScript program, not weights; save its state_dict()"
        elif isinstance(error, tensors.MoreThanWeightsError) or "Weights only load failed" in text:
            fact = "holds more than weights or none, and no code in it is run; save the network's state_dict()"
        else:
            fact = f"is damaged or no checkpoint ({describe(error)}); save or download it again"
        raise RequestError(f"the checkpoint {path} {fact}") from error


def _inner(content: Mapping[Any, Any]) -> Mapping[Any, Any] | None:
    return next((content[key] for key in NESTED if isinstance(content.get(key), Mapping)), None)


def _bare(name: str) -> str:
    """A parameter's name without what wrappers add: ``module.`` in front, ``_orig_mod.`` anywhere."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
