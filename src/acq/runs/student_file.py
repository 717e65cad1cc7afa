"""Saves a student as two files and loads it: tensors in ``student.safetensors``, the graph in ``quantization.json``.

Neither file holds code, and nothing is unpickled. ``docs/run-folder.md`` specifies both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor, fx, nn

from acq.core.outputs import Output
from acq.errors import RequestError, first_line
from acq.files.atomic import write_atomically
from acq.files.class_names import NAMES, checked_names, fitting
from acq.files.limits import DOCUMENT_BYTES, WEIGHTS_BYTES, read_bytes
from acq.files.tensors import from_safetensors
from acq.network.names import name_of
from acq.network.outputs import returned_nodes
from acq.quantization.build import attach
from acq.quantization.layers import QuantConv2d, QuantLayer, QuantLinear
from acq.quantization.node_plan import Plan
from acq.quantization.packing import pack, unpack
from acq.quantization.quantizers import ActivationQuantizer, WeightQuantizer
from acq.quantization.student import Student
from acq.runs.names import QUANTIZATION, STUDENT
from acq.runs.student_format import (
    FORMAT,
    AnswerEntry,
    Document,
    LayerEntry,
    NodeEntry,
    PreprocessingEntry,
    QuantizerEntry,
    constant_key,
    decode,
    layer_entry,
    node_entry,
    operator_named,
    quantizer_entries,
)
from acq.runs.trial import try_out


def save(student: Student, folder: Path, facts: dict[str, Any]) -> None:
    """Save a calibrated student. Each file is written whole or not at all.

    Args:
        student: The student.
        folder: Where the two files go; it is created if it is missing.
        facts: JSON values to keep with the student, such as the model's name.

    Raises:
        RequestError: ``load`` would refuse a node's operator or argument.
    """
    folder.mkdir(parents=True, exist_ok=True)
    packed = safetensors.torch.save(_tensors(student))
    known = student.preprocessing
    document = Document(
        format=FORMAT,
        sha256=hashlib.sha256(packed).hexdigest(),
        plan=student.plan,
        nodes=[node_entry(student, node) for node in student.graph.nodes],
        layers={name: layer_entry(layer) for name, layer in student.layers()},
        quantizers=dict(quantizer_entries(student)),
        answer=AnswerEntry.of(student.answer),
        preprocessing=None if known is None else PreprocessingEntry.of(known),
        facts=facts,
    )
    text = json.dumps(document.model_dump(), indent=1, allow_nan=False)
    write_atomically(folder / STUDENT, packed)
    write_atomically(folder / QUANTIZATION, text.encode())


def exists(folder: Path) -> bool:
    """Whether a student is saved in ``folder``."""
    return (folder / STUDENT).exists() and (folder / QUANTIZATION).exists()


def load(folder: Path) -> Student:
    """Load a student. Its logits are those of the saved one, bit for bit.

    Raises:
        RequestError: A file is missing, damaged, of another format, or names a forbidden operator.
    """
    document = _read_document(folder)
    with _damage_reported(folder):
        student = _Loader(document, _read_tensors(folder, document)).student()
        try_out(student)
    return student


@dataclass(frozen=True)
class Description:
    """What is known of a saved student without its weights.

    Attributes:
        plan: That it follows.
        output: How it decides.
        facts: That were saved with it.
        class_names: In class order; empty where they are not known.
    """

    plan: Plan
    output: Output
    facts: dict[str, Any]
    class_names: tuple[str, ...]


def load_description(folder: Path) -> Description:
    """Load what is known of a student; raises as ``load``."""
    document = _read_document(folder)
    facts = document.facts
    wrong = [name for name in ("origin", "config", "preprocessing") if not isinstance(facts.get(name, {}), dict)]
    if wrong:
        raise RequestError(f"the {wrong[0]} in {folder / QUANTIZATION} is not a mapping; quantize again")
    names = checked_names(facts.get(NAMES, []), str(folder / QUANTIZATION))
    with _damage_reported(folder):
        output = document.answer.answer().output
    return Description(document.plan, output, facts, fitting((), names, output))


def load_facts(folder: Path) -> dict[str, Any]:
    """Load the facts that were saved with a student; raises as ``load``."""
    return load_description(folder).facts


def _tensors(student: Student) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for node, module in student.modules_in_order():
        if isinstance(module, QuantLayer):
            weights = module.weight_quantizer
            found[f"{module.name}.weight"] = pack(weights.integers(module.weight).cpu(), weights.bits)
            found[f"{module.name}.log_scale"] = weights.log_scale
            if module.bias is not None:
                found[f"{module.name}.bias"] = module.bias
        else:
            found |= {f"{name_of(node)}.{key}": value for key, value in module.state_dict().items()}
    for node in student.graph.nodes:
        if node.op == "get_attr":
            found[constant_key(name_of(node))] = student.get_buffer(str(node.target))
    return {name: value.detach().cpu().contiguous() for name, value in found.items()}


@contextmanager
def _damage_reported(folder: Path) -> Iterator[None]:
    """Report any fault of a file's content in one line."""
    try:
        yield
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(
            f"the quantized student in {folder} is damaged ({_detail(error)}); quantize again"
        ) from error


def _detail(error: Exception) -> str:
    """What is wrong in one line; of a document with another schema, where and what."""
    if not isinstance(error, ValidationError):
        return first_line(error, typed=True)
    first = error.errors(include_url=False)[0]
    return " ".join(f"{'.'.join(map(str, first['loc']))}: {first['msg']}".split())


def _read(path: Path, most: int) -> bytes:
    try:
        return read_bytes(path, most, "quantize again")
    except OSError as error:
        raise RequestError(f"no quantized student at {path}: {error.strerror}; run acq quantize") from error


def _read_document(folder: Path) -> Document:
    content = _read(folder / QUANTIZATION, DOCUMENT_BYTES)
    with _damage_reported(folder):
        try:
            return Document.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            if first["loc"] != ("format",) or not isinstance(first["input"], int):
                raise
            raise RequestError(
                f"the student in {folder} has format {first['input']} and this version reads format {FORMAT}; "
                "use the version of acq that wrote it, or quantize again"
            ) from error


def _read_tensors(folder: Path, document: Document) -> dict[str, Tensor]:
    content = _read(folder / STUDENT, WEIGHTS_BYTES)
    if hashlib.sha256(content).hexdigest() != document.sha256:
        raise RequestError(f"{folder / STUDENT} does not belong to its {QUANTIZATION}; quantize again")
    return from_safetensors(content)


class _Loader:
    """Rebuilds the graph and the modules that a document describes."""

    def __init__(self, document: Document, tensors: dict[str, Tensor]) -> None:
        self.document = document
        self.tensors = tensors
        self.unused = set(tensors)
        self.nodes: dict[str, fx.Node] = {}
        self.power_of_two_scales = document.plan.format.power_of_two_scales
        known = document.preprocessing
        self.made = Student(
            fx.Graph(), document.plan, document.answer.answer(), None if known is None else known.preprocessing()
        )

    def student(self) -> Student:
        for entry in self.document.nodes:
            if entry.name in self.nodes:
                raise ValueError(f"two nodes are called {entry.name!r}")
            args = tuple(decode(value, self.nodes) for value in entry.args)
            kwargs = {key: decode(value, self.nodes) for key, value in entry.kwargs.items()}
            node = self.made.graph.create_node(entry.op, self._target(entry), args, kwargs, entry.name)
            node.meta = {"name": entry.name, "shape": tuple(entry.shape)}
            self.nodes[entry.name] = node
        if self.unused:
            raise ValueError(f"no node uses the tensor {min(self.unused)!r}")
        returned = returned_nodes(self.made.graph)
        if len(self.made.answer.names) != len(returned) or not all(isinstance(node, fx.Node) for node in returned):
            raise ValueError("it returns other tensors than its structure has")
        return self.made

    def _target(self, entry: NodeEntry) -> Any:
        if entry.op == "call_function":
            return operator_named(entry.target)
        if entry.op == "get_attr":
            return attach(self.made, entry.name, self._tensor(constant_key(entry.name)))
        if entry.op != "call_module":
            return entry.target
        if entry.target in self.document.layers:
            return attach(self.made, entry.target, self._layer(entry.target, self.document.layers[entry.target]))
        if entry.name in self.document.quantizers:
            return attach(self.made, entry.name, self._quantizer(entry, self.document.quantizers[entry.name]))
        raise ValueError(f"node {entry.name!r} calls {entry.target!r}, which the file does not describe")

    def _tensor(self, name: str) -> Tensor:
        self.unused.discard(name)
        return self.tensors[name]

    def _floats(self, name: str) -> Tensor:
        found = self._tensor(name)
        if found.dtype != torch.float32:
            raise ValueError(f"{name} is {found.dtype}, not float32")
        return found

    def _layer(self, name: str, entry: LayerEntry) -> nn.Module:
        integers = unpack(self._tensor(f"{name}.weight"), entry.bits, entry.shape)  # compares the shape with the bytes
        quantizer = WeightQuantizer(entry.shape[0], entry.bits, name, power_of_two_scales=self.power_of_two_scales)
        quantizer.load_state_dict({"log_scale": self._floats(f"{name}.log_scale")})
        weight = integers * quantizer.scale.detach().view(-1, *(1,) * (len(entry.shape) - 1))
        bias = self._floats(f"{name}.bias") if f"{name}.bias" in self.tensors else None
        if entry.geometry is None:
            return QuantLinear(weight, bias, quantizer)
        return QuantConv2d(weight, bias, quantizer, entry.geometry)

    def _quantizer(self, node: NodeEntry, entry: QuantizerEntry) -> ActivationQuantizer:
        if entry.channels is not None:
            self._require_channel_scale(node, entry.channels)
        quantizer = ActivationQuantizer(
            entry.bits, entry.tensor, power_of_two_scales=self.power_of_two_scales, channels=entry.channels
        )
        quantizer.load_state_dict({key: self._floats(f"{node.name}.{key}") for key in quantizer.state_dict()})
        return quantizer

    def _require_channel_scale(self, node: NodeEntry, channels: int) -> None:
        """Refuse a ``channel_scale`` that is not one positive number per channel, before its module is made."""
        scale = self._floats(f"{node.name}.channel_scale")
        fits = len(node.shape) in (2, 4) and scale.shape == (channels,) == tuple(node.shape[1:2])
        if not fits or not (scale.isfinite() & (scale > 0)).all():
            raise ValueError(f"{node.name} cannot divide its channels by the file's channel_scale")
