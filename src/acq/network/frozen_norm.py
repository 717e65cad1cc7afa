"""Frozen batch norms: modules of people's own that compute a batch norm from four buffers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_STATISTICS = {"running_mean", "running_var"}
_KNOWN = _STATISTICS | {"weight", "bias", "num_batches_tracked"}
_USUAL_EPS = (1e-5, 0.0, 1e-3, 1e-6, 1e-4, 1e-12)  # where the module has no attribute of that name
_CLOSE = 1e-4  # of the largest value


def as_batch_norm(module: nn.Module) -> nn.BatchNorm2d | None:
    """The batch norm that a module computes, with the same tensors; None if it computes anything else.

    What counts is the module's state, statistics and perhaps a weight and a bias per channel, and its values on two
    inputs. So the statistics survive, which plain arithmetic with them would hide.

    Args:
        module: In eval mode; it does not change.
    """
    state = dict(module.named_parameters()) | dict(module.named_buffers())
    if isinstance(module, nn.modules.batchnorm._BatchNorm) or any(True for _ in module.children()):
        return None
    if not _STATISTICS <= set(state) <= _KNOWN or ("weight" in state) != ("bias" in state):
        return None
    vectors = [value for name, value in state.items() if name != "num_batches_tracked"]
    shape = vectors[0].shape
    if len(shape) != 1 or any(value.shape != shape or not value.is_floating_point() for value in vectors):
        return None
    eps = _epsilon(module, state)
    return None if eps is None else _batch_norm(state, eps)


def _epsilon(module: nn.Module, state: dict[str, Tensor]) -> float | None:
    """The eps with which a batch norm gives a module's values; None if none does."""
    mean = state["running_mean"]
    values = torch.arange(2 * len(mean) * 6, device=mean.device).mul(0.7).sin().mul(3).to(mean.dtype)
    images = values.reshape(2, len(mean), 3, 2)
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            found = module(images)
    except Exception:
        return None  # it takes other inputs, so it is no batch norm over images
    if not isinstance(found, Tensor) or found.shape != images.shape:
        return None
    own = getattr(module, "eps", None)
    errors = {}
    for eps in (own,) if isinstance(own, float) else _USUAL_EPS:
        wanted = F.batch_norm(images, mean, state["running_var"], state.get("weight"), state.get("bias"), eps=eps)
        errors[eps] = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
    best = min(errors, key=errors.__getitem__)
    return best if errors[best] < _CLOSE else None


def _batch_norm(state: dict[str, Tensor], eps: float) -> nn.BatchNorm2d:
    affine = "weight" in state
    norm = nn.BatchNorm2d(len(state["running_mean"]), eps, affine=affine, device="meta").eval()
    norm.running_mean, norm.running_var = state["running_mean"].detach(), state["running_var"].detach()
    norm.num_batches_tracked = None
    if affine:
        norm.weight = nn.Parameter(state["weight"].detach(), requires_grad=False)
        norm.bias = nn.Parameter(state["bias"].detach(), requires_grad=False)
    return norm
