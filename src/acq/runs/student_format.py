"""The format of ``quantization.json``: its schema, the codec of arguments, and the operators that it may name.

``docs/run-folder.md`` specifies the format. A document is data: operators are looked up by name among those that only
compute.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, Literal, Self, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import fx

from acq.core.outputs import Answer, Output
from acq.core.scores import Kind, Scores
from acq.core.structures import checked
from acq.core.values import Framing, Preprocessing
from acq.errors import RequestError
from acq.files.framing import framing_fault
from acq.network.names import name_of
from acq.network.operators import VOCABULARY, operator_of
from acq.quantization.layers import QuantConv2d, QuantLayer
from acq.quantization.node_plan import Plan
from acq.quantization.quantizers import ActivationQuantizer
from acq.quantization.student import Student

FORMAT: Literal[5] = 5
_ARITHMETIC = ("add", "sub", "mul", "floordiv", "mod", "neg", "getitem")  # on sizes, and items of tuples
_RAW_MEMORY = ("as_strided", "empty", "empty_strided", "_embedding_bag")
_UNSUITABLE = {torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output}
_TORCH_KINDS = {"dtype": torch.dtype, "memory_format": torch.memory_format, "layout": torch.layout}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class NodeEntry(_Strict):
    """One node of the graph.

    ``target`` is an operator, the name of a layer or quantizer, or the node's own name.
    """

    name: str
    op: Literal["placeholder", "call_function", "call_module", "get_attr", "output"]
    target: str
    args: list[Any]
    kwargs: dict[str, Any]
    shape: list[int]


class LayerEntry(_Strict):
    """A layer with quantized weights; ``geometry`` is None for a linear layer."""

    bits: int = Field(ge=2, le=8)
    shape: list[int]
    geometry: dict[str, Any] | None


class QuantizerEntry(_Strict):
    """An activation quantizer: the tensor that it quantizes, and its channels where it divides them."""

    bits: int = Field(ge=2, le=8)
    tensor: str
    channels: int | None


class CountedEntry(_Strict):
    """A returned tensor that counts, the node of its logits, and what these mean: as ``acq.core.scores.Scores``."""

    name: str
    logits: str
    kind: Kind
    shape: tuple[int, ...]


class AnswerEntry(_Strict):
    """What the network returns, and how it decides: as ``acq.core.outputs.Answer``."""

    counted: list[CountedEntry] = Field(min_length=1)
    structure: Any

    @classmethod
    def of(cls, answer: Answer) -> Self:
        """Describe an answer."""
        rows = zip(answer.counted, answer.logits, answer.output.parts, strict=True)
        counted = [CountedEntry(name=name, logits=logits, **vars(part)) for name, logits, part in rows]
        return cls(counted=counted, structure=answer.structure)

    def answer(self) -> Answer:
        """The answer; ValueError where it is none."""
        names, logits = (tuple(getattr(entry, key) for entry in self.counted) for key in ("name", "logits"))
        parts = tuple(Scores(entry.kind, entry.shape) for entry in self.counted)
        found = Answer(checked(self.structure), names, logits, Output(parts))
        for name in names:
            if name not in found.names:
                raise ValueError(f"it returns no {name!r}")
        return found


class FramingEntry(_Strict):
    """How pictures of another size get the network's."""

    resize: int
    interpolation: Literal["bilinear", "bicubic"]


class PreprocessingEntry(_Strict):
    """How images are normalised, and how pictures get their size, where that is known."""

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    framing: FramingEntry | None = None

    @model_validator(mode="after")
    def _check_framing(self) -> Self:
        if (fault := framing_fault(self.preprocessing())) is not None:
            raise ValueError(fault)
        return self

    @classmethod
    def of(cls, known: Preprocessing) -> Self:
        """The entry of a preprocessing."""
        return cls.model_validate(asdict(known))

    def preprocessing(self) -> Preprocessing:
        """The preprocessing of an entry."""
        framing = None if self.framing is None else Framing(**dict(self.framing))
        return Preprocessing(self.input_size, self.mean, self.std, framing)


class Document(_Strict):
    """The whole of ``quantization.json``; ``sha256`` is that of ``student.safetensors``."""

    format: Literal[5]
    sha256: str
    plan: Plan
    nodes: list[NodeEntry]
    layers: dict[str, LayerEntry]
    quantizers: dict[str, QuantizerEntry]
    answer: AnswerEntry
    preprocessing: PreprocessingEntry | None
    facts: dict[str, Any]


def node_entry(student: Student, node: fx.Node) -> NodeEntry:
    """Describe a node of a student.

    Raises:
        RequestError: Its operator or an argument is not allowed in a file.
    """
    name = target = name_of(node)
    if node.op == "call_function":
        target = operator_of(node)
        operator_named(target)
    elif node.op == "call_module":
        module = student.get_submodule(str(node.target))
        target = module.name if isinstance(module, QuantLayer) else name
    return NodeEntry.model_validate(
        {
            "name": name,
            "op": node.op,
            "target": target,
            "args": [encode(value) for value in node.args],
            "kwargs": {key: encode(value) for key, value in node.kwargs.items()},
            "shape": list(node.meta["shape"]),
        }
    )


def layer_entry(layer: QuantLayer) -> LayerEntry:
    """Describe a layer."""
    geometry = layer.geometry if isinstance(layer, QuantConv2d) else None
    return LayerEntry(bits=layer.weight_quantizer.bits, shape=list(layer.weight.shape), geometry=geometry)


def quantizer_entries(student: Student) -> Iterator[tuple[str, QuantizerEntry]]:
    """Describe the activation quantizers of a student, by node name."""
    for node, module in student.modules_in_order():
        if isinstance(module, ActivationQuantizer):
            channels = None if module.channel_scale is None else len(module.channel_scale)
            yield name_of(node), QuantizerEntry(bits=module.bits, tensor=module.name, channels=channels)


def constant_key(name: str) -> str:
    """The key of a constant's tensor in ``student.safetensors``."""
    return f"{name}.constant"


def encode(value: Any) -> Any:
    """An argument of a node as JSON. Nodes, infinities and torch's constants are objects of one key.

    Raises:
        RequestError: The argument has another type.
    """
    if isinstance(value, fx.Node):
        return {"node": name_of(value)}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    for kind, its_type in _TORCH_KINDS.items():
        if isinstance(value, its_type):
            return {kind: str(value).removeprefix("torch.")}
    raise RequestError(f"the student cannot be saved: it uses {value!r}; simplify the network's forward")


def decode(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    """The inverse of ``encode``.

    Args:
        value: The argument as JSON.
        nodes: The nodes before this one, by public name.

    Raises:
        Exception: The value is not one that ``encode`` returns; the type depends on the fault.
    """
    if isinstance(value, list):
        return [decode(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, text),) = value.items()
    if kind == "node":
        return nodes[text]
    if kind == "float":
        return float(text)
    constant = getattr(torch, text)
    if not isinstance(constant, _TORCH_KINDS[kind]):
        raise ValueError(f"{text} is not a {kind}")
    return constant


def operator_named(name: str) -> Callable[..., Any]:
    """The operator of that name, if a file may call it.

    A file may call the operators that the planner knows, those of PyTorch's core set (``torch.Tag.core``), and
    arithmetic on sizes. Operators that write, draw random numbers, read memory as it is, or compute gradients are
    excluded.

    Raises:
        RequestError: The name is no such operator.
    """
    module, _, rest = name.partition(".")
    if module == "_operator" and rest in _ARITHMETIC:
        return cast(Callable[..., Any], getattr(operator, rest))
    packet, _, overload = rest.partition(".")
    found = getattr(getattr(torch.ops.aten, packet, None), overload, None) if module == "aten" else None
    if isinstance(found, torch._ops.OpOverload) and (name in VOCABULARY or _is_harmless(packet, found)):
        return found
    raise RequestError(f"operator {name} is not allowed in a saved student; remove it from the network")


def _is_harmless(packet: str, found: torch._ops.OpOverload[..., Any]) -> bool:
    if packet in _RAW_MEMORY or packet.endswith("_backward") or found._schema.is_mutable:
        return False
    return torch.Tag.core in found.tags and _UNSUITABLE.isdisjoint(found.tags)
