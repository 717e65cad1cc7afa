"""Weights from files, for any network: read safely, and applied only if all of them fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from acq.errors import RequestError, first_line
from acq.files.tensors import MoreThanWeightsError, load_safetensors, read_pickle, require_weights_size

SUFFIXES = (".safetensors", ".pth", ".pt", ".th")
_NESTED = ("state_dict", "model", "model_state_dict", "net")
_NAMES_SHOWN = 3  # per kind of misfit


def load_state(path: Path) -> dict[str, Tensor]:
    """Read the weights of a checkpoint onto the CPU.

    Nested dictionaries (``state_dict``, ``model``, ``model_state_dict``, ``net``) are opened. The parts of names that
    data parallelism (``module.``) and compilation (``_orig_mod.``) add are dropped. Entries that are no tensors, such
    as an epoch, are left out. Pickles are scanned by ``acq.files.tensors`` and read with ``weights_only=True``.

    Args:
        path: A file with one of ``SUFFIXES``.

    Returns:
        Tensors by parameter name.

    Raises:
        RequestError: There is no such file, it holds no weights or more than weights, or it is damaged.
    """
    _check_file(path)
    content = _read(path, load_safetensors if path.suffix == ".safetensors" else _read_pickle)
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
    """Copy weights into a network, or leave it unchanged if one is missing, unexpected, misshapen or not finite.

    Only ``num_batches_tracked`` may be missing, because no evaluation reads it.

    Args:
        model: The network; its own names may have parts that wrappers add.
        state: Tensors by parameter name, from ``load_state``.
        path: The file that they come from, for messages.

    Raises:
        RequestError: The weights do not fit or are not finite.
    """
    own = {_bare(name): (name, value) for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    misfits = {
        "missing": [name for name in own if name not in state and not name.endswith("num_batches_tracked")],
        "unexpected": [name for name in state if name not in own],
        "wrongly shaped": [
            f"{name} {list(state[name].shape)} instead of {list(value.shape)}"
            for name, (_, value) in own.items()
            if name in state and state[name].shape != value.shape
        ],
    }
    if any(misfits.values()):
        listed = "; ".join(f"{kind}: {_listed(names)}" for kind, names in misfits.items() if names)
        raise RequestError(
            f"{path} does not fit the network ({listed}); "
            "give the checkpoint of this architecture, or set the architecture with --model-args"
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
    require_weights_size(path)


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        return read_pickle(file)


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except Exception as error:  # a damaged pickle may raise anything
        text = str(error)
        if "TorchScript" in text:
            fact = "is a TorchScript program, not weights; save its state_dict()"
        elif isinstance(error, MoreThanWeightsError) or "Weights only load failed" in text:
            fact = "holds more than weights, or none, and no code in it is run; save the network's state_dict()"
        else:
            fact = f"is damaged or no checkpoint ({first_line(error, typed=True)}); save or download it again"
        raise RequestError(f"the checkpoint {path} {fact}") from error


def _inner(content: Mapping[Any, Any]) -> Mapping[Any, Any] | None:
    return next((content[key] for key in _NESTED if isinstance(content.get(key), Mapping)), None)


def _bare(name: str) -> str:
    """A parameter's name without the parts that wrappers add: ``module.`` in front, ``_orig_mod.`` anywhere."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
