"""Weights from files, for any network: read safely, found in any nest, and applied only if all of them fit."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from acq.errors import RequestError, first_line, listed, nearest
from acq.files.foreign import MoreThanWeightsError
from acq.files.tensors import require_weights_size
from acq.files.weights import OtherFileError, read_weights
from acq.zoo import fitting
from acq.zoo.fitting import Place
from acq.zoo.nests import Tables, tables_of

SUFFIXES = (".safetensors", ".pth", ".pt", ".th", ".ckpt", ".bin", ".pth.tar")  # usual ones; content decides


class WeightsWarning(UserWarning):
    """A checkpoint has other weights too; the message says which are taken."""


def load_state(path: Path) -> dict[str, dict[str, Tensor]]:
    """Read the named tensors of a checkpoint onto the CPU.

    The kind of file is told by its content. No code of a file is run: pickles are scanned by ``acq.files.pickles`` and
    read with ``weights_only=True``, and objects of foreign classes become placeholders.

    Args:
        path: A file of torch, safetensors or numpy's ``.npz``, with any suffix.

    Returns:
        For each path of keys, joined by dots, the tensors that are named there; without those of optimizers.

    Raises:
        RequestError: There is no such file, it holds no weights, it would run code, or it is damaged.
    """
    _check_file(path)
    try:
        tables = tables_of(read_weights(path))
    except OtherFileError as error:
        raise RequestError(f"the checkpoint {path} {error.fact}, not weights; {error.way_out}") from error
    except MoreThanWeightsError as error:
        raise RequestError(
            f"the checkpoint {path} {error}, so it is refused and no code in it is run; "
            "save only the network's state_dict()"
        ) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise RequestError(
            f"the checkpoint {path} is damaged or no checkpoint ({first_line(error, typed=True)}); "
            "save or download it again"
        ) from error
    if not tables:
        raise RequestError(f"{path} holds no named tensors; save the network's state_dict()")
    return tables


def apply_state(model: nn.Module, tables: Tables, path: Path, key: str | None = None) -> None:
    """Copy weights into a network, or leave it unchanged if they do not fit.

    The weights are under the path of keys after which all of the network's names and shapes fit. So prefixes such as
    ``module.`` and nests need no list. Of raw and averaged weights the averaged ones are taken, with a warning. Only
    ``num_batches_tracked`` may be missing, because no evaluation reads it.

    Args:
        model: The network; its own names may have parts that wrappers add.
        tables: Named tensors by path of keys, from ``load_state``.
        path: The file that they come from, for messages.
        key: The path of keys to take; None for the only one that fits.

    Raises:
        RequestError: The weights do not fit, several do, or they are not finite.
    """
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    names = {fitting.own_name(name): name for name in state}
    own = {name: state[written] for name, written in names.items()}
    try:
        places = fitting.places_of(tables, own, key)
    except ValueError as error:
        raise RequestError(f"{path} {error}") from error
    exact = [place for place in places if fitting.fits(place, own) and not place.unexpected]
    if not exact:
        buffers = {fitting.own_name(name) for name, _ in model.named_buffers()}
        raise RequestError(f"{path} {_misfit(places, tables, own, buffers, key)}")
    place = _chosen(exact, path)
    if place.outside and key is None and not place.is_averaged:
        _warn(
            f"{path} has the network's weights under {place.label}; others beside them are left out: "
            f"{listed(place.outside)}"
        )
    for entry in place.found.values():
        if entry.tensor.is_floating_point() and not bool(entry.tensor.isfinite().all()):
            raise RequestError(f"{path} has values in {entry.name!r} that are not finite; give another checkpoint")
    model.load_state_dict({names[name]: entry.tensor for name, entry in place.found.items()}, strict=False)


def _check_file(path: Path) -> None:
    if not path.exists():
        raise RequestError(f"no checkpoint at {path}; give a file of weights")
    if path.is_dir():
        raise RequestError(f"the checkpoint {path} is a folder; give the file of weights in it")
    if not path.stat().st_size:
        raise RequestError(f"the checkpoint {path} is empty; save or download it again")
    require_weights_size(path)


def _chosen(places: list[Place], path: Path) -> Place:
    """The place whose weights are taken, of those that fit."""
    different = fitting.distinct(places)
    averaged = [place for place in different if place.is_averaged]
    raw = [place for place in different if not place.is_averaged]
    if len(different) > 1 and (len(averaged), len(raw)) != (1, 1):
        keys = listed(place.label for place in different)
        raise RequestError(f"{path} has several weights that fit, under {keys}; choose with --checkpoint-key")
    place = (averaged or raw)[0]
    if len(different) > 1:
        _warn(
            f"{path} has raw weights under {raw[0].label} and averaged ones under {place.label}: the averaged are "
            f"taken; --checkpoint-key {shlex.quote(raw[0].path)} takes the raw ones"
        )
    return place


def _warn(text: str) -> None:
    warnings.warn(text, WeightsWarning, stacklevel=3)


def _misfit(places: list[Place], tables: Tables, own: Mapping[str, Tensor], buffers: set[str], key: str | None) -> str:
    """Why no place fits, and the way out."""
    if not places and key is not None:
        known = [path for path in tables if path]
        return (
            f"has no weights of the network under {key!r}{nearest(key, known)}; "
            f"give one of its keys as --checkpoint-key: {listed(known) or 'it has none'}"
        )
    place = max(places, key=lambda place: (len(place.found), -len(place.unexpected)), default=None)
    missing = [name for name in own if fitting.is_required(name)] if place is None else place.missing(own)
    other = _others(place, tables)
    misfits = {
        "missing": missing,
        "unexpected": list(other),
        "wrongly shaped": [] if place is None else fitting.misshapen(place, own),
        "of another type": [] if place is None else fitting.mistyped(place, own),
    }
    if missing and not other and buffers.issuperset(missing):
        return f"has parameters but no buffers (missing: {listed(missing)}); save state_dict(), not named_parameters()"
    renamed = fitting.pairs(missing, other, own)
    if renamed and not misfits["wrongly shaped"]:
        first, partner = next(iter(renamed.items()))
        shown = listed([f"{name} <- {other_name}" for name, other_name in renamed.items()])
        return (
            f"has other names for weights of the network ({shown}); rename them in its state dict: "
            f"state[{first!r}] = state.pop({partner!r})"
        )
    kinds = "; ".join(f"{kind}: {listed(names)}" for kind, names in misfits.items() if names)
    return (
        f"does not fit the network ({kinds}); "
        "give the checkpoint of this architecture, or set the architecture with --model-args"
    )


def _others(place: Place | None, tables: Tables) -> dict[str, Tensor]:
    """Tensors that are not the network's: beside those that are, or of the largest table."""
    if place is None:
        return dict(tables[max(tables, key=lambda path: len(tables[path]))])
    named = {
        fitting.bare(f"{path}.{name}" if path else name): tensor
        for path, table in tables.items()
        for name, tensor in table.items()
    }
    front = f"{place.path}." if place.path else ""
    return {name: named[front + name] for name in place.unexpected}
