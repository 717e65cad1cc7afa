"""Which operators a traced graph may hold, and how torch.export takes others apart.

A graph keeps the operators that the planner knows, whole, and those of torch's core set. Everything else is written in
terms of these, so that each later step (rounding, run folders, ONNX) has a bounded set of operators to handle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import get_decompositions
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.nn import functional as F

from acq.errors import RequestError, listed
from acq.network.names import module_of
from acq.network.operators import VOCABULARY
from acq.network.rewrites import LAYERS
from acq.network.source import written_at

aten = torch.ops.aten
_BATCH_STATISTICS = (
    aten._native_batch_norm_legit.no_stats, aten._native_batch_norm_legit.default,
    aten._native_batch_norm_legit_functional.default,
)  # fmt: skip
_SHOWN = 5  # names in a message
_DROPOUTS = (aten.native_dropout.default, aten.dropout.default)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The table for ``ExportedProgram.run_decompositions``: torch's own, less what a graph keeps, and our own."""
    table: dict[Any, Callable[..., Any]] = torch.export.default_decompositions()
    for operator in list(table):
        if str(operator) in VOCABULARY or torch.Tag.core in getattr(operator, "tags", ()):
            del table[operator]
    # torch has a rule for unfold, outside its table for exports
    own = get_decompositions([aten.unfold]) | _OWN | LAYERS
    table.update({operator: rule for operator, rule in own.items() if str(operator) not in VOCABULARY})
    return table


def require_known_operators(graph: fx.Graph) -> None:
    """Refuse operators that have no fixed result, or that neither torch's core set nor the planner has.

    Args:
        graph: A traced network after decomposition.

    Raises:
        RequestError: There is one; the message names it and the line of the network's code.
    """
    norms = [node for node in graph.nodes if node.target in _BATCH_STATISTICS and not _is_of_one_image(node)]
    if norms:
        raise RequestError(_of_the_batch(norms))
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OperatorBase):
            fault = _fault(node)
            if fault:
                raise RequestError(fault)


def _of_the_batch(norms: list[fx.Node]) -> str:
    """Why batch norms that use the batch's own statistics are refused, and the way out."""
    names = listed((repr(module_of(node)[0]) for node in norms), _SHOWN)
    without = any(node.target is aten._native_batch_norm_legit.no_stats for node in norms)
    kind = "without running statistics" if without else "in training mode"
    way_out = "train the network with track_running_stats=True" if without else "leave them in eval mode"
    return f"batch norms {kind}: {names}; the answer for an image depends on the others of its batch, so {way_out}"


def _is_of_one_image(norm: fx.Node) -> bool:
    """Whether a norm's input has the batch in its channels, as hand-written instance norms have it."""
    source: Any = norm.args[0]
    size = source.meta["val"].shape[0]
    return isinstance(size, int) and size == 1


def _fault(node: fx.Node) -> str:
    """Why a graph cannot hold a node, and the way out; empty where it can."""
    tags, name, where = getattr(node.target, "tags", ()), str(node.target), written_at(node)
    if node.target in _DROPOUTS:
        return f"dropout stays on in eval mode{where}; switch it off there with F.dropout(..., training=self.training)"
    if torch.Tag.nondeterministic_seeded in tags:
        return f"{name} draws random numbers in eval mode{where}; call it only under 'if self.training:'"
    if torch.Tag.data_dependent_output in tags or free_unbacked_symbols(node.meta.get("val")):
        return f"{name} makes sizes or numbers of the network depend on the images' values{where}; leave it out"
    if name in VOCABULARY or torch.Tag.core in tags:
        return ""
    module, _ = module_of(node)
    inside = f" in {module}" if module else ""
    return (
        f"operator {name}{inside} is none of torch's core operators and cannot be written in terms of them{where}; "
        "compute the same with operators of torch"
    )


def _instance_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None,
    use_input_stats: bool, momentum: float, eps: float, *_: bool,
) -> Tensor:  # fmt: skip
    """A group norm of one channel per group; torch's own rule reshapes the batch into channels."""
    if use_input_stats:
        return F.group_norm(x, x.shape[1], weight, bias, eps)
    return F.batch_norm(x, mean, var, weight, bias, False, momentum, eps)


def _var_mean(
    x: Tensor, dim: list[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """Two operators of the core set; torch's own rule ends in operators outside it."""
    correction = 1 if correction is None else correction
    return aten.var.correction(x, dim, correction=correction, keepdim=keepdim), aten.mean.dim(x, dim, keepdim)


def _vector_norm(
    x: Tensor, ord: float = 2, dim: list[int] | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Norms over axes, as F.normalize calls them; torch has no rule for these."""
    x = (x if dtype is None else x.to(dtype)).abs()
    axes = list(range(x.dim())) if dim is None else dim
    if ord == float("inf"):
        return x.amax(axes, keepdim)
    if ord == float("-inf"):
        return x.amin(axes, keepdim)
    if ord == 0:
        return (x != 0).to(x.dtype).sum(axes, keepdim)
    if ord == 1:
        return x.sum(axes, keepdim)
    return (x * x).sum(axes, keepdim).sqrt() if ord == 2 else x.pow(ord).sum(axes, keepdim).pow(1 / ord)


def _traced_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], dilation: list[int],
    transposed: bool, output_padding: list[int], groups: int, *_: bool,
) -> Tensor:  # fmt: skip
    """A convolution as torch.jit.trace writes it."""
    if x.dim() == 4 and not transposed:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    found: Tensor = aten.convolution.default(
        x, weight, bias, stride, padding, dilation, transposed, output_padding, groups
    )
    return found


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Two products and a softmax; torch's own rule also handles rows that are masked as a whole."""
    if attn_mask is not None or is_causal or dropout_p or enable_gqa:
        found: Tensor = aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )[0]
        return found
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    return torch.softmax((query * factor) @ key.transpose(-2, -1), -1) @ value


_OWN: dict[Any, Callable[..., Any]] = {
    aten.instance_norm.default: _instance_norm,
    aten.linalg_vector_norm.default: _vector_norm,
    aten.scaled_dot_product_attention.default: _attention,
    aten.var_mean.correction: _var_mean,
    aten._convolution.default: _traced_convolution,
    aten._convolution.deprecated: _traced_convolution,
    aten.max.default: torch.amax,
    aten.min.default: torch.amin,
}
