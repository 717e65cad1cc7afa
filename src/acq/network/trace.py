"""One graph of ATen operators from any classifier; teacher and student are both read from it."""

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

from acq.errors import RequestError, first_line
from acq.network.names import assign_names

aten = torch.ops.aten
# newer versions than 2.8 build a check of the inputs into the graph unless they are told otherwise
_GUARDS = "check_guards" in inspect.signature(torch.export.ExportedProgram.module).parameters


def trace(model: nn.Module, input_size: tuple[int, int, int]) -> fx.GraphModule:
    """The eval-mode graph of ``model`` for images of ``input_size`` (C, H, W) and any batch size.

    The graph is functional (in-place operators and aliases are resolved), free of dropout, has one placeholder and
    one output [N, K], holds its own copies of the weights, and each node's ``meta["val"]`` has its shape. The model
    itself is left exactly as it was.

    Raises:
        RequestError: the model rejects such images, cannot be exported, or its output is not [N, K].
    """
    example = torch.zeros(2, *input_size)
    with _in_eval_mode(model) as network, warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        _try(network, example)
        graph = copy.deepcopy(_export(network, example)).requires_grad_(False)
    _restore_batch_norm(graph)
    _drop_copies(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    assign_names(graph.graph)
    return graph


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's tensor with the batch dimension as -1 (unknown), or () where it is no tensor."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return ()
    return tuple(size if isinstance(size, int) else -1 for size in value.shape)


def is_depthwise(graph: fx.GraphModule) -> bool:
    """Whether a convolution of the network has one group per input channel, and more than one."""
    convolutions = (node for node in graph.graph.nodes if node.target in (aten.conv2d.default, aten.conv2d.padding))
    return any(_groups(node) == shape_of(node.args[0])[1] > 1 for node in convolutions)


def _groups(convolution: fx.Node) -> object:
    """The groups of a convolution; 1 where the call leaves them out."""
    return convolution.args[6] if len(convolution.args) > 6 else convolution.kwargs.get("groups", 1)


def constant(graph: fx.GraphModule, node: object) -> Tensor | None:
    """The tensor that a ``get_attr`` node stands for, or None for any other node or argument."""
    if not (isinstance(node, fx.Node) and node.op == "get_attr"):
        return None
    value: object = graph
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value if isinstance(value, Tensor) else None


def classes_of(graph: fx.GraphModule) -> int:
    """The number of classes that a traced network scores."""
    return shape_of(logits_of(graph))[1]


def logits_of(graph: fx.GraphModule) -> fx.Node:
    """The node [N, K] that a traced network returns."""
    returned: Any = graph.graph.output_node().args[0]
    logits: fx.Node = returned[0]
    return logits


def weights_hash(network: nn.Module) -> str:
    """SHA-256 over the names, shapes and values of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield model
    finally:
        for module, mode in modes:
            module.training = mode


def _try(network: nn.Module, example: Tensor) -> None:
    """One plain forward pass, so that a wrong input size is reported as such and not as a failed export."""
    size = "x".join(map(str, example.shape[1:]))
    parameter = next(network.parameters(), example)
    if parameter.dtype != torch.float32:
        raise RequestError(f"the network's weights are {parameter.dtype}; convert it with .float()")
    try:
        with torch.no_grad():
            output = network(example.to(parameter.device, parameter.dtype))
    except Exception as error:
        raise RequestError(
            f"the network does not take images of {size}: {first_line(error)}; give its size with --input-size"
        ) from error
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] < 2:
        found = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise RequestError(
            f"the network has no classifier output: it returns {found}, not class scores [N, classes]; "
            "wrap it in a module that returns those alone"
        )


def _export(network: nn.Module, example: Tensor) -> fx.GraphModule:
    parameter = next(network.parameters(), example)
    arguments = (example.to(parameter.device, parameter.dtype),)
    shapes = ({0: torch.export.Dim("batch", min=1, max=1 << 20)},)
    try:
        with _quietly():
            exported = torch.export.export(network, arguments, dynamic_shapes=shapes).run_decompositions({})
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
    """Without the pages that ``torch.export`` prints and logs of what it cannot trace: the error says it in a line."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)


def _restore_batch_norm(graph: fx.GraphModule) -> None:
    """Functionalisation splits batch normalization into a tuple and its first item; put the one operator back."""
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
    """Copies (dropout in eval mode, ``contiguous``) serve no functional graph; views then must not rely on them."""
    for node in list(graph.graph.nodes):
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
        if node.target in (aten.clone.default, aten.alias.default, aten.dropout.default):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
