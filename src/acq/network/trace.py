"""One graph of ATen operators from any classifier. Teacher and student are both made from it."""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import Tensor, fx, nn

from acq.core.evaluate import eval_mode
from acq.core.scores import Kind
from acq.errors import RequestError
from acq.network.constants import device_of, shape_of
from acq.network.decomposition import require_known_operators
from acq.network.export import exported
from acq.network.folding import fold_constants
from acq.network.modules import answer, as_module, other_types, readable
from acq.network.names import assign_names
from acq.network.pieces import join_pieces
from acq.network.products import products_as_layers
from acq.network.returned import RETURNED, flat_answers, returned
from acq.network.rewrites import simplify

aten = torch.ops.aten
_COPIES = (aten.clone.default, aten.alias.default, aten.dropout.default)
_PLACES = ("device", "layout", "pin_memory", "non_blocking")  # arguments that change no value
_SAME = 1e-2  # of the largest score; batches of other sizes are rounded differently


def trace(
    model: nn.Module, input_size: tuple[int, int, int], outputs: str | None = None, kinds: Sequence[Kind] = ()
) -> fx.GraphModule:
    """Trace ``model`` in eval mode with torch.export, for any batch size.

    The graph is functional: in-place operators and aliases are resolved. It has no dropout and one placeholder, and
    returns a tuple of tensors (``acq.network.outputs``). It holds its own copies of the weights in float32 and computes
    nothing from them alone. Each node has its shape in ``meta["val"]`` and its public name (``acq.network.names``).
    The model itself does not change.

    Args:
        model: A classifier, perhaps within a wrapper such as ``DataParallel``.
        input_size: Channels, height and width of its images.
        outputs: The names or indices of the returned tensors that decide, joined by commas, if there are several.
        kinds: How each decides, where that is not what its shape and its last operator say; one stands for all.

    Raises:
        RequestError: The model rejects such images, cannot be exported, returns no scores, or answers
            differently when an image comes in another batch.
    """
    network = as_module(model)
    types = other_types(network)
    if types:
        warnings.warn(f"the network has weights of {', '.join(map(str, types))}; they become float32", stacklevel=2)
    with eval_mode(network), warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        with readable(network):
            example = torch.zeros(2, *input_size, device=device_of(network))
            found = returned(answer(network, example), len(example), outputs, kinds)
            with flat_answers(network, found.structure):
                graph = exported(network, example)
    graph.meta[RETURNED] = found
    _restore_batch_norm(graph)
    _keep_batch_axis(graph)
    _drop_copies(graph)
    _forget_devices(graph)
    graph.graph.eliminate_dead_code()
    fold_constants(graph)
    require_known_operators(graph.graph)
    join_pieces(graph)
    products_as_layers(graph)
    simplify(graph)
    graph.recompile()
    _require_independent_images(graph, example)
    assign_names(graph.graph)
    return graph


def is_depthwise(graph: fx.GraphModule) -> bool:
    """Whether a convolution of the network has one group per input channel, and more than one."""
    convolutions = (node for node in graph.graph.nodes if node.target in (aten.conv2d.default, aten.conv2d.padding))
    return any(_groups(node) == shape_of(node.args[0])[1] > 1 for node in convolutions)


def _groups(convolution: fx.Node) -> object:
    """The groups of a convolution; 1 where the call leaves them out."""
    return convolution.args[6] if len(convolution.args) > 6 else convolution.kwargs.get("groups", 1)


def weights_hash(network: nn.Module) -> str:
    """SHA-256 over the names, shapes and values of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _require_independent_images(graph: fx.GraphModule, example: Tensor) -> None:
    """Refuse a network that answers differently when an image comes in another batch."""
    wave = torch.arange(example.numel(), device=example.device).mul(0.7).sin().reshape(example.shape)
    wave[1] = 3 * wave[1] + 1  # an image of another contrast and brightness
    with torch.no_grad():
        together, alone = (_tensors(graph(images)) for images in (wave, wave[:1]))
    for several, one in zip(together, alone, strict=True):
        if (several[:1] - one).abs().max() > _SAME * one.abs().max():
            raise RequestError(
                "the network's answer for an image depends on the other images of its batch; "
                "compute it within each image, without sums or norms over the batch axis"
            )


def _tensors(answers: Any) -> tuple[Tensor, ...]:
    """The returned tensors of floats with a row per image."""
    found = (answers,) if isinstance(answers, Tensor) else tuple(answers)
    return tuple(tensor for tensor in found if tensor.is_floating_point() and tensor.dim() and tensor.numel())


def _restore_batch_norm(graph: fx.GraphModule) -> None:
    """Put back the one batch-norm operator, which functionalisation splits into a tuple and its first item."""
    for node in list(graph.graph.nodes):
        if node.target is not aten._native_batch_norm_legit_no_training.default:
            continue
        x, weight, bias, mean, var, momentum, eps = node.args
        with graph.graph.inserting_before(node):
            whole = graph.graph.call_function(
                aten.batch_norm.default, (x, weight, bias, mean, var, False, momentum, eps, False)
            )
        for item in list(node.users):
            if item.args[1] == 0:
                whole.meta = dict(item.meta)
                item.replace_all_uses_with(whole)
            graph.graph.erase_node(item)
        graph.graph.erase_node(node)


def _keep_batch_axis(graph: fx.GraphModule) -> None:
    """Name the axes that ``squeeze()`` removes, so that it keeps the batch axis of a single image."""
    for node in list(graph.graph.nodes):
        if node.target is aten.squeeze.default:
            source: Any = node.args[0]
            axes = [axis for axis, size in enumerate(shape_of(source)) if size == 1]
            node.target, node.args = aten.squeeze.dims, (source, axes)
            if not axes:
                node.replace_all_uses_with(source)
                graph.graph.erase_node(node)


def _drop_copies(graph: fx.GraphModule) -> None:
    """Remove copies (dropout in eval mode, ``contiguous``, conversions to the same type), checks and new buffer values.

    Views become reshapes, which do not rely on the layout.
    """
    for node in list(graph.graph.nodes):
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
        if node.target in _COPIES or (node.target is aten._to_copy.default and _keeps_type(node)):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif not node.users and (node.target is aten.copy_.default or _only_checks(node)):
            graph.graph.erase_node(node)


def _forget_devices(graph: fx.GraphModule) -> None:
    """Let operators that read a tensor compute where it is, on whichever device the student is later."""
    for node in graph.graph.nodes:
        if any(isinstance(source.meta.get("val"), Tensor) for source in node.all_input_nodes):
            node.kwargs = {name: value for name, value in node.kwargs.items() if name not in _PLACES}


def _only_checks(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.returns


def _keeps_type(conversion: fx.Node) -> bool:
    source: Any = conversion.args[0]
    return bool(source.meta["val"].dtype == conversion.meta["val"].dtype)
