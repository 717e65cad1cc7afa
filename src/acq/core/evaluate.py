"""How often a network is right."""

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
    """Top-1 accuracy in percent over batches of images [n, C, H, W] and labels [n].

    A module is evaluated in eval mode and each of its parts is left in the mode it was in.

    Raises:
        RequestError: there is not one image.
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
    """Eval mode and no gradients for a while; each part of a module gets back the mode it was in."""
    modes = [(part, part.training) for part in network.modules()] if isinstance(network, nn.Module) else []
    try:
        for part, _ in modes:
            part.training = False
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode
