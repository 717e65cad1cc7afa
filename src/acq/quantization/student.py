"""The quantized network: a plan applied to a traced graph, with weights and quantizers of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional as F

from acq.core.batchnorm import batch_norm_affine
from acq.core.values import Preprocessing
from acq.errors import nearest
from acq.network.trace import constant
from acq.quantization.plan import NodePlan, Plan
from acq.quantization.quantizers import ActivationQuantizer, WeightQuantizer


class QuantLayer(nn.Module):
    """What both kinds share: ``weight``, its ``weight_quantizer``, and a float ``bias`` or None."""

    def __init__(self, weight: Tensor, bias: Tensor | None, quantizer: WeightQuantizer) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias) if bias is not None else None
        self.weight_quantizer = quantizer

    @property
    def groups(self) -> int:
        """Into how many groups its channels fall, each read by weights of its own."""
        return 1


class QuantLinear(QuantLayer):
    """A linear layer with quantized weight [K, C]."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., K]."""
        return F.linear(x, self.weight_quantizer(self.weight), self.bias)


class QuantConv2d(QuantLayer):
    """A convolution with quantized weight; ``geometry`` has stride, padding, dilation and groups by name."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, quantizer: WeightQuantizer, geometry: dict[str, Any]
    ) -> None:
        super().__init__(weight, bias, quantizer)
        self.geometry = geometry

    @property
    def groups(self) -> int:
        """As the convolution has them."""
        return int(self.geometry.get("groups", 1))

    def steps(self, name: str) -> tuple[int, int]:
        """``stride`` or ``dilation``, down and across."""
        return pair(self.geometry.get(name, 1))

    def pads(self) -> tuple[int, int, int, int]:
        """Zeros around its input: above, left, below, right."""
        padding = self.geometry.get("padding", 0)
        if padding == "same":  # stride is 1; the odd one goes behind, as in torch
            sizes = zip(self.steps("dilation"), self.weight.shape[2:], strict=True)
            down, across = (step * (size - 1) for step, size in sizes)
            return down // 2, across // 2, down - down // 2, across - across // 2
        down, across = pair(0 if padding == "valid" else padding)
        return down, across, down, across

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, K, H', W']."""
        y: Tensor = F.conv2d(x, self.weight_quantizer(self.weight), self.bias, **self.geometry)
        return y


class Student(nn.Module):
    """A network that runs ``graph`` node by node, its layers and quantizers being its own submodules.

    Nothing is compiled from it, so that a graph read from a file is data and never code. A node's values
    are those of the teacher's node of the same name; a quantizer is the node after it, named
    ``<node>_quantizer``, and where some read fewer bits than are held, ``<node>_narrow_quantizer`` is the node after
    that. ``preprocessing``, where known, says what its images are.
    """

    def __init__(self, graph: fx.Graph, plan: Plan, preprocessing: Preprocessing | None = None) -> None:
        super().__init__()
        self.graph = graph
        self.plan = plan
        self.preprocessing = preprocessing

    @property
    def classes(self) -> int:
        """Number of classes."""
        logits = self.graph.output_node().args[0]
        assert isinstance(logits, fx.Node)
        return int(logits.meta["shape"][1])

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [N, C, H, W] to logits [N, K]."""
        return self.read(images, ())[0]

    def read(self, images: Tensor, taps: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """One forward pass: the logits [N, K], and the values of the nodes in ``taps``, quantized where
        they are.

        Raises:
            ValueError: a tap is not a node of the student (the input of a folded batch norm is none).
        """
        wanted = {tap: self._valued(tap) for tap in taps}
        interpreter = _Reader(self, self.graph, frozenset(wanted.values()))
        logits: Tensor = interpreter.run(images)
        return logits, {tap: interpreter.kept[name] for tap, name in wanted.items()}

    def placed(self) -> Iterator[tuple[fx.Node, nn.Module]]:
        """The nodes that run a layer or a quantizer and these modules, in order of execution."""
        for node in self.graph.nodes:
            if node.op == "call_module":
                yield node, self.get_submodule(str(node.target))

    def layers(self) -> Iterator[tuple[str, QuantLayer]]:
        """The layers with quantized weights and their module names, in order of execution."""
        for node, module in self.placed():
            if isinstance(module, QuantLayer):
                yield str(node.target), module

    def activations(self) -> Iterator[tuple[str, ActivationQuantizer]]:
        """The activation quantizers by their nodes, ``_quantizer`` left out, in order of execution."""
        for node, module in self.placed():
            if isinstance(module, ActivationQuantizer):
                yield node.name.removesuffix("_quantizer"), module

    def _valued(self, tap: str) -> str:
        names = {node.name for node in self.graph.nodes}
        if tap not in names:
            raise ValueError(f"{tap!r} is not a node of the student{nearest(tap, names)}")
        return f"{tap}_quantizer" if f"{tap}_quantizer" in names else tap


class _Reader(fx.Interpreter):
    def __init__(self, student: Student, graph: fx.Graph, wanted: frozenset[str]) -> None:
        super().__init__(student, graph=graph)
        self.wanted = wanted
        self.kept: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.wanted:
            self.kept[n.name] = value
        return value


def times_inputs(layer: QuantLayer, weight: Tensor, factor: Tensor) -> Tensor:
    """A ``weight`` of the layer's shape [K, C / groups, ...] with what it multiplies of each input channel times
    ``factor`` [C]."""
    groups = layer.groups
    rows = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)  # [G, K / G, C / G, n]
    return (rows * factor.view(groups, 1, -1, 1)).view_as(weight)


def layer_name_of(node: fx.Node) -> str:
    """The node of the plan, and of the teacher, whose layer a student's node runs."""
    return str(node.meta.get("layer", node.name))


def build(graph: fx.GraphModule, plan: Plan, preprocessing: Preprocessing | None = None) -> Student:
    """The student that ``plan`` describes, with its own copy of the weights and uncalibrated quantizers."""
    return _Builder(graph, plan, preprocessing).student()


@contextmanager
def quantizers_off(student: nn.Module) -> Iterator[None]:
    """Run in floating point for a while, every quantizer passing its input through; restored on exit."""
    quantizers = [m for m in student.modules() if isinstance(m, WeightQuantizer | ActivationQuantizer)]
    before = [quantizer.enabled for quantizer in quantizers]
    try:
        for quantizer in quantizers:
            quantizer.enabled = False
        yield
    finally:
        for quantizer, enabled in zip(quantizers, before, strict=True):
            quantizer.enabled = enabled


def float_bytes(student: Student) -> int:
    """Bytes of the layers' weights and biases as float32."""
    return sum(4 * (layer.weight.numel() + _bias_count(layer)) for _, layer in student.layers())


def quantized_bytes(student: Student) -> int:
    """Bytes as deployed: weights packed to their width, int32 biases, float32 scales and ratios, 1-byte zero points."""
    grids = [grid for _, grid in student.activations()]
    total = sum(5 + (0 if grid.channel_scale is None else 4 * grid.channel_scale.numel()) for grid in grids)
    for _, layer in student.layers():
        weights = layer.weight_quantizer
        packed = (layer.weight.numel() * weights.bits + 7) // 8
        total += packed + 4 * weights.log_scale.numel() + 4 * _bias_count(layer)
    return total


def mean_weight_bits(student: Student) -> float:
    """Mean bit-width over all weights of the layers."""
    counts = [(layer.weight.numel(), layer.weight_quantizer.bits) for _, layer in student.layers()]
    return sum(count * bits for count, bits in counts) / sum(count for count, _ in counts)


def _bias_count(layer: QuantLayer) -> int:
    return layer.bias.numel() if layer.bias is not None else 0


class _Builder:
    """Copies the graph node by node into a new one, layers and quantizers becoming modules."""

    def __init__(self, graph: fx.GraphModule, plan: Plan, preprocessing: Preprocessing | None) -> None:
        self.source = graph
        self.sites = {site.node: site for site in plan.sites}
        self.graph = fx.Graph()
        self.built = Student(self.graph, plan, preprocessing)
        self.copies: dict[fx.Node, fx.Node] = {}
        self.narrow: dict[fx.Node, fx.Node] = {}

    def student(self) -> Student:
        for node in self.source.graph.nodes:
            if node.op == "output":
                result = node.args[0][0] if isinstance(node.args[0], tuple | list) else node.args[0]
                self.graph.output(self.copies[result])
            elif node.op == "placeholder" or (node.op == "call_function" and node.users):
                # one without users is an assertion of the trace
                self.copies[node] = self._copy(node, self.sites[node.name])
        return self.built

    def _copy(self, node: fx.Node, site: NodePlan) -> fx.Node:
        if site.role in ("convolution", "linear") and self._folds(node):
            # the layer's own node goes: its values exist only after the batch norm, under that one's name
            return self.copies[_input(node)]
        if site.role in ("convolution", "linear", "rescale", "fold"):
            copy = self._layer(node, site)
        else:
            copy = self.graph.node_copy(node, lambda value: self._read(value, node))
        copy.meta = {"shape": site.shape, **{name: copy.meta[name] for name in ("layer",) if name in copy.meta}}
        representable = self._quantized(copy, site, site.bits, "quantizer") if site.bits else copy
        if site.requantize_for:
            self.narrow[node] = self._quantized(
                representable, site, self.built.plan.bits.activation, "narrow_quantizer"
            )
        return representable

    def _read(self, value: fx.Node, reader: fx.Node) -> fx.Node:
        """What a reader takes of a node: its copy, or the one in fewer bits."""
        narrow = value in self.narrow and reader.name in self.sites[value.name].requantize_for
        return self.narrow[value] if narrow else self._copied(value)

    def _folds(self, node: fx.Node) -> bool:
        users = list(node.users)
        return len(users) == 1 and users[0].name in self.sites and self.sites[users[0].name].role == "fold"

    def _copied(self, node: fx.Node) -> fx.Node:
        """A node's copy; a constant gets a buffer of the student when it is first used."""
        if node not in self.copies:
            value = constant(self.source, node)
            assert value is not None
            name = place(self.built, str(node.target), value.detach().clone())
            self.copies[node] = self.graph.create_node("get_attr", name, name=node.name)
            self.copies[node].meta = {"shape": tuple(value.shape)}
        return self.copies[node]

    def _quantized(self, copy: fx.Node, site: NodePlan, bits: int, kind: str) -> fx.Node:
        name = f"{site.node}_{kind}"
        quantizer = ActivationQuantizer(
            bits,
            name.removesuffix("_quantizer"),
            power_of_two=self.built.plan.bits.power_of_two,
            channels=site.shape[1] if kind == "narrow_quantizer" and _has_channels(site) else None,
        )
        node = self.graph.create_node("call_module", place(self.built, name, quantizer), (copy,), name=name)
        node.meta = {"shape": site.shape}
        return node

    def _layer(self, node: fx.Node, site: NodePlan) -> fx.Node:
        layer = _input(node) if site.role == "fold" else node
        weight, bias = self._weights(node, layer, site)
        bits = self.sites[layer.name].weight_bits
        assert bits is not None
        path = str(layer.args[1].target) if isinstance(layer.args[1], fx.Node) else layer.name
        name = path.removesuffix(".weight") if "." in path else layer.name
        quantizer = WeightQuantizer(len(weight), bits, name, power_of_two=self.built.plan.bits.power_of_two)
        module: nn.Module
        if site.role == "rescale":
            module = QuantConv2d(weight, bias, quantizer, {"groups": len(weight)})
        elif self.sites[layer.name].role == "linear":
            module = QuantLinear(weight, bias, quantizer)
        else:
            module = QuantConv2d(weight, bias, quantizer, _geometry(layer))
        name = place(self.built, name, module)
        source = self._read(_input(layer), layer)
        made = self.graph.create_node("call_module", name, (source,), name=node.name)
        made.meta = {"layer": layer.name}
        return made

    def _weights(self, node: fx.Node, layer: fx.Node, site: NodePlan) -> tuple[Tensor, Tensor | None]:
        if site.role == "rescale":
            factor, shift = _affine(self.source, node)
            return factor.view(-1, 1, 1, 1).clone(), shift
        weight = constant(self.source, layer.args[1])
        bias = constant(self.source, _argument(layer, 2, "bias"))
        assert weight is not None
        if site.role != "fold":
            return weight.detach().clone(), None if bias is None else bias.detach().clone()
        # y = factor * (W x + b) + shift, one factor an output channel
        factor, shift = _affine(self.source, node)
        folded = weight * factor.view(-1, *(1,) * (weight.dim() - 1))
        return folded, shift if bias is None else shift + factor * bias


def _has_channels(site: NodePlan) -> bool:
    """Whether values are [N, C] or [N, C, H, W]; -1 stands for the number of images."""
    return len(site.shape) in (2, 4) and site.shape[1] > 0


def _affine(graph: fx.GraphModule, norm: fx.Node) -> tuple[Tensor, Tensor]:
    """An eval-mode batch norm as ``factor * x + shift``, [C] each."""
    weight, bias, mean, var = (constant(graph, value) for value in norm.args[1:5])
    epsilon = norm.args[7]
    assert mean is not None
    assert var is not None
    assert isinstance(epsilon, float)
    return batch_norm_affine(weight, bias, mean, var, epsilon)


def _geometry(layer: fx.Node) -> dict[str, Any]:
    names = enumerate(("stride", "padding", "dilation", "groups"), 3)
    given = {name: _argument(layer, position, name) for position, name in names}
    return {name: list(v) if isinstance(v, list | tuple) else v for name, v in given.items() if v is not None}


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """An operator's number for both axes, or one for each, as one for each."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _argument(node: fx.Node, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def _input(node: fx.Node) -> fx.Node:
    value = node.args[0]
    assert isinstance(value, fx.Node)
    return value


def place(root: nn.Module, path: str, value: nn.Module | Tensor) -> str:
    """Register ``value`` under the dotted ``path``, with ``_`` appended until it is free; where it went."""
    *parents, leaf = path.split(".")
    holder = root
    for depth, part in enumerate(parents):
        if not hasattr(holder, part):
            holder.add_module(part, nn.Module())
        inner = getattr(holder, part)
        if not isinstance(inner, nn.Module):
            return place(root, ".".join([*parents[:depth], part + "_", *parents[depth + 1 :], leaf]), value)
        holder = inner
    while hasattr(holder, leaf):
        leaf += "_"
    if isinstance(value, Tensor):
        holder.register_buffer(leaf, value)
    else:
        holder.add_module(leaf, value)
    return ".".join([*parents, leaf])
