"""Accuracy of a classifier, and evaluation mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from acq.core.outputs import Output
from acq.errors import RequestError

Classifier = Callable[[Tensor], Tensor]


def accuracy(
    network: Classifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    output: Output,
    device: torch.device | str = "cpu",
) -> float:
    """Accuracy in percent: top-1 of classes, or the mean over labels.

    Args:
        network: Images [n, C, H, W] to logits [n, K]. A module is evaluated in eval mode and then restored.
        batches: Images [n, C, H, W] and labels [n], or [n, K] where the logits are those of labels.
        output: How the logits decide.
        device: Where the network is.

    Raises:
        RequestError: There are no images.
    """
    right, total = 0.0, 0
    with evaluating(network):
        for images, labels in batches:
            right += output.right(network(images.to(device)), labels.to(device)).sum().item()
            total += len(labels)
    if not total:
        raise RequestError("there are no images to evaluate on; give at least one")
    return 100 * right / total


@contextmanager
def evaluating(network: Classifier) -> Iterator[None]:
    """Eval mode without gradients. On exit each submodule has its previous mode."""
    with eval_mode(network), torch.no_grad():
        yield


@contextmanager
def eval_mode(network: Classifier) -> Iterator[None]:
    """Eval mode of a module, or of the one whose method is given. On exit each submodule has its previous mode."""
    module = getattr(network, "__self__", network)
    modes = [(part, part.training) for part in module.modules()] if isinstance(module, nn.Module) else []
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes:
            part.training = mode
