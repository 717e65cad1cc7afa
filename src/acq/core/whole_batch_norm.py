"""Batch normalization over the rows of all processes that share a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from acq.core.batchnorm import at_least_float
from acq.core.processes import pooled, summed
from acq.core.values import Moments


def whole_batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float
) -> tuple[Tensor, Moments, int]:
    """Batch normalization of this process's rows with the moments of the whole batch.

    Gradients flow through the rows of all processes, as in one process.

    Args:
        x: Rows [n, C, ...].
        weight: [C] or None.
        bias: [C] or None.
        epsilon: Added to the variance.

    Returns:
        The normalised rows, the moments, and the number of values per channel behind them.
    """
    axes = [axis for axis in range(x.dim()) if axis != 1]
    count = x.numel() // x.shape[1]
    total = int(summed(x.new_tensor([count], dtype=torch.float64)))
    var, mean = torch.var_mean(at_least_float(x), axes, correction=0)
    (moments,) = pooled([Moments(mean, var)], count / total, apart=True)
    columns = (1, -1, *(1 for _ in axes[1:]))
    factor = torch.rsqrt(moments.var + epsilon)
    factor = factor if weight is None else factor * weight
    shift = -moments.mean * factor
    shift = shift if bias is None else shift + bias
    return torch.addcmul(shift.view(columns), x, factor.view(columns)), moments, total


def over_whole_batches(module: nn.Module) -> None:
    """Make the batch normalizations in ``module`` use the rows of all processes during training.

    Parameters, buffers and names stay. torch's own SyncBatchNorm does not run on CPUs.
    """
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
            momentum = self.momentum if self.momentum is not None else 1 / int(self.num_batches_tracked)
            with torch.no_grad():
                self.running_mean.lerp_(moments.mean, momentum)
                self.running_var.lerp_(moments.var * (count / max(1, count - 1)), momentum)
        return y

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected images or features [N, C, ...], got {input.dim()} axes")
