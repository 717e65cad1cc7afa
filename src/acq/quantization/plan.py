"""What becomes of each node of a traced network: decided here as a table, applied by ``acq.quantization.student``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

from torch import Tensor, fx

from acq.errors import RequestError, nearest
from acq.network.trace import constant, shape_of

Placement = Literal["deployable", "relu-only"]

_ROLES = {
    "convolution": "conv2d.default conv2d.padding",
    "linear": "linear.default",
    "norm": "batch_norm.default",
    "activation": "relu.default relu6.default hardtanh.default clamp.default clamp_min.default clamp_max.default",
    "smooth": "silu.default hardswish.default hardsigmoid.default sigmoid.default gelu.default tanh.default "
    "elu.default leaky_relu.default softplus.default mish.default selu.default celu.default",
    "sum": "add.Tensor sub.Tensor rsub.Scalar add.Scalar sub.Scalar",
    "product": "mul.Tensor div.Tensor mul.Scalar div.Scalar",
    "join": "cat.default stack.default concat.default",
    "pool": "avg_pool2d.default adaptive_avg_pool2d.default mean.dim mean.default sum.dim_IntList "
    "upsample_bilinear2d.default upsample_bilinear2d.vec",
    # these copy, pick or reorder values
    "move": "slice.Tensor pad.default constant_pad_nd.default flatten.using_ints view.default "
    "reshape.default _unsafe_view.default permute.default transpose.int t.default squeeze.dim "
    "squeeze.dims squeeze.default unsqueeze.default max_pool2d.default adaptive_max_pool2d.default "
    "split.Tensor split.sizes split_with_sizes.default chunk.default unbind.int select.int "
    "expand.default repeat.default contiguous.default amax.default channel_shuffle.default "
    "native_channel_shuffle.default pixel_shuffle.default pixel_unshuffle.default flip.default "
    "roll.default unflatten.int upsample_nearest2d.default upsample_nearest2d.vec",
    "shape": "sym_size.int",
}
_OPERATORS = {f"aten.{name}": role for role, names in _ROLES.items() for name in names.split()}
_OPERATORS["_operator.getitem"] = "move"
VOCABULARY = frozenset(_OPERATORS)
_MULTIPLYING = ("convolution", "linear", "rescale", "product")
_GATES = ("aten.silu.default", "aten.hardswish.default")
_REDUCED = "weights keep to 7 of their 8 bits, which no CPU's kernels saturate"
_COMPARED = 4
_RELU_ONLY = "the relu-only placement quantizes the outputs of rectifiers alone"


@dataclass(frozen=True)
class NumberFormat:
    """Bit-widths, each 2..8, of weights and activations.

    ``ends`` is that of the first and last layers' weights (None: as the others), ``image`` that of the
    image, ``inner`` that of the input of a smooth non-linearity, which an engine evaluates as a table of 256 entries,
    and ``addend`` that of a value where it is added to another one (None: as the other activations): there it feeds no
    product. With ``reduce_range`` weights of 8 bits keep to 7 bits' range: CPUs without VNNI add two products in 16 bits,
    where two of 255 times 127 saturate. ``power_of_two`` makes scales of activations powers of two, and those of weights
    short (``acq.quantization.quantizers``).

    Raises:
        RequestError: one of them is out of range, or values have fewer bits where they are added than elsewhere.
    """

    weight: int
    activation: int
    ends: int | None = None
    image: int = 8
    inner: int = 8
    addend: int | None = 8
    reduce_range: bool = False
    power_of_two: bool = False

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name not in ("reduce_range", "power_of_two") and value is not None and value not in range(2, 9):
                raise RequestError(f"bits out of range: {name} {value}; give 2 to 8, for example w4a4")
        if self.addend is not None and self.addend < self.activation:
            raise RequestError(
                f"addends of {self.addend} bits are fewer than the activations' {self.activation}; "
                "give as many or more, or same"
            )

    @classmethod
    def parse(cls, text: str, ends: str | int = "same", addends: str | int = 8) -> NumberFormat:
        """``"w4a4"`` and, twice, ``"8"`` or ``"same"`` as bit-widths; RequestError if they are not of that form.

        Where weights are ``auto``, as in ``"wautoa4"``, each layer gets bits of its own (``acq.quantization.allocation``); here they
        have 4, at which layers are compared.
        """
        match = re.fullmatch(r"w(auto|\d+)a(\d+)", text.strip().lower())
        if match is None:
            raise RequestError(
                f"bits not understood: {text!r}; write weights and activations as in w4a4, or auto for the weights"
            )
        widths = {"ends": ends, "addends": addends}
        for name, width in widths.items():
            if not re.fullmatch(r"same|\d+", str(width)):
                raise RequestError(f"{name} not understood: {width!r}; give a bit-width such as 8, or same")
        end, addend = (None if width == "same" else int(width) for width in widths.values())
        weight = _COMPARED if match[1] == "auto" else int(match[1])
        return cls(weight, int(match[2]), end, addend=addend)


@dataclass(frozen=True)
class NodePlan:
    """What becomes of one node: its bits (None where it has no quantizer), its shape (-1: batch) and why.

    ``requantize_for`` names the nodes that multiply its values: for them what is held in more bits for others is rounded
    once more, to the activations' width. ``floating`` marks what a deployed engine must compute in floating point.
    """

    node: str
    operator: str
    role: str
    weight_bits: int | None
    bits: int | None
    shape: tuple[int, ...]
    reason: str
    floating: bool = False
    requantize_for: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """One site a node, in order of execution; printing it gives a table."""

    bits: NumberFormat
    placement: Placement
    sites: tuple[NodePlan, ...]

    @property
    def floating(self) -> tuple[NodePlan, ...]:
        """The sites that stay in floating point, each with its reason."""
        return tuple(site for site in self.sites if site.floating)

    def rows(self) -> list[dict[str, Any]]:
        """The sites as dictionaries of JSON values."""
        return [
            {**asdict(site), "shape": list(site.shape), "narrow_for": list(site.requantize_for)} for site in self.sites
        ]

    def __str__(self) -> str:
        head = ("node", "operator", "role", "weights", "output", "shape", "reason")
        rows = [head, *(_cells(site) for site in self.sites)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def plan(
    graph: fx.GraphModule,
    bits: NumberFormat,
    placement: Placement = "deployable",
    layers: Mapping[str, int] = MappingProxyType({}),
) -> Plan:
    """Decide what is quantized in a traced network; nothing is changed.

    ``deployable`` quantizes whatever an integer engine computes: the image, and the output of every operator
    that makes new values, once, after the batch norm and the rectifier that belong to it; what moves values
    without changing them passes them through. ``relu-only`` is the setting of the data-free literature:
    rectifiers' outputs alone. Weights are quantized in both, the logits in neither. ``layers`` are bits of single
    layers' weights, by node, in place of those that ``bits`` has for all.

    Raises:
        RequestError: the placement is not known, or a layer, or its bits are out of range.
    """
    if placement not in get_args(Placement):
        known = ", ".join(get_args(Placement))
        raise RequestError(f"placement not known: {placement!r}; give one of {known}")
    found = tuple(_Planner(graph, bits, placement, layers).sites())
    _require_layers(layers, [site.node for site in found if site.weight_bits is not None])
    return Plan(bits, placement, found)


def _require_layers(layers: Mapping[str, int], known: Sequence[str]) -> None:
    for name, width in layers.items():
        if name not in known:
            hint = nearest(name, known) or f"; known here: {', '.join(known)}"
            raise RequestError(f"layer {name!r} has no weights to quantize{hint}")
        if width not in range(2, 9):
            raise RequestError(f"bits out of range: layers.{name} {width}; give 2 to 8")


def operator_of(node: fx.Node) -> str:
    """The name of a node's operator, such as ``aten.relu.default``."""
    if node.op == "placeholder":
        return "image"
    target: Any = node.target
    name = str(target)
    return name if name.startswith("aten.") else f"{target.__module__}.{target.__name__}"


class _Planner:
    """One walk over the graph; ``grids`` says which node's quantizer each node's values come from, and its bits."""

    def __init__(
        self, graph: fx.GraphModule, bits: NumberFormat, placement: Placement, layers: Mapping[str, int]
    ) -> None:
        self.graph = graph
        self.bits = bits
        self.layers = layers
        self.relu_only = placement == "relu-only"
        self.nodes = [n for n in graph.graph.nodes if n.op in ("placeholder", "call_function")]
        self.roles: dict[fx.Node, tuple[str, str]] = {node: _role(graph, node) for node in self.nodes}
        self.grids: dict[fx.Node, tuple[fx.Node, int] | None] = {}
        self.before = _weighted(self.nodes, self.role, lambda node: node.all_input_nodes)
        self.after = _weighted(self.nodes[::-1], self.role, lambda node: node.users)
        self.logits = self._logits()
        self.asked = self._asked()

    def role(self, node: fx.Node) -> str:
        return self.roles[node][0] if node in self.roles else "constant"

    def sites(self) -> Iterator[NodePlan]:
        for node in self.nodes:
            role, why = self.roles[node]
            bits, reason = self._output(node, role)
            self.grids[node] = (node, bits) if bits else self._source(node, role)
            floating = role == "float" or (bits is None and reason == _RELU_ONLY)
            weights = self._weight_bits(node, role)
            kept = _REDUCED if self.bits.reduce_range and weights == 8 else ""
            weights = 7 if kept else weights
            narrow = tuple(reader.name for reader in self._narrow_readers(node))
            narrowed = f"{self.bits.activation} bits for {', '.join(narrow)}" if narrow else ""
            reason = "; ".join(filter(None, (why, reason, kept, narrowed)))
            yield NodePlan(node.name, operator_of(node), role, weights, bits, shape_of(node), reason, floating, narrow)

    def _output(self, node: fx.Node, role: str) -> tuple[int | None, str]:
        """Bits of the quantizer after a node, or None and why there is none."""
        if role == "shape" or not _is_float(node):
            return None, "no tensor of values"
        if self._passes(node, role):
            grid = self._source(node, role)
            return None, f"moves values of {grid[0] if grid else next(iter(_inputs(node)), 'a constant')}"
        if not isinstance(node.meta["val"], Tensor):
            return None, "it returns several tensors"
        if node in self.logits:
            return None, "the logits are not quantized"
        follower = _sole_user(node)
        joins = follower is not None and self.role(follower) in ("fold", "activation")
        if joins and role not in ("image", "smooth"):
            return None, f"belongs to {follower}"
        if self.relu_only and not self._rectifies(node):
            return None, _RELU_ONLY
        return self._width(node, role), ""

    def _width(self, node: fx.Node, role: str) -> int:
        if role == "image":
            return self.bits.image
        if self.relu_only:
            return self.bits.activation
        if self._gate_of_own_input(node):
            return self._wide(self.bits.inner)
        return self.asked[node]

    def _wide(self, bits: int | None) -> int:
        return max(bits or 0, self.bits.activation)

    def _asked(self) -> dict[fx.Node, int]:
        """The bits in which each node's values are to be held: the most that one of those who read them wants, be they
        moved or joined first."""
        asked: dict[fx.Node, int] = {}
        for node in reversed(self.nodes):
            readers = [user for user in node.users if self.role(user) not in ("shape", "constant")]
            found = [asked[user] if self._hands_on(user) else self._wanted(user) for user in readers]
            asked[node] = max(found, default=self.bits.activation)
        return asked

    def _wanted(self, reader: fx.Node) -> int:
        """The bits in which a node that computes reads its inputs where they have them."""
        role, inputs = self.role(reader), _inputs(reader)
        if role == "smooth" or (role == "product" and any(map(self._gate_of_own_input, inputs))):
            return self._wide(self.bits.inner)
        return self._wide(self.bits.addend) if role == "sum" and len(inputs) > 1 else self.bits.activation

    def _hands_on(self, node: fx.Node) -> bool:
        """Whether a node gives the very values that it reads, or none below zero of them."""
        return self.role(node) in ("move", "join") or operator_of(node) == "aten.relu.default"

    def _narrow_readers(self, node: fx.Node) -> Iterator[fx.Node]:
        """Who reads a node's values in fewer bits than they are held in, be it by the node's own quantizer or by that
        of the values that it moves: who multiplies them. Pixels are bytes for all."""
        source, bits = self.grids.get(node) or (node, 0)
        for user in node.users if self.role(source) != "image" else ():
            if self.role(user) in _MULTIPLYING and self._wanted(user) == self.bits.activation < bits:
                yield user

    def _gate_of_own_input(self, node: fx.Node) -> bool:
        """Whether this is the s(x) of ``x * s(x)``, which an engine evaluates as one table."""
        user = _sole_user(node)
        if self.role(node) != "smooth" or user is None:
            return False
        return self.role(user) == "product" and _inputs(node)[0] in _inputs(user)

    def _rectifies(self, node: fx.Node) -> bool:
        if self.role(node) == "product":
            return any(self._gate_of_own_input(factor) for factor in _inputs(node))
        return self.role(node) == "activation" or operator_of(node) in _GATES

    def _passes(self, node: fx.Node, role: str) -> bool:
        """Whether the node's values are already on its input's grid: movers, max(0, x), joins of one grid."""
        if role == "move":
            return True
        source = self._source(node, role)
        return source is not None and (role == "join" or operator_of(node) == "aten.relu.default")

    def _source(self, node: fx.Node, role: str) -> tuple[fx.Node, int] | None:
        """The grid that the values of what only moves, rectifies or joins its inputs are on, if it is one."""
        if role not in ("move", "activation", "join"):
            return None
        grids = {self.grids.get(value) for value in _inputs(node)}
        return grids.pop() if len(grids) == 1 else None

    def _weight_bits(self, node: fx.Node, role: str) -> int | None:
        if role not in ("convolution", "linear", "rescale"):
            return None
        if node.name in self.layers:
            return self.layers[node.name]
        # an end has no layer before it (it reads the image) or none after it (it makes the logits)
        is_end = role != "rescale" and (node not in self.before or node not in self.after)
        return self.bits.ends or self.bits.weight if is_end else self.bits.weight

    def _logits(self) -> set[fx.Node]:
        """The output and what it was moved from, back to the operator that made the class scores."""
        found: set[fx.Node] = set()
        for node in reversed(self.nodes):
            if node.users and all(self._ends_in(user, found) for user in node.users):
                found.add(node)
        return found

    def _ends_in(self, user: fx.Node, logits: set[fx.Node]) -> bool:
        return user.op == "output" or (user in logits and self.role(user) in ("move", "smooth", "float"))


def _role(graph: fx.GraphModule, node: fx.Node) -> tuple[str, str]:
    """A node's role and, for one that stays float, why."""
    operator = operator_of(node)
    role = "image" if node.op == "placeholder" else _OPERATORS.get(operator, "")
    if not role:
        outside = f"operator {operator} is outside the vocabulary"
        return ("float", outside) if _is_float(node) else ("shape", "")
    if role in ("convolution", "linear") and constant(graph, node.args[1]) is None:
        return "float", "its weight is computed, not constant"
    if role == "norm":
        return _norm_role(graph, node)
    if "pad" in operator and _pads_with_values(node):
        return "pad", ""
    if role in ("sum", "product", "join") and any(map(_is_constant, node.all_input_nodes)):
        return "float", "one of its operands is a floating-point constant"
    if operator == "aten.div.Tensor" and isinstance(node.args[1], fx.Node):
        return "float", "it divides by computed values"
    return role, ""


def _norm_role(graph: fx.GraphModule, node: fx.Node) -> tuple[str, str]:
    """Folded into the layer before; else a depthwise 1 x 1 convolution, one weight a channel; else float."""
    x, training = node.args[0], node.args[5]
    assert isinstance(x, fx.Node)
    if training or any(constant(graph, value) is None for value in node.args[3:5]):
        return "float", "its statistics are not constant"
    before = _role(graph, x)[0] if x.op == "call_function" and len(x.users) == 1 else ""
    if before == "convolution" or (before == "linear" and len(shape_of(x)) == 2):
        return "fold", f"folded into {x}"
    if len(shape_of(node)) == 4:
        return "rescale", "becomes a depthwise 1 x 1 convolution"
    return "float", "a batch norm that neither follows a layer nor works on images"


def _pads_with_values(node: fx.Node) -> bool:
    values = [value for value in node.args[2:] if isinstance(value, int | float)]
    return any(value != 0 for value in values) or bool(node.kwargs.get("value"))


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    first = value[0] if isinstance(value, list | tuple) and value else value
    return isinstance(first, Tensor) and first.is_floating_point()


def _inputs(node: fx.Node) -> list[fx.Node]:
    return [value for value in node.all_input_nodes if value.op != "get_attr" and _is_float(value)]


def _is_constant(node: fx.Node) -> bool:
    """Whether a node's values come from the network's constants alone."""
    inputs = node.all_input_nodes
    return node.op == "get_attr" or (node.op == "call_function" and bool(inputs) and all(map(_is_constant, inputs)))


def _sole_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _weighted(
    nodes: list[fx.Node], role: Callable[[fx.Node], str], neighbours: Callable[[fx.Node], Any]
) -> set[fx.Node]:
    """The nodes that have a layer with weights somewhere among their neighbours' neighbours."""
    found: set[fx.Node] = set()
    for node in nodes:
        if any(role(near) in ("convolution", "linear") or near in found for near in neighbours(node)):
            found.add(node)
    return found


def _cells(site: NodePlan) -> tuple[str, ...]:
    shape = "x".join("N" if size == -1 else str(size) for size in site.shape)
    weights = "" if site.weight_bits is None else str(site.weight_bits)
    output = "float" if site.floating else "" if site.bits is None else str(site.bits)
    return site.node, site.operator.removeprefix("aten."), site.role, weights, output, shape, site.reason
