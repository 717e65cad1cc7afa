"""Several processes train one student. Each computes its rows of every batch and sees the results of the whole batch.

All processes draw the same conditions, samples and augmentations from the same random state, so no message assigns
rows. Network outputs of the rows are gathered, and losses are computed on the whole batch as in one process. Each
process back-propagates through its own rows, and gradients are summed. This is this project's definition: averaging
the gradients of per-process losses would be another algorithm wherever a loss is not a mean over images.
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
from torch import Tensor
from torch import distributed as dist

from acq.core.values import Moments
from acq.errors import RequestError, RunError, first_line

_RENDEZVOUS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells each process
# The main process may read real images for long. A process that ended is noticed by its closed connection.
_TIMEOUT = timedelta(days=1)
_GLOO = "/gloo/"  # gloo's errors have no type of their own; their text has this path
T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of a run as seen by one of them. A single process communicates nothing and copies nothing.

    Attributes:
        rank: Number of this process, 0 for the main one.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def rows(self, count: int, rank: int | None = None) -> Tensor:
        """Indices of the rows that a process computes.

        Args:
            count: Rows of the batch. Rows i and i + count / 2 are a pair and stay together.
            rank: The process; this one by default.
        """
        half = (count + 1) // 2
        return (torch.arange(count) % half % self.size == (self.rank if rank is None else rank)).nonzero().flatten()

    def can_share(self, count: int) -> bool:
        """Whether each process has a row of a batch of ``count``."""
        return self.size <= (count + 1) // 2 or self.size == 1

    def require_rows(self, smallest: int) -> None:
        """Check that every process has a pair of the smallest batch.

        Raises:
            RequestError: There are more processes than pairs.
        """
        if not self.can_share(smallest):
            pairs = (smallest + 1) // 2
            raise RequestError(
                f"{self.size} processes share batches of which the smallest has {pairs} pairs of images; start at most "
                f"{pairs}, or give larger batches (generator.batch, images.batch, student.batch)"
            )

    def local(self, whole: Tensor) -> Tensor:
        """This process's rows of a batch [N, ...]."""
        return whole if self.size == 1 else _kept_layout(whole[self.rows(len(whole)).to(whole.device)], whole)

    def gather(self, rows: Tensor, count: int) -> Tensor:
        """The whole batch of ``count`` rows, in order.

        The gradient is that of a loss which all processes compute: each back-propagates through its own rows.
        """
        whole: Tensor = rows if self.size == 1 else _Gathered.apply(rows, self, count)  # type: ignore[no-untyped-call]
        return whole

    def pool_moments(self, moments: Sequence[Moments], share: float) -> tuple[Moments, ...]:
        """Moments of the whole batch from the moments of the rows.

        The gradient, too, is that of a loss which all processes compute.

        Args:
            moments: Those of this process's rows.
            share: The part of the batch that these rows are.
        """
        if self.size == 1 or not moments:
            return tuple(moments)
        return tuple(pooled(moments, share, apart=False))

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace the gradients of ``parameters`` with their sums over processes."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = summed(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def any(self, *answers: bool) -> tuple[bool, ...]:
        """For each question, whether any process answers yes."""
        if self.size == 1:
            return answers
        device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
        counts = summed(torch.tensor(answers, dtype=torch.int32, device=device))
        return tuple(bool(count) for count in counts.tolist())

    def synchronize(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite ``tensors`` with those of the main process, because processors may round differently."""
        if self.size > 1:
            for tensor in tensors:
                copy = tensor.contiguous()
                _broadcast(copy)
                tensor.copy_(copy)

    def broadcast(self, value: Mapping[str, Any] | None, device: torch.device) -> dict[str, Any]:
        """The main process's ``value``, in all processes.

        Args:
            value: Tensors, numbers and names by key; None in all but the main process.
            device: Where messages are held.
        """
        if self.size == 1:
            return dict(value or {})
        written = io.BytesIO()
        torch.save(value, written)
        length = torch.tensor([len(written.getbuffer()) if self.is_main else 0], device=device)
        _broadcast(length)
        content = torch.zeros(int(length), dtype=torch.uint8, device=device)
        if self.is_main:
            content = torch.frombuffer(written.getbuffer(), dtype=torch.uint8).to(device)
        _broadcast(content)
        received = io.BytesIO(content.cpu().numpy().tobytes())
        return dict(torch.load(received, map_location="cpu", weights_only=True))

    def close(self) -> None:
        """Leave the group together, so that no process waits while the main one writes files."""
        if self.size > 1:
            dist.destroy_process_group()


ALONE = Processes()


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return all(name in os.environ for name in _RENDEZVOUS)


def started_by_torchrun() -> Processes:
    """This process among those that torchrun started, before they connect; ``ALONE`` without torchrun."""
    return Processes(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if under_torchrun() else ALONE


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Connect to the processes that torchrun started, with NCCL on CUDA devices and gloo on CPUs.

    Raises:
        RunError: Another process does not connect.
    """
    processes = started_by_torchrun()
    if processes.size == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if device.type == "cuda" else "gloo"
    _guarded(lambda: dist.init_process_group(backend, timeout=_TIMEOUT))
    yield processes
    if dist.is_initialized():  # not after an error: on GPUs this waits for processes that may be gone
        dist.destroy_process_group()


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, processes: Processes, count: int) -> Tensor:
        ctx.processes, ctx.count = processes, count
        where = [processes.rows(count, rank) for rank in range(processes.size)]
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
        return grad[ctx.processes.rows(ctx.count).to(grad.device)], None, None


class _Summed(torch.autograd.Function):
    """Sum over processes.

    With ``apart`` each process uses the sum differently, so gradients are summed. Otherwise all processes compute the
    same loss from it, so each keeps its own gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, apart: bool) -> Tensor:
        ctx.apart = apart
        return summed(x.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return summed(grad.clone()) if ctx.apart else grad, None


def pooled(found: Sequence[Moments], share: float, *, apart: bool) -> Iterator[Moments]:
    """Moments of the whole batch from those of its parts, in one message and in double precision.

    Args:
        found: Moments of this process's rows.
        share: The part of the batch that these rows are.
        apart: Whether each process uses the result differently, so that gradients are summed.
    """
    means, vars_ = ([part.double() for part in parts] for parts in zip(*((m.mean, m.var) for m in found), strict=True))
    squares = [var + mean.square() for mean, var in zip(means, vars_, strict=True)]
    flat = _Summed.apply(share * torch.cat([*means, *squares]), apart)  # type: ignore[no-untyped-call]
    sums = torch.split(flat, [len(part) for part in (*means, *squares)])
    for moments, mean, square in zip(found, sums[: len(found)], sums[len(found) :], strict=True):
        var = (square - mean.square()).clamp_min(0)
        yield Moments(mean.to(moments.mean.dtype), var.to(moments.var.dtype))


def summed(x: Tensor) -> Tensor:
    """Replace ``x`` with its sum over processes, without gradient."""
    _guarded(lambda: dist.all_reduce(x))
    return x


def _broadcast(x: Tensor) -> None:
    _guarded(lambda: dist.broadcast(x, 0))


def _guarded(communicate: Callable[[], T]) -> T:
    """Run a communication; RunError where another process does not answer. Other errors are this process's own."""
    try:
        return communicate()
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and _GLOO not in str(error):
            raise
        raise RunError(
            f"another process of the run ended or does not answer ({first_line(error)}); its own last line says why. "
            "Continue with --resume; any number of processes is possible"
        ) from error


def _kept_layout(x: Tensor, like: Tensor) -> Tensor:
    last = like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last) if last else x
