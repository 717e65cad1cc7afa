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
_TOP, _LEAST_CLASSES = 5, 11  # with fewer classes, five of them are half


@dataclass(frozen=True)
class Measured:
    """How often a network is right.

    Attributes:
        percent: Its accuracy (``Scores.measured``): top-1 of classes, the mean over labels, mean IoU of a map.
        top5: Images whose class is among its five most likely, in percent; None below 11 classes and for other outputs.
    """

    percent: float
    top5: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The accuracies of two networks on the same images.

    Attributes:
        before: Of the first network.
        after: Of the second one.
        lost: Images that the first alone gets right; None where an image is not right or wrong as a whole.
        gained: Images that the second alone gets right; None as above.
    """

    before: Measured
    after: Measured
    lost: int | None
    gained: int | None


def accuracy(
    network: Classifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    output: Output,
    device: torch.device | str = "cpu",
) -> Measured:
    """Measure a network.

    Args:
        network: Images [n, C, H, W] to logits [n, L]. A module is evaluated in eval mode and then restored.
        batches: Images [n, C, H, W] and what they show (``Scores.tally``).
        output: How the logits decide.
        device: Where the network is.

    Raises:
        RequestError: There are no images, none of them has a label, or the output has no accuracy.
    """
    tally = _Tally(output)
    for (rows,), labels in _told([network], batches, output, device):
        tally.add(rows, labels)
    return tally.measured()


def compared(
    before: Classifier,
    after: Classifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    output: Output,
    device: torch.device | str = "cpu",
) -> Comparison:
    """Evaluate two networks on the same images. Arguments and errors are those of ``accuracy``."""
    is_class, one, other, lost, gained = output.kind == "class", _Tally(output), _Tally(output), 0, 0
    for (first, second), labels in _told([before, after], batches, output, device):
        one.add(first, labels)
        other.add(second, labels)
        if is_class:
            right, still = first.argmax(1) == labels, second.argmax(1) == labels
            lost += int((right & ~still).sum())
            gained += int((still & ~right).sum())
    changes = (lost, gained) if is_class else (None, None)
    return Comparison(one.measured(), other.measured(), *changes)


class _Tally:
    """Counts right answers, batch by batch."""

    def __init__(self, output: Output) -> None:
        self.scores = output.parts[0]
        self.has_top5 = self.scores.kind == "class" and self.scores.size >= _LEAST_CLASSES
        self.counts: Tensor | None = None
        self.in_top5 = 0

    def add(self, rows: Tensor, labels: Tensor) -> None:
        """Count a batch: scores [N, L], and what the images show (``Scores.tally``)."""
        counts = self.scores.tally(rows, labels)
        self.counts = counts if self.counts is None else self.counts + counts
        if self.has_top5:
            self.in_top5 += int((rows.topk(_TOP).indices == labels.unsqueeze(1)).sum())

    def measured(self) -> Measured:
        """The accuracy on all images so far."""
        if self.counts is None or not self.counts[1].sum():
            raise RequestError("no label says what the images show, so there is nothing to evaluate; give labels")
        top5 = 100 * self.in_top5 / self.counts[1].item() if self.has_top5 else None
        return Measured(self.scores.measured(self.counts), top5)


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
