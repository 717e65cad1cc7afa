"""The student as two files: numbers in ``student.safetensors``, the graph in ``quantization.json``.

Neither holds code: operators are looked up by name in an allow-list, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from acq.core.values import Preprocessing
from acq.errors import RequestError
from acq.files.limits import DOCUMENT_BYTES, VALUES_AT_ONCE, WEIGHTS_BYTES, images_at_once, read_bytes
from acq.files.tensors import from_safetensors
from acq.quantization.plan import VOCABULARY, Plan, operator_of
from acq.quantization.quantizers import ActivationQuantizer, WeightQuantizer, pack, unpack
from acq.quantization.student import QuantConv2d, QuantLayer, QuantLinear, Student, place

WEIGHTS, DOCUMENT = "student.safetensors", "quantization.json"
_ARITHMETIC = ("add", "sub", "mul", "floordiv", "mod", "neg", "getitem")  # on sizes, and items of tuples
_TORCH_KINDS = {"dtype": torch.dtype, "memory_format": torch.memory_format, "layout": torch.layout}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Node(_Strict):
    name: str
    op: Literal["placeholder", "call_function", "call_module", "get_attr", "output"]
    target: str
    args: list[Any]
    kwargs: dict[str, Any]
    shape: list[int]


class _Layer(_Strict):
    bits: int
    shape: list[int]
    geometry: dict[str, Any] | None  # None for a linear layer


class _Preprocessing(_Strict):
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class _Document(_Strict):
    format: Literal[1, 2]  # 2 where grids divide channels, which readers of the first would not
    sha256: str
    plan: Plan
    nodes: list[_Node]
    layers: dict[str, _Layer]
    quantizers: dict[str, int]
    preprocessing: _Preprocessing | None
    facts: dict[str, Any]


def save(student: Student, folder: Path, facts: dict[str, Any]) -> None:
    """Write a calibrated student and ``facts`` (JSON values, such as the model's name) into ``folder``.

    Weights are stored as integers, packed to their own width by ``pack``; scales (as ``log_scale``), zero
    points and biases as float32. Each file is written whole or not at all; the JSON holds the SHA-256.

    Raises:
        RequestError: a node's operator or argument is not among those that ``load`` accepts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    packed = safetensors.torch.save(_tensors(student))
    document = _Document(
        format=1 if all(module.channel_scale is None for _, module in _quantizers(student)) else 2,
        sha256=hashlib.sha256(packed).hexdigest(),
        plan=student.plan,
        nodes=[_encoded(node) for node in student.graph.nodes],
        layers={name: _described(layer) for name, layer in student.layers()},
        quantizers={name: module.bits for name, module in _quantizers(student)},
        preprocessing=_Preprocessing(**vars(shown)) if (shown := student.preprocessing) else None,
        facts=facts,
    )
    text = json.dumps(document.model_dump(), indent=1, allow_nan=False)
    _replace(folder / WEIGHTS, packed)
    _replace(folder / DOCUMENT, text.encode())


def exists(folder: Path) -> bool:
    """Whether a student was saved in ``folder``."""
    return (folder / WEIGHTS).exists() and (folder / DOCUMENT).exists()


def load(folder: Path) -> Student:
    """The student that was saved in ``folder``: its logits are those of the saved one, bit for bit.

    Raises:
        RequestError: a file is missing, damaged, of another format, or asks for a forbidden operator.
    """
    document = _read(folder)
    with _damage(folder):
        student = _Loader(document, _weights(folder, document)).student()
        _try(student)
    return student


def load_plan(folder: Path) -> Plan:
    """The plan of the student in ``folder``; RequestError as for ``load``."""
    return _read(folder).plan


def load_facts(folder: Path) -> dict[str, Any]:
    """The facts that were saved with the student in ``folder``; RequestError as for ``load``."""
    facts = _read(folder).facts
    wrong = [name for name in ("origin", "config", "preprocessing") if not isinstance(facts.get(name, {}), dict)]
    if wrong:
        raise RequestError(f"the {wrong[0]} in {folder / DOCUMENT} is no mapping; quantize again")
    return facts


def _tensors(student: Student) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, layer in student.layers():
        weights = layer.weight_quantizer
        found[f"{name}.weight"] = pack(weights.integers(layer.weight).cpu(), weights.bits)
        found[f"{name}.log_scale"] = weights.log_scale
        if layer.bias is not None:
            found[f"{name}.bias"] = layer.bias
    for name, module in _quantizers(student):
        found[f"{name}.log_scale"] = module.log_scale
        found[f"{name}.zero_point"] = module.zero_point
        if module.channel_scale is not None:
            found[f"{name}.channel_scale"] = module.channel_scale
    for node in student.graph.nodes:
        if node.op == "get_attr":
            found[node.target] = student.get_buffer(node.target)
    return {name: value.detach().cpu().contiguous() for name, value in found.items()}


def _quantizers(student: Student) -> Iterator[tuple[str, ActivationQuantizer]]:
    for node, module in student.placed():
        if isinstance(module, ActivationQuantizer):
            yield str(node.target), module


def _described(layer: QuantLayer) -> _Layer:
    geometry = layer.geometry if isinstance(layer, QuantConv2d) else None
    return _Layer(bits=layer.weight_quantizer.bits, shape=list(layer.weight.shape), geometry=geometry)


def _encoded(node: fx.Node) -> _Node:
    target = str(node.target)
    if node.op == "call_function":
        target = operator_of(node)
        _operator(target)
    fields = {
        "name": node.name,
        "op": node.op,
        "target": target,
        "args": [_encode(value) for value in node.args],
        "kwargs": {name: _encode(value) for name, value in node.kwargs.items()},
        "shape": list(node.meta.get("shape", ())),
    }
    return _Node.model_validate(fields)


def _encode(value: Any) -> Any:
    """An argument as JSON; nodes, infinities and torch's constants are objects of one key."""
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    for kind, its_type in _TORCH_KINDS.items():
        if isinstance(value, its_type):
            return {kind: str(value).removeprefix("torch.")}
    raise RequestError(f"the student cannot be saved: it uses {value!r}; simplify the network's forward")


def _operator(name: str) -> Callable[..., Any]:
    """The operator of that name, if it only computes: ATen, on tensors, without side effects or chance."""
    module, _, rest = name.partition(".")
    if module == "_operator" and rest in _ARITHMETIC:
        return cast(Callable[..., Any], getattr(operator, rest))
    packet, _, overload = rest.partition(".")
    found = getattr(getattr(torch.ops.aten, packet, None), overload, None) if module == "aten" else None
    if isinstance(found, torch._ops.OpOverload) and (name in VOCABULARY or _computes_only(found)):
        return found
    raise RequestError(f"operator {name} is not allowed in a saved student; leave it out of the network")


def _computes_only(found: torch._ops.OpOverload[..., Any]) -> bool:
    schema = found._schema
    takes_tensors = bool(schema.arguments) and "Tensor" in str(schema.arguments[0].type)
    return takes_tensors and not schema.is_mutable and torch.Tag.nondeterministic_seeded not in found.tags


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _damage(folder: Path) -> Iterator[None]:
    """Whatever a file's contents cause is the file's fault: one line, not a traceback."""
    try:
        yield
    except RequestError:
        raise
    except Exception as error:
        detail = " ".join(_said(error).split())[:200]
        raise RequestError(
            f"the quantized student in {folder} is damaged ({type(error).__name__}: {detail}); quantize again"
        ) from error


def _said(error: Exception) -> str:
    """What an exception says; of a document that is not as described, where and what, without a web address."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _content(path: Path, most: int) -> bytes:
    try:
        return read_bytes(path, most, "quantize again")
    except OSError as error:
        raise RequestError(f"no quantized student at {path}: {error.strerror}; run acq quantize") from error


def _read(folder: Path) -> _Document:
    written = _content(folder / DOCUMENT, DOCUMENT_BYTES)
    with _damage(folder):
        return _Document.model_validate_json(written)


def _weights(folder: Path, document: _Document) -> dict[str, Tensor]:
    written = _content(folder / WEIGHTS, WEIGHTS_BYTES)
    if hashlib.sha256(written).hexdigest() != document.sha256:
        raise RequestError(f"{folder / WEIGHTS} is not what {DOCUMENT} was written with; quantize again")
    return from_safetensors(written)


def _try(student: Student) -> None:
    """A forward pass on one black image: a graph whose parts do not fit together fails here and not later.

    Before it one of shapes alone, for as many as are run together: a few lines of a graph may ask for terabytes.
    """
    size = next(node for node in student.graph.nodes if node.op == "placeholder").meta["shape"][1:]
    if student.preprocessing is not None and student.preprocessing.input_size != size:
        raise ValueError(f"its images are {student.preprocessing.input_size} and its graph takes {size}")
    state = [*student.named_parameters(), *student.named_buffers()]
    shapes = {name: torch.empty_like(value, device="meta") for name, value in state}
    with torch.no_grad():
        with _Bounded():  # type: ignore[no-untyped-call]
            functional_call(student, shapes, (torch.empty(images_at_once(size), *size, device="meta"),))
        logits = student(torch.zeros(1, *size))
    if logits.dim() != 2:
        raise ValueError(f"its output has shape {tuple(logits.shape)}")


class _Bounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses values that are larger than any network's."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        values = func(*args, **(kwargs or {}))
        for value in values if isinstance(values, tuple | list) else (values,):
            if isinstance(value, Tensor) and value.numel() > VALUES_AT_ONCE:
                raise ValueError(f"{func} gives {value.numel():,} values")
        return values


class _Loader:
    """Rebuilds the graph and the modules that a document describes."""

    def __init__(self, document: _Document, tensors: dict[str, Tensor]) -> None:
        self.document = document
        self.tensors = tensors
        self.nodes: dict[str, fx.Node] = {}

    def student(self) -> Student:
        graph = fx.Graph()
        known = self.document.preprocessing
        student = Student(graph, self.document.plan, Preprocessing(**dict(known)) if known else None)
        for name, layer in self.document.layers.items():
            self._place(student, name, self._layer(name, layer))
        for name, width in self.document.quantizers.items():
            self._place(student, name, self._quantizer(name, width))
        for node in self.document.nodes:
            if node.op == "get_attr":
                self._place(student, node.target, self.tensors[node.target])
            self._node(graph, node)
        return student

    def _node(self, graph: fx.Graph, node: _Node) -> None:
        target: Any = _operator(node.target) if node.op == "call_function" else node.target
        described = {**self.document.layers, **self.document.quantizers}
        if node.op == "call_module" and node.target not in described:
            raise ValueError(f"node {node.name} calls {node.target}, which the file does not describe")
        args = tuple(self._decode(value) for value in node.args)
        kwargs = {name: self._decode(value) for name, value in node.kwargs.items()}
        made = graph.create_node(node.op, target, args, kwargs, node.name)
        if made.name != node.name:
            raise ValueError(f"node name {node.name} is taken")
        made.meta = {"shape": tuple(node.shape)}
        self.nodes[node.name] = made

    def _decode(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        ((kind, text),) = value.items()
        if kind == "node":
            return self.nodes[text]
        if kind == "float":
            return float(text)
        constant = getattr(torch, text)
        if not isinstance(constant, _TORCH_KINDS[kind]):
            raise ValueError(f"{text} is not a {kind}")
        return constant

    def _layer(self, name: str, layer: _Layer) -> nn.Module:
        integers = unpack(self.tensors[f"{name}.weight"], layer.bits, layer.shape)  # which holds shape against bytes
        quantizer = WeightQuantizer(layer.shape[0], layer.bits, name, power_of_two=self.document.plan.bits.power_of_two)
        quantizer.load_state_dict({"log_scale": self.tensors[f"{name}.log_scale"]})
        weight = integers * quantizer.scale.detach().view(-1, *(1,) * (len(layer.shape) - 1))
        bias = self.tensors.get(f"{name}.bias")
        if layer.geometry is None:
            return QuantLinear(weight, bias, quantizer)
        return QuantConv2d(weight, bias, quantizer, layer.geometry)

    def _quantizer(self, name: str, bits: int) -> ActivationQuantizer:
        channel_scale = self.tensors.get(f"{name}.channel_scale")
        if channel_scale is not None and not ("_narrow_quantizer" in name and self._divides(name, channel_scale)):
            raise ValueError(f"{name} cannot divide channels as the file says")
        made = ActivationQuantizer(
            bits,
            name.removesuffix("_quantizer"),
            power_of_two=self.document.plan.bits.power_of_two,
            channels=None if channel_scale is None else len(channel_scale),
        )
        made.load_state_dict({key: self.tensors[f"{name}.{key}"] for key in made.state_dict()})
        return made

    def _divides(self, name: str, channel_scale: Tensor) -> bool:
        """Whether a quantizer's values have as many channels as its ``channel_scale`` [C], which numbers can be divided by."""
        shapes = [node.shape for node in self.document.nodes if node.op == "call_module" and node.target == name]
        fits = all(len(shape) in (2, 4) and list(channel_scale.shape) == shape[1:2] for shape in shapes)
        return (
            fits
            and channel_scale.dtype == torch.float32
            and bool((channel_scale.isfinite() & (channel_scale > 0)).all())
        )

    def _place(self, student: Student, path: str, value: nn.Module | Tensor) -> None:
        if not re.fullmatch(r"\w+(\.\w+)*", path) or place(student, path, value) != path:
            raise ValueError(f"the name {path!r} is taken or not a name")
