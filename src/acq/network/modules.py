"""Modules as their owners have them, made readable for a trace and put back as they were."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.optim.swa_utils import AveragedModel

from acq.core.evaluate import eval_mode
from acq.errors import RequestError, first_line
from acq.network.frozen_norm import as_batch_norm
from acq.network.source import place

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def as_module(value: Any) -> Any:
    """The module within a program of torch.export or a wrapper for training; any other value as it is.

    Raises:
        RequestError: It is a TorchScript program.
    """
    if isinstance(value, torch.export.ExportedProgram):
        return value.module()
    if isinstance(value, torch.jit.ScriptModule):
        raise RequestError(
            "the network is a TorchScript program, which no longer has the network's code; "
            "name the code that built it, and give the program's state_dict() as --checkpoint"
        )
    return _unwrapped(value) if isinstance(value, nn.Module) else value


def switch_to_eval(module: nn.Module) -> None:
    """Put a module in eval mode, whatever its own ``eval`` returns or refuses."""
    with suppress(NotImplementedError):  # programs of torch.export have one mode
        module.eval()
    for part in module.modules():
        part.training = False


def initialise(module: nn.Module, input_size: tuple[int, ...]) -> None:
    """Give lazy layers their weights by one pass of black images; other modules do not change.

    Raises:
        RequestError: The module does not take such images.
    """
    if any(isinstance(part, LazyModuleMixin) and part.has_uninitialized_params() for part in module.modules()):
        with eval_mode(module):
            answer(module, torch.zeros(2, *input_size))


def answer(module: nn.Module, images: Tensor) -> Any:
    """What a module returns for images, computed without compiled code.

    Raises:
        RequestError: It does not take such images.
    """
    try:
        inspect.signature(module.forward).bind(images)
    except TypeError as error:
        raise RequestError(
            f"the network's forward does not take images alone: {error}; wrap it in a module whose forward does"
        ) from error
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            return module(images)
    except Exception as error:
        raise _refusal(images, error) from error


def _refusal(images: Tensor, error: Exception) -> RequestError:
    reason = first_line(error)
    if reason.startswith("Guard failed"):
        return RequestError(
            f"the program was exported for one number of images ({reason}); "
            "export it with dynamic_shapes=({0: torch.export.Dim('batch')},)"
        )
    frames = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
    size = "x".join(map(str, images.shape[1:]))
    return RequestError(
        f"the network does not take images of {size}: {reason}{place(frames)}; give its size with --input-size"
    )


def other_types(module: nn.Module) -> list[torch.dtype]:
    """The floating-point types of a module's parameters other than float32."""
    found = {tensor.dtype for tensor in module.parameters() if tensor.is_floating_point()}
    return sorted(found - {torch.float32}, key=str)


@contextmanager
def readable(module: nn.Module) -> Iterator[None]:
    """Within the block a module has float32, no wrappers inside, and batch norms in place of frozen ones.

    On exit its weights, its parts and its own tensors are those from before. Nothing is converted where all parameters
    have float32, because buffers of another type are then meant so.
    """
    converts = bool(other_types(module))
    data = [(tensor, tensor.data) for tensor in _tensors(module) if tensor.is_floating_point()]
    own = [(part.__dict__, key, value) for part in module.modules() for key, value in part.__dict__.items()]
    own = [entry for entry in own if isinstance(entry[2], Tensor)]
    plain = [part for part in module.modules() if not isinstance(part, torch.jit.ScriptModule)]
    parts = [(part._modules, name, child) for part in plain for name, child in part._modules.items()]
    try:
        for tensor, values in data:
            if converts and values.dtype != torch.float32:
                tensor.data = values.float()
        for holder, key, value in own:
            if converts and value.is_floating_point():
                holder[key] = value.float()
        made: dict[int, nn.Module] = {}  # a part that is used twice stays one part
        for children, name, child in parts:
            if child is not None:
                children[name] = made.setdefault(id(child), _plain(child))
        yield
    finally:
        for children, name, child in parts:
            children[name] = child
        for holder, key, value in own:
            holder[key] = value
        for tensor, values in data:
            tensor.data = values


def _plain(part: nn.Module) -> nn.Module:
    inner = _unwrapped(part)
    return as_batch_norm(inner) or inner


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module that wrappers hold, for several processes, for averages and for compiled code."""
    while True:
        if isinstance(module, _WRAPPERS):
            module = module.module
        elif isinstance(inner := dict(module.named_children()).get("_orig_mod"), nn.Module):  # torch.compile
            module = inner
        else:
            return module


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers, once each, without those that lazy layers still lack."""
    for tensor in (*module.parameters(), *module.buffers()):
        if not torch.nn.parameter.is_lazy(tensor):
            yield tensor
