"""Accuracy of a classifier, and evaluation mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from acq.core.outputs import Output
from acq.errors import RequestError

Classifier = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Comparison:
    """The accuracies in percent of two networks on the same images (``accuracy``).

    Attributes:
        before: Of the first network.
        after: Of the second one.
        lost: Images that the first alone gets right; None where an image is not right or wrong as a whole.
        gained: Images that the second alone gets right; None as above.
    """

    before: float
    after: float
    lost: int | None
    gained: int | None


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
        RequestError: There are no images, none of them has a label, or the output has no accuracy.
    """
    tallies = [output.parts[0].tally(rows, labels) for (rows,), labels in _told([network], batches, output, device)]
    return _measured(output, torch.stack(tallies).sum(0))


def compared(
    before: Classifier,
    after: Classifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    output: Output,
    device: torch.device | str = "cpu",
) -> Comparison:
    """Evaluate two networks on the same images. Arguments and errors are those of ``accuracy``."""
    scores, tallies, lost, gained = output.parts[0], [], 0, 0
    for (first, second), labels in _told([before, after], batches, output, device):
        tallies.append(torch.stack([scores.tally(rows, labels) for rows in (first, second)]))
        if scores.kind == "class":
            right, still = first.argmax(1) == labels, second.argmax(1) == labels
            lost += int((right & ~still).sum())
            gained += int((still & ~right).sum())
    one, other = (_measured(output, tally) for tally in torch.stack(tallies).sum(0))
    return Comparison(one, other, lost, gained) if scores.kind == "class" else Comparison(one, other, None, None)


def _measured(output: Output, tally: Tensor) -> float:
    if not tally[1].sum():
        raise RequestError("no label says what the images show, so there is nothing to evaluate; give labels")
    return output.parts[0].measured(tally)


def _told(
    networks: Sequence[Classifier], batches: Iterable[tuple[Tensor, Tensor]], output: Output, device: torch.device | str
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """The logits of each network and the labels, batch by batch."""
    if output.accuracy is None:
        raise RequestError(f"a network that returns {output} has no accuracy; leave the data out")
    count = 0
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(evaluating(network))
        for images, labels in batches:
            count += len(images)
            shown = images.to(device)
            yield [network(shown) for network in networks], labels.to(device)
    if not count:
        raise RequestError("there are no images to evaluate on; give at least one")


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
