"""An imported network beside its file on ONNX Runtime, before it is used."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from acq.core.evaluate import eval_mode
from acq.errors import RequestError, first_line
from acq.files.onnx_session import session_of
from acq.zoo.onnx.inputs import Entrance
from acq.zoo.onnx.network import OnnxNetwork

APART, APART_HALF = 1e-3, 2e-2  # the largest difference by the largest value; of files that compute in 16 bits
_NOTHING = 1e-6  # a difference that means nothing, as of the values of a sigmoid that are all close to zero


def require_equal(network: OnnxNetwork, model: onnx.ModelProto, entrance: Entrance, images: Tensor, half: bool) -> None:
    """Compare a network with its file.

    Args:
        network: The network.
        model: The file's graph up to the outputs that the network returns.
        entrance: What the file takes.
        images: Two or more images [N, C, H, W], as the file takes them.
        half: Whether the file computes in 16 bits.

    Raises:
        RequestError: They differ, or ONNX Runtime does not run the file.
    """
    count = max(len(images), entrance.batch or 0)
    images = images.repeat(-(-count // len(images)), 1, 1, 1)[:count]
    with torch.no_grad(), eval_mode(network):
        found = network(images)
    wanted = _computed(model, entrance, images, list(found))
    for name, value in found.items():
        _compare(name, value, wanted[name], APART_HALF if half else APART)


def _compare(name: str, found: Tensor, wanted: np.ndarray[Any, Any], most: float) -> None:
    if list(found.shape) != list(wanted.shape):
        raise RequestError(
            f"the output {name!r} has the shape {list(found.shape)} and on ONNX Runtime {list(wanted.shape)}, so the "
            "file is not read rightly; export it with a free number of images, or cut the graph before with --outputs"
        )
    other = torch.from_numpy(wanted.astype(np.float32))
    apart = (found.float() - other).abs().max().item() if other.numel() else 0.0
    largest = other.abs().max().item() if other.numel() else 0.0
    if not apart <= most * largest + _NOTHING:
        raise RequestError(
            f"the output {name!r} differs by {apart:.2g} from that of ONNX Runtime, whose largest value is "
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
