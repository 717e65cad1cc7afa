"""One graph of ATen operators from any classifier. Teacher and student are both made from it."""

from __future__ import annotations

import copy
import hashlib
import inspect
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, fx, nn

from acq.core.evaluate import eval_mode
from acq.core.outputs import Kind
from acq.errors import RequestError, first_line
from acq.network.constants import shape_of
from acq.network.decomposition import decompositions, require_known_operators
from acq.network.names import assign_names
from acq.network.returned import RETURNED, flat_answers, returned
from acq.network.rewrites import simplify

aten = torch.ops.aten
# versions after 2.8 add a check of the inputs to the graph unless told otherwise
_GUARDS = "check_guards" in inspect.signature(torch.export.ExportedProgram.module).parameters


_ASSERTIONS = (aten._assert_tensor_metadata.default, aten._assert_scalar.default, aten._assert_async.msg)


def trace(
    model: nn.Module, input_size: tuple[int, int, int], outputs: str | None = None, kind: Kind | None = None
) -> fx.GraphModule:
    """Trace ``model`` in eval mode with torch.export, for any batch size.

    The graph is functional: in-place operators and aliases are resolved. It has no dropout and one placeholder,
    and returns a tuple of tensors (``acq.network.outputs``). It holds its own copies of the weights. Each node has its
    shape in ``meta["val"]`` and its public name (``acq.network.names``). The model itself does not change.

    Args:
        model: A classifier with float32 weights.
        input_size: Channels, height and width of its images.
        outputs: The name or index of the returned tensor that decides, if there are several.
        kind: How it decides, where that is not what its shape and its last operator say.

    Raises:
        RequestError: The model rejects such images, cannot be exported, or returns no scores [N, K].
    """
    example = torch.zeros(2, *input_size)
    with eval_mode(model), warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        found = returned(_try(model, example), outputs, kind)
        with flat_answers(model, found.structure):
            graph = copy.deepcopy(_export(model, example)).requires_grad_(False)
    graph.meta[RETURNED] = found
    _restore_batch_norm(graph)
    _drop_copies(graph)
    graph.graph.eliminate_dead_code()
    require_known_operators(graph.graph)
    simplify(graph)
    graph.recompile()
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


def _try(network: nn.Module, example: Tensor) -> Any:
    """One plain forward pass, so that a wrong input size is not reported as a failed export."""
    size = "x".join(map(str, example.shape[1:]))
    parameter = next(network.parameters(), example)
    if parameter.dtype != torch.float32:
        raise RequestError(f"the network's weights are {parameter.dtype}; convert it with .float()")
    try:
        with torch.no_grad():
            return network(example.to(parameter.device, parameter.dtype))
    except Exception as error:
        raise RequestError(
            f"the network does not take images of {size}: {first_line(error)}; give its size with --input-size"
        ) from error


def _export(network: nn.Module, example: Tensor) -> fx.GraphModule:
    parameter = next(network.parameters(), example)
    arguments = (example.to(parameter.device, parameter.dtype),)
    shapes = ({0: torch.export.Dim("batch", min=1, max=1 << 20)},)
    try:
        with _quietly():
            exported = torch.export.export(network, arguments, dynamic_shapes=shapes)
            exported = exported.run_decompositions(decompositions())
            module = exported.module(check_guards=False) if _GUARDS else exported.module()
    except Exception as error:
        raise RequestError(
            f"the network cannot be traced by torch.export with a free batch size: {first_line(error)}; "
            "its forward must not depend on the values or the number of the images"
        ) from error
    assert isinstance(module, fx.GraphModule)
    return module


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppress what ``torch.export`` prints and logs about networks that it cannot trace: the error says it."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)


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


def _drop_copies(graph: fx.GraphModule) -> None:
    """Remove copies (dropout in eval mode, ``contiguous``). Views become reshapes, which do not rely on the layout."""
    for node in list(graph.graph.nodes):
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
        if node.target in _ASSERTIONS:  # they hold for every image of this size
            graph.graph.erase_node(node)
        if node.target in (aten.clone.default, aten.alias.default, aten.dropout.default):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
