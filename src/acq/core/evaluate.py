"""Top-1 accuracy of a classifier, and evaluation mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from acq.errors import RequestError

Classifier = Callable[[Tensor], Tensor]


def accuracy(
    network: Classifier, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device | str = "cpu"
) -> float:
    """Top-1 accuracy in percent.

    Args:
        network: Images [n, C, H, W] to logits [n, K]. A module is evaluated in eval mode and then restored.
        batches: Images [n, C, H, W] and labels [n].
        device: Where the network is.

    Raises:
        RequestError: There are no images.
    """
    right = total = 0
    with evaluating(network):
        for images, labels in batches:
            guesses = network(images.to(device)).argmax(1)
            right += int((guesses == labels.to(device)).sum())
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
    """Eval mode. On exit each submodule has its previous mode."""
    modes = [(part, part.training) for part in network.modules()] if isinstance(network, nn.Module) else []
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes:
            part.training = mode
