"""Networks from ONNX files: read, screened, computed in torch, and compared with ONNX Runtime before use."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor

from acq.core.file_form import FileForm, Returned
from acq.core.values import Preprocessing
from acq.errors import Note, RequestError, first_line, listed
from acq.files.screening import screened_tail
from acq.synthesis.scenes import normalised_scenes
from acq.zoo.onnx import operators
from acq.zoo.onnx.batches import TRIAL
from acq.zoo.onnx.checking import compared, require_equal
from acq.zoo.onnx.cutting import cut, exits_of, tail_of
from acq.zoo.onnx.flat import by_image
from acq.zoo.onnx.folding import folded
from acq.zoo.onnx.graph import Graph, graph_of, half_types
from acq.zoo.onnx.inputs import Entrance, entrance_of
from acq.zoo.onnx.layout import without_turn
from acq.zoo.onnx.network import OnnxNetwork
from acq.zoo.onnx.reading import read_model
from acq.zoo.onnx.trial import tried

__all__ = ["Imported", "from_file", "operators"]

_MOST_SAID = 1 << 20  # characters of metadata; class names take some thousands
Complete = Callable[[tuple[int, ...], bool], Preprocessing]


class HalfWarning(UserWarning):
    """A file has weights in 16 or 64 bits; the message says that they become 32."""


@dataclass(frozen=True)
class Imported:
    """A network from an ONNX file.

    Attributes:
        network: It returns the file's outputs by name.
        preprocessing: Of its images.
        form: What a program sees of the file.
        tail: The part behind the network's outputs as the content of an ONNX file; None where there is none.
    """

    network: OnnxNetwork
    preprocessing: Preprocessing
    form: FileForm
    tail: bytes | None


def from_file(file: Path, outputs: Sequence[str], input_size: Sequence[int] | None, complete: Complete) -> Imported:
    """Import a network and compare it with its file.

    Args:
        file: The ONNX file.
        outputs: Names of values that the network returns; those of the file where they are its own, or none.
        input_size: Channels, height and width, where the file leaves them free.
        complete: Makes the preprocessing of the size of images, and of whether they are bytes.

    Raises:
        RequestError: The file cannot be read, an operator is not known, or the network differs from its file.
    """
    try:
        return _imported(file, outputs, input_size, complete)
    except RequestError:
        raise
    except Exception as error:  # whatever a stranger's file holds is a fault of the file
        raise RequestError(
            f"{file} cannot be read ({first_line(error, typed=True)}); export the network again"
        ) from error


def _imported(file: Path, outputs: Sequence[str], input_size: Sequence[int] | None, complete: Complete) -> Imported:
    model = read_model(file)
    exits = exits_of(model, outputs)
    entrance = entrance_of(model)
    part = cut(model, exits)
    graph = folded(graph_of(part, entrance.name, exits))
    known = complete(entrance.input_size(input_size), entrance.kind == "uint8")
    image = _as_taken(torch.empty(1, *known.input_size, device="meta"), entrance.layout == "NHWC")[0]
    graph = by_image(graph, entrance.batch, image.shape)
    network = _network(graph, entrance, known.input_size)
    if None in entrance.size[1:]:
        _, height, width = known.input_size
        warnings.warn(
            f"the file takes images of any height or width, and the student's file takes {height}x{width} alone",
            Note,
            stacklevel=4,
        )
    types = list(half_types(part))
    if types:
        warnings.warn(f"the file has weights of {listed(types)}; they become float32", HalfWarning, stacklevel=4)
    images = normalised_scenes(2, known, torch.Generator().manual_seed(0))
    images = images.round().clamp(0, 255) if entrance.kind == "uint8" else images
    half = "float16" in (*types, entrance.kind)
    found = require_equal(network, part, entrance, images, compared(graph), half=half)
    kinds: dict[str, Returned] = {name: found[name] for name in exits}  # type: ignore[misc]
    tail = tail_of(model, entrance.name, kinds)
    content = None if tail is None else screened_tail(tail.SerializeToString())
    digest = "" if content is None else hashlib.sha256(content).hexdigest()
    said = _metadata(model)
    form = FileForm(entrance.name, entrance.layout, entrance.kind, entrance.batch, kinds, digest, said)
    return Imported(network.eval(), known, form, content)


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    """What a file says of itself; nothing, with a warning, where that is too much to keep in a run folder."""
    entries = [(entry.key, entry.value) for entry in model.metadata_props]
    said = {key: text for key, text in entries if isinstance(key, str) and isinstance(text, str)}  # not UTF-8: bytes
    size = sum(len(text) for entry in said.items() for text in entry)
    if size > _MOST_SAID:
        warnings.warn(f"the file has {size:,} characters of metadata, too many for the student's file", stacklevel=5)
        return {}
    return said


def _network(graph: Graph, entrance: Entrance, size: tuple[int, int, int]) -> OnnxNetwork:
    """The network of a graph, for any number of images with their channels in front."""
    images = torch.empty(TRIAL, *size, device="meta")
    turned = without_turn(graph) if entrance.layout == "NHWC" else None
    last = entrance.layout == "NHWC" and turned is None
    graph = turned or graph
    changes = tried(graph, _as_taken(images, last), entrance.batch)
    return OnnxNetwork(graph, last, entrance.batch or 1, changes)


def _as_taken(images: Tensor, channels_last: bool) -> Tensor:
    return images.permute(0, 2, 3, 1) if channels_last else images
