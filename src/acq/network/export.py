"""torch.export, and what its errors mean for the owner of a network."""

from __future__ import annotations

import builtins
import copy
import inspect
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from acq.core.quiet import quietly
from acq.errors import RequestError, first_line
from acq.network.decomposition import decompositions
from acq.network.source import place

# versions after 2.8 add a check of the inputs to the graph unless told otherwise
_GUARDS = "check_guards" in inspect.signature(torch.export.ExportedProgram.module).parameters
_REMEDY = "use x.shape[0] in its forward as it is, without int(), range() or a loop"
_SHAPES = logging.getLogger("torch.fx.experimental.symbolic_shapes")


def exported(network: nn.Module, images: Tensor) -> fx.GraphModule:
    """The graph of a module for any number of images, decomposed, with its own copies of the weights.

    Args:
        network: In eval mode.
        images: Two or more images, on the module's device.

    Raises:
        RequestError: The module cannot be exported so; the message names the line of its code where torch knows it.
    """
    try:
        with quietly(), torch.compiler.set_stance("force_eager"), _lengths_as_sizes():
            program = _program(network, images).run_decompositions(decompositions())
            module = program.module(check_guards=False) if _GUARDS else program.module()
    except RequestError:  # the network's own, as of a file
        raise
    except Exception as error:
        raise _refusal(network, images, error) from error
    assert isinstance(module, fx.GraphModule)
    return copy.deepcopy(module).requires_grad_(False)


def _program(network: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    batch: Any = {0: torch.export.Dim("batch", min=1, max=1 << 20)}
    first = next(iter(inspect.signature(network.forward).parameters.values()), None)
    several = first is not None and first.kind is inspect.Parameter.VAR_POSITIONAL
    return torch.export.export(network, (images,), dynamic_shapes=((batch,),) if several else (batch,))


@contextmanager
def _lengths_as_sizes() -> Iterator[None]:
    """Let ``len`` of a tensor be its first size, as a symbol; Python itself allows only plain numbers."""
    plain = builtins.len

    def length(value: Any) -> Any:
        return value.shape[0] if isinstance(value, Tensor) and value.dim() else plain(value)

    builtins.len = length
    try:
        yield
    finally:
        builtins.len = plain


def _refusal(network: nn.Module, images: Tensor, error: Exception) -> RequestError:
    """The error for the owner of the network."""
    where = place([(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)])
    if isinstance(error, GuardOnDataDependentSymNode):
        return RequestError(
            f"the network's forward depends on the values of its images{where}, so it has no fixed graph; "
            "decide by their shape, or outside the network"
        )
    if str(error).startswith("Constraints violated"):
        remedy = getattr(network, "remedy", _REMEDY)  # a file has no forward that its owner could change
        return RequestError(
            f"the network takes the number of its images as a plain number{_specialised(network, images)}, "
            f"so its graph would fit that number only; {remedy}"
        )
    scripts = [name for name, part in network.named_modules() if isinstance(part, torch.jit.ScriptModule)]
    if scripts:
        return RequestError(
            f"part {scripts[0]!r} of the network is a TorchScript program, which torch.export cannot trace; "
            "use the Python module that it was made from"
        )
    return RequestError(
        f"the network cannot be traced by torch.export with a free batch size: {first_line(error)}{where}; "
        "its forward must use operators of torch alone, whatever the values and the number of the images"
    )


def _specialised(network: nn.Module, images: Tensor) -> str:
    """The line that made the number of images a plain number, for a message; torch says it in its log alone."""
    listener = _Listener()
    level, handlers, propagate = _SHAPES.level, _SHAPES.handlers, _SHAPES.propagate
    _SHAPES.handlers, _SHAPES.propagate = [listener], False
    _SHAPES.setLevel(logging.INFO)
    try:
        with torch.compiler.set_stance("force_eager"), _lengths_as_sizes():
            _program(network, images)
    except Exception:
        return listener.where  # it failed before, too
    finally:
        _SHAPES.handlers, _SHAPES.propagate = handlers, propagate
        _SHAPES.setLevel(level)
    return ""


class _Listener(logging.Handler):
    """Keeps the line of the network's code that runs while torch logs that a size has one value."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.where = ""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "[guard added]" in message and "Eq(" in message and not self.where:
            frames = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_stack()[:-1]]
            begin = max(index for index, frame in enumerate(frames) if frame[0] == __file__)
            self.where = place(frames[begin:])
