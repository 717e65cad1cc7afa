"""How often a network is right, and how often two networks agree."""

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
    return _percent(right, total)


def agreement(
    student: Classifier, teacher: Classifier, batches: Iterable[Tensor], device: torch.device | str = "cpu"
) -> float:
    """How often two networks choose the same class, in percent over batches of images [n, C, H, W].

    Modules are evaluated in eval mode and each of their parts is left in the mode it was in.

    Raises:
        RequestError: there is not one image.
    """
    same = total = 0
    with evaluating(student), evaluating(teacher):
        for batch in batches:
            images = batch.to(device)
            same += int((student(images).argmax(1) == teacher(images).argmax(1)).sum())
            total += len(images)
    return _percent(same, total)


def _percent(part: int, whole: int) -> float:
    if not whole:
        raise RequestError("there are no images to evaluate on; give at least one")
    return 100 * part / whole


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
