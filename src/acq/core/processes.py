"""Several processes train one student: each takes its rows of every batch, and all see the whole of what came of it.

All draw the same conditions, samples and views from the same random state, so that who takes which row is nobody's
message. What the networks say of the rows is gathered, and losses are then the formulas that they are in one process;
each process follows its own rows back, and gradients are summed (this project's definition: averaging the gradients of
each process's own losses would be another algorithm wherever a loss is no mean over images).
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from acq.core.batchnorm import at_least_float
from acq.core.values import Moments
from acq.errors import RequestError, RunError, first_line

_RENDEZVOUS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells each process
# With a process that is there and says nothing, as the leader while it reads real images; one that is gone is noticed
# by its closed connection, or by torchrun.
_PATIENCE = timedelta(days=1)
_BACKEND = "/gloo/"  # stands in what gloo says, which has no type of its own
T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of a run as one of them sees it; a team of one communicates nothing and copies nothing."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def rows(self, count: int, rank: int | None = None) -> Tensor:
        """Which of ``count`` rows a process has, this one by default; rows i and i + count / 2, a pair, go together."""
        half = (count + 1) // 2
        return (torch.arange(count) % half % self.size == (self.rank if rank is None else rank)).nonzero().flatten()

    def serves(self, count: int) -> bool:
        """Whether each process has a row of ``count``."""
        return self.size <= (count + 1) // 2 or self.size == 1

    def share(self, whole: Tensor) -> Tensor:
        """This process's rows of a batch [N, ...]."""
        return whole if self.size == 1 else _kept_layout(whole[self.rows(len(whole)).to(whole.device)], whole)

    def gather(self, rows: Tensor, count: int) -> Tensor:
        """The batch of ``count`` whose rows the processes have, in order.

        Its gradient is that of a loss which all processes compute: each follows its own rows back.
        """
        whole: Tensor = rows if self.size == 1 else _Gathered.apply(rows, self, count)  # type: ignore[no-untyped-call]
        return whole

    def pool(self, found: Sequence[Moments], share: float) -> tuple[Moments, ...]:
        """Moments of the whole batch from those of its rows, ``share`` being this process's part of it.

        Their gradient, too, is that of a loss which all processes compute.
        """
        if self.size == 1 or not found:
            return tuple(found)
        return tuple(_pooled(found, share, apart=False))

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Give every process the sum of what they found."""
        if self.size == 1:
            return
        found = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = _summed(torch.cat([grad.flatten() for grad in found]))
        for grad, part in zip(found, torch.split(flat, [grad.numel() for grad in found]), strict=True):
            grad.copy_(part.view_as(grad))

    def any(self, *questions: bool) -> tuple[bool, ...]:
        """Of each question whether any process says yes."""
        if self.size == 1:
            return questions
        device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
        answers = torch.tensor(questions, dtype=torch.int32, device=device)
        return tuple(bool(count) for count in _summed(answers).tolist())

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite ``tensors`` with the leader's, where processors round otherwise."""
        if self.size > 1:
            for tensor in tensors:
                held = tensor.contiguous()
                _broadcast(held)
                tensor.copy_(held)

    def dissolve(self) -> None:
        """Leave, all at about the same time, when nothing more is to be said: so that none waits for what the leader
        still does alone."""
        if self.size > 1:
            dist.destroy_process_group()

    def tell(self, said: Mapping[str, Any] | None, device: torch.device) -> dict[str, Any]:
        """What the leader says, tensors, numbers and names alone, to all; the others give None."""
        if self.size == 1:
            return dict(said or {})
        written = io.BytesIO()
        torch.save(said, written)
        length = torch.tensor([len(written.getbuffer()) if self.leads else 0], device=device)
        _broadcast(length)
        content = torch.zeros(int(length), dtype=torch.uint8, device=device)
        if self.leads:
            content = torch.frombuffer(written.getbuffer(), dtype=torch.uint8).to(device)
        _broadcast(content)
        heard = io.BytesIO(content.cpu().numpy().tobytes())
        return dict(torch.load(heard, map_location="cpu", weights_only=True))


ALONE = Processes()


def under_torchrun() -> bool:
    """Whether torchrun started this process, with others or alone."""
    return all(name in os.environ for name in _RENDEZVOUS)


def started_by_torchrun() -> Processes:
    """This process's place among those that torchrun started, before they have met; ``ALONE`` without it."""
    return Processes(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if under_torchrun() else ALONE


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """The team that torchrun started this process in, or a team of one.

    Raises:
        RequestError: there are several processes and the extra ``processes`` is not installed.
        RunError: another process does not come.
    """
    if started_by_torchrun().size == 1:
        yield ALONE
        return
    try:
        from accelerate import PartialState
    except ModuleNotFoundError:
        raise RequestError("several processes need accelerate; pip install 'acq[processes]' has it") from None
    state = _guarded(lambda: PartialState(cpu=device.type == "cpu", timeout=_PATIENCE))
    yield Processes(state.process_index, state.num_processes)
    state.destroy_process_group()  # not after an error: on GPUs leaving waits for all, who may be elsewhere


def whole_batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float
) -> tuple[Tensor, Moments, int]:
    """Rows [n, C, ...] normalised by the moments of the whole batch, these moments, and the values a channel that they
    are of; differentiable through all processes' rows, as batch normalization is through a batch's."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    count = x.numel() // x.shape[1]
    total = int(_summed(x.new_tensor([count], dtype=torch.float64)))
    var, mean = torch.var_mean(at_least_float(x), axes, correction=0)
    (moments,) = _pooled([Moments(mean, var)], count / total, apart=True)
    columns = (1, -1, *(1 for _ in axes[1:]))
    factor = torch.rsqrt(moments.var + epsilon)
    factor = factor if weight is None else factor * weight
    shift = -moments.mean * factor
    shift = shift if bias is None else shift + bias
    return torch.addcmul(shift.view(columns), x, factor.view(columns)), moments, total


def over_whole_batches(module: nn.Module) -> None:
    """Let the batch normalizations within ``module``, in training, be over the rows of all processes; parameters,
    buffers and names stay. (torch's own SyncBatchNorm takes no images on a CPU.)"""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, _WholeBatchNorm(child))
        else:
            over_whole_batches(child)


class _WholeBatchNorm(_BatchNorm):
    def __init__(self, original: _BatchNorm) -> None:
        super().__init__(original.num_features)
        self.__dict__.update(original.__dict__)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        y, moments, count = whole_batch_norm(x, self.weight, self.bias, self.eps)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            pace = self.momentum if self.momentum is not None else 1 / int(self.num_batches_tracked)
            with torch.no_grad():
                self.running_mean.lerp_(moments.mean, pace)
                self.running_var.lerp_(moments.var * (count / max(1, count - 1)), pace)
        return y

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected images or features [N, C, ...], got {input.dim()} axes")


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, team: Processes, count: int) -> Tensor:
        ctx.team, ctx.count = team, count
        where = [team.rows(count, rank) for rank in range(team.size)]
        most = max(map(len, where))
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in where]
        _guarded(lambda: dist.all_gather(parts, padded))
        whole = rows.new_empty(count, *rows.shape[1:])
        for index, part in zip(where, parts, strict=True):
            whole[index.to(rows.device)] = part[: len(index)]
        return _kept_layout(whole, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad[ctx.team.rows(ctx.count).to(grad.device)], None, None


class _Summed(torch.autograd.Function):
    """Sum over processes. Its gradient is the sum of theirs where each goes on with the sum by itself (``apart``), and
    what each finds where all do the same with it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, apart: bool) -> Tensor:
        ctx.apart = apart
        return _summed(x.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _summed(grad.clone()) if ctx.apart else grad, None


def _pooled(found: Sequence[Moments], share: float, *, apart: bool) -> Iterator[Moments]:
    """Moments of the whole from those of parts, in one message and in double precision, which squares need."""
    means, vars_ = ([part.double() for part in parts] for parts in zip(*((m.mean, m.var) for m in found), strict=True))
    squares = [var + mean.square() for mean, var in zip(means, vars_, strict=True)]
    flat = _Summed.apply(share * torch.cat([*means, *squares]), apart)  # type: ignore[no-untyped-call]
    sums = torch.split(flat, [len(part) for part in (*means, *squares)])
    for moments, mean, square in zip(found, sums[: len(found)], sums[len(found) :], strict=True):
        var = (square - mean.square()).clamp_min(0)
        yield Moments(mean.to(moments.mean.dtype), var.to(moments.var.dtype))


def _summed(x: Tensor) -> Tensor:
    _guarded(lambda: dist.all_reduce(x))
    return x


def _broadcast(x: Tensor) -> None:
    _guarded(lambda: dist.broadcast(x, 0))


def _guarded(communicate: Callable[[], T]) -> T:
    """RunError where another process is gone or says nothing; other errors, as of memory, are this process's own."""
    try:
        return communicate()
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and _BACKEND not in str(error):
            raise
        raise RunError(
            f"another process of the run is gone or does not answer ({first_line(error)[:120]}); its own last line "
            "says why. Go on with --resume, with as many processes as you like"
        ) from error


def _kept_layout(x: Tensor, like: Tensor) -> Tensor:
    last = like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last) if last else x
