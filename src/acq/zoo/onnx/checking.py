"""An imported network beside its file on ONNX Runtime, before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from acq.core.evaluate import eval_mode
from acq.errors import RequestError, first_line
from acq.files.onnx_session import session_of
from acq.zoo.onnx.graph import Graph
from acq.zoo.onnx.inputs import Entrance
from acq.zoo.onnx.network import OnnxNetwork

APART, APART_HALF = 1e-3, 2e-2  # the largest difference by the largest value; of files that compute in 16 bits
_ENDINGS = ("Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax")
_MOVES = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Cast")
_NOTHING = 1e-6  # a difference that means nothing, as of the values of a sigmoid that are all close to zero


def require_equal(
    network: OnnxNetwork,
    model: onnx.ModelProto,
    entrance: Entrance,
    images: Tensor,
    names: Sequence[str],
    half: bool,
) -> dict[str, str]:
    """Compare a network with its file.

    Args:
        network: The network.
        model: The file's graph up to the outputs that the network returns.
        entrance: What the file takes.
        images: Two or more images [N, C, H, W], as the file takes them.
        names: The values that are compared.
        half: Whether the file computes in 16 bits.

    Returns:
        The type of each value in the file, as NumPy calls it.

    Raises:
        RequestError: They differ, or ONNX Runtime does not run the file.
    """
    count = max(len(images), entrance.batch or 0)
    images = images.repeat(-(-count // len(images)), 1, 1, 1)[:count]
    with torch.no_grad(), eval_mode(network):
        found = network.values(images, names)
    wanted = _computed(_returning(model, names), entrance, images, list(found))
    for name, value in found.items():
        _compare(name, value, wanted[name], APART_HALF if half else APART)
    return {name: value.dtype.name for name, value in wanted.items()}


def compared(graph: Graph) -> tuple[str, ...]:
    """The values of a graph by which a network shows that it is read rightly.

    They are those that it returns, and what enters a sigmoid or softmax that ends it: behind one that saturates, other
    scores give nearly the same values.
    """
    made = {output: node for node in graph.nodes for output in node.outputs}
    names = dict.fromkeys(graph.exits)
    for name in graph.exits:
        node = made.get(name)
        while node is not None and node.kind in _MOVES:
            node = made.get(node.inputs[0])
        if node is not None and node.kind in _ENDINGS and node.inputs[0] in made:
            names[node.inputs[0]] = None
    return tuple(names)


def _returning(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model with these values as outputs, too."""
    there = {value.name for value in model.graph.output}
    missing = [onnx.ValueInfoProto(name=name) for name in names if name not in there]
    if not missing:
        return model
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    whole.graph.output.extend(missing)
    return whole


def _compare(name: str, found: Tensor, wanted: np.ndarray[Any, Any], most: float) -> None:
    if list(found.shape) != list(wanted.shape):
        raise RequestError(
            f"the value {name!r} has the shape {list(found.shape)} and on ONNX Runtime {list(wanted.shape)}, so the "
            "file is not read rightly; export it with a free number of images, or cut the graph before with --outputs"
        )
    other = torch.from_numpy(wanted.astype(np.float32))
    apart = (found.float() - other).abs().max().item() if other.numel() else 0.0
    largest = other.abs().max().item() if other.numel() else 0.0
    if not apart <= most * largest + _NOTHING:
        raise RequestError(
            f"the value {name!r} differs by {apart:.2g} from that of ONNX Runtime, whose largest value is "
            f"{largest:.2g}, so the file is not read rightly; export it again, or cut the graph before with --outputs"
        )


def _computed(
    model: onnx.ModelProto, entrance: Entrance, images: Tensor, names: list[str]
) -> dict[str, np.ndarray[Any, Any]]:
    """What ONNX Runtime computes, for as many images at once as the file takes."""
    array = images.numpy().transpose(0, 2, 3, 1) if entrance.layout == "NHWC" else images.numpy()
    array = np.ascontiguousarray(array).astype(entrance.kind)
    step = entrance.batch or len(array)
    try:
        session = session_of(model.SerializeToString(), threads=torch.get_num_threads())
        whole = len(array) // step * step
        runs = [session.run(names, {entrance.name: array[at : at + step]}) for at in range(0, whole, step)]
    except Exception as error:  # the runtime's errors have no common base, and a foreign file can cause any
        raise RequestError(f"ONNX Runtime cannot run the file ({first_line(error)}); export it again") from error
    return {name: np.concatenate([run[place] for run in runs]) for place, name in enumerate(names)}
