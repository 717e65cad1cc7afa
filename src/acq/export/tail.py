"""Puts back what was cut off a file behind its network, in floating point and unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, version_converter

from acq.errors import RequestError, first_line
from acq.export.form import rename
from acq.files.onnx_session import session_of
from acq.files.screening import TAIL_FACT, graphs_in

_REST = "the part of the file behind --outputs"


def joined(model: onnx.ModelProto, tail: onnx.ModelProto) -> onnx.ModelProto:
    """A model with another one behind its outputs; neither argument changes.

    Args:
        model: The student's model.
        tail: Takes outputs of ``model``, or its images, under their names.

    Raises:
        RequestError: The two cannot be written in one version of the operators.
    """
    first, rest = onnx.ModelProto(), _of_version(tail, _version(model))
    first.CopyFrom(model if _version(rest) == _version(model) else _of_version(model, _version(rest)))
    own = {first.graph.input[0].name, *(value.name for value in first.graph.output)}
    used = {name for graph in graphs_in(rest.graph) for node in graph.node for name in (*node.input, *node.output)}
    used |= {tensor.name for graph in graphs_in(rest.graph) for tensor in graph.initializer}
    used |= {value.name for graph in graphs_in(rest.graph) for value in graph.input}
    rename(first.graph, {}, reserved=used - own)
    first.graph.node.extend(rest.graph.node)
    first.graph.initializer.extend(rest.graph.initializer)
    del first.graph.output[:]
    first.graph.output.extend(rest.graph.output)
    helper.set_model_props(first, {entry.key: entry.value for entry in model.metadata_props} | {TAIL_FACT: "yes"})
    return first


def require_equal(whole: Path, model: bytes, tail: onnx.ModelProto, images: np.ndarray[Any, Any]) -> None:
    """Compare a joined file with its two parts, run one after the other on ONNX Runtime.

    Raises:
        RequestError: The file does not run, or returns other values.
    """
    try:
        first, second = _session(model), _session(tail.SerializeToString())
        entrance = first.get_inputs()[0].name
        names = [value.name for value in first.get_outputs()]
        between = dict(zip(names, first.run(names, {entrance: images}), strict=True)) | {entrance: images}
        wanted = second.run(None, {value.name: between[value.name] for value in second.get_inputs()})
        found = _session(whole.read_bytes()).run(None, {entrance: images})
    except Exception as error:  # the runtime's errors have no common base
        raise RequestError(
            f"{_REST} does not run behind the student ({first_line(error)}); name other values as --outputs"
        ) from error
    equal = all(np.allclose(a, b, 1e-4, 1e-5, equal_nan=True) for a, b in zip(found, wanted, strict=True))
    if not equal:
        raise RequestError(f"{_REST} gives other values behind the student; name other values as --outputs")


def _session(content: bytes) -> onnxruntime.InferenceSession:
    return session_of(content, "ORT_DISABLE_ALL")


def _version(model: onnx.ModelProto) -> int:
    versions: Mapping[str, int] = {entry.domain: entry.version for entry in model.opset_import}
    return versions.get("", versions.get("ai.onnx", 0))


def _of_version(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """The model in at least a version of the operators."""
    if _version(model) >= version:
        return model
    try:
        return version_converter.convert_version(model, version)
    except Exception as error:  # errors of native code
        raise RequestError(
            f"{_REST} cannot be written with version {version} of the operators ({first_line(error)}); "
            f"convert the file with onnx.version_converter first"
        ) from error
