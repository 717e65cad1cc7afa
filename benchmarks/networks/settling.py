"""Gives a network with random weights the gains, shifts and statistics that a trained one has."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_LAYERS = (nn.Linear, nn.Conv2d, nn.Conv1d)
_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)
_LARGE = 0.1  # gains below this are those with which a part begins as nothing
_PASSES = 2


def settled(network: nn.Module, images: Tensor) -> nn.Module:
    """The network in eval mode.

    Parameters that begin as one number get random ones, because a part whose gain is 0 would compute nothing. Batch
    norms get the statistics of ``images``. The last layer's mean over images becomes 0, so that classes differ.

    Args:
        network: With random weights; it changes.
        images: Normalised images [N, C, H, W].
    """
    network.eval()
    with torch.no_grad():
        for name, value in network.named_parameters():
            if value.numel() > 1 and bool((value == value.flatten()[0]).all()):
                _scatter(value, bias=name.endswith("bias"))
        if not any(isinstance(part, _NORMS) for part in network.modules()):
            for part in network.modules():
                if isinstance(part, _LAYERS):
                    nn.init.kaiming_normal_(part.weight)  # without norms, smaller weights let images fade
        norms = [part for part in network.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all passes
            norm.train()
        for part in images.chunk(_PASSES):
            network(part)
        for norm in norms:
            norm.momentum = 0.1
            norm.eval()
        _centre(network, images)
    return network.eval()


def _scatter(value: Tensor, *, bias: bool) -> None:
    if bias:
        value.normal_(0, 0.1)
    else:
        value.uniform_(0.5, 1.5) if abs(value.flatten()[0].item()) >= _LARGE else value.uniform_(0.2, 0.6)


def _centre(network: nn.Module, images: Tensor) -> None:
    """Subtract the mean over images and places from each channel of the last layers, if there is a bias."""
    last: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        part.register_forward_hook(lambda module, _, found: last.append((module, found)))
        for part in network.modules()
        if isinstance(part, _LAYERS)
    ]
    network(images)
    for hook in hooks:
        hook.remove()
    for layer, values in reversed(last):
        if values.shape != last[-1][1].shape:
            break
        if layer.bias is not None and sum(module is layer for module, _ in last) == 1:
            axis = values.dim() - 1 if isinstance(layer, nn.Linear) else 1
            layer.bias -= values.mean([place for place in range(values.dim()) if place != axis])
