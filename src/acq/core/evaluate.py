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
    """Accuracy in percent (``Scores.measured``): top-1 of classes, the mean over labels, mean IoU of a map.

    Args:
        network: Images [n, C, H, W] to logits [n, L]. A module is evaluated in eval mode and then restored.
        batches: Images [n, C, H, W] and what they show (``Scores.tally``).
        output: How the logits decide.
        device: Where the network is.

    Raises:
        RequestError: There are no images, or the output has no accuracy.
    """
    if output.accuracy is None:
        raise RequestError(f"a network that returns {output} has no accuracy; leave the data out")
    scores, counts = output.parts[0], None
    with evaluating(network):
        for images, labels in batches:
            found = scores.tally(network(images.to(device)), labels.to(device))
            counts = found if counts is None else counts + found
    if counts is None:
        raise RequestError("there are no images to evaluate on; give at least one")
    return scores.measured(counts)


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
