"""What a network returns, and how the tensors that count decide together.

Shapes: N images. The scores of all counted tensors are one row per image, [N, L]: those of the first, then the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from acq.core.accuracies import Accuracy, accuracy_of
from acq.core.scores import COUNTED, Ending, Kind, Scores
from acq.core.structures import Structure, names_in, rebuilt

BETWEEN = ","  # joins the kinds of several tensors


@dataclass(frozen=True)
class Traits:
    """What the settings of a run depend on.

    Attributes:
        normalised: Whether the network has batch norms, whose statistics images can match.
        whole: Whether it answers for images as a whole, so that a generator can ask for an answer and a centre.
        asks: Whether images can be asked for answers at all.
        spatial: Whether it has features with places, and so attention with a centre.
        reads: Whether its answers tell drawings of strokes apart much better than scenes, as where it reads text.
        pixels: Of an image, channels apart.
    """

    normalised: bool = True
    whole: bool = True
    asks: bool = True
    spatial: bool = True
    reads: bool = False
    pixels: int = 32 * 32


@dataclass(frozen=True)
class Output:
    """How a network decides: by the scores of one tensor, or of several.

    Losses are sums over tensors. Agreement is the least of theirs.

    Attributes:
        parts: The scores of each counted tensor.
    """

    parts: tuple[Scores, ...]

    @classmethod
    def of(cls, kind: Kind, *shape: int) -> Self:
        """The output of a network whose only counted tensor has scores of that shape per image."""
        return cls((Scores(kind, shape),))

    def __str__(self) -> str:
        return " and ".join(map(str, self.parts))

    @property
    def kind(self) -> str:
        """The kind of the scores; several are joined by commas."""
        return BETWEEN.join(part.kind for part in self.parts)

    @property
    def numbers(self) -> int:
        """L, the scores of an image."""
        return sum(part.numbers for part in self.parts)

    @property
    def whole(self) -> Scores | None:
        """The scores, if they answer for images as a whole; ACQ's conditions and attention per answer need that."""
        only = self.parts[0]
        return only if len(self.parts) == 1 and only.answers and not only.places else None

    @property
    def asks(self) -> bool:
        """Whether images can be asked for answers."""
        return any(part.asked for part in self.parts)

    def traits(self, *, normalised: bool, spatial: bool = True) -> Traits:
        """What the settings of a run depend on, for a network with or without batch norms and features with places."""
        return Traits(normalised, self.whole is not None, self.asks, spatial)

    @property
    def accuracy(self) -> Accuracy | None:
        """The accuracy that labelled images measure; None if they measure none."""
        return accuracy_of(self.kind)

    @property
    def most_majority(self) -> float:
        """The percentage of the commonest answer above which agreement says little."""
        return min(part.most_majority for part in self.parts)

    def flat(self, values: Sequence[Tensor]) -> Tensor:
        """The scores [N, L] of the counted tensors."""
        rows = [part.flat(value) for part, value in zip(self.parts, values, strict=True)]
        return rows[0] if len(rows) == 1 else torch.cat(rows, 1)

    def before(self, rows: Tensor, endings: Sequence[Ending | None]) -> Tensor:
        """Rows that decide as the scores do, from what the network returns: [N, L] -> [N, L]."""
        found = [part.before(own, end) for part, own, end in zip(self.parts, self._split(rows), endings, strict=True)]
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    def mismatch(self, rows: Tensor, asked: Tensor) -> Tensor:
        """Cross entropy of the answers and those that were asked for; 0 where nothing is asked.

        Args:
            rows: Scores [N, L].
            asked: [N] of images as a whole, otherwise [N, Q], the answers of all places and tensors.
        """
        if self.whole is not None:
            return self.whole.mismatch(rows, asked)
        losses = [part.mismatch(own, answers) for part, own, answers in self._asked(rows, asked)]
        return torch.stack(losses).sum() if losses else rows.new_zeros(())

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The sum of ``Scores.divergence``."""
        return torch.stack([part.divergence(*own) for part, *own in self._pairs(student, teacher)]).sum()

    def apart(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The sum of ``Scores.apart``."""
        return torch.stack([part.apart(*own) for part, *own in self._pairs(student, teacher)]).sum()

    def centred(self, rows: Tensor) -> Tensor:
        """The part of the scores that decides (``Scores.centred``), [N, L]."""
        found = [part.centred(own).flatten(1) for part, own in zip(self.parts, self._split(rows), strict=True)]
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    def information(self, rows: Tensor) -> float:
        """What the answers tell of the images, in nats: the mutual information of an answer, and image and place.

        That of labels is the sum over labels, and that of several tensors the sum over tensors. Values tell nothing.
        """
        pairs = zip(self.parts, self._split(rows), strict=True)
        return sum(mutual_information(part.log_probabilities(own)) for part, own in pairs if part.answers)

    def came_true(self, rows: Tensor, asked: Tensor) -> Tensor:
        """Whether what was asked came true: [N] of images as a whole, otherwise [N, Q]."""
        if self.whole is not None:
            return self.whole.came_true(rows, asked)
        found = [part.came_true(own, answers) for part, own, answers in self._asked(rows, asked)]
        nothing = rows.new_zeros(len(rows), 0, dtype=torch.bool)
        return torch.cat([nothing, *(part.reshape(len(rows), -1) for part in found)], 1)

    def same(self, one: Tensor, other: Tensor) -> Tensor:
        """The share of equal decisions per image, [N]; of values the cosine. Of several tensors, the least."""
        found = [part.same(*own) for part, *own in self._pairs(one, other)]
        return found[0] if len(found) == 1 else torch.stack(found).amin(0)

    def majority(self, rows: Tensor) -> float:
        """The agreement, in percent, of the best answer that is the same for all images; the least of several."""
        return min(part.majority(own) for part, own in zip(self.parts, self._split(rows), strict=True))

    def drawn(self, pairs: int, usual: Tensor, rng: torch.Generator) -> Tensor:
        """What images are asked for (``Scores.drawn``): [N] of images as a whole, otherwise [N, Q]."""
        if self.whole is not None:
            return self.whole.drawn(pairs, usual, rng)
        own = torch.split(usual, [part.asked for part in self.parts])
        drawn = [
            part.drawn(pairs, answers, rng).reshape(2 * pairs, -1)
            for part, answers in zip(self.parts, own, strict=True)
            if part.asked
        ]
        return torch.cat(drawn, 1) if drawn else torch.zeros(2 * pairs, 0, dtype=torch.long, device=rng.device)

    def usual(self, rows: Tensor) -> Tensor:
        """The answer that each place gets most often, [Q], from the scores [N, L] of some images."""
        found = [
            part.answered(own).reshape(len(rows), -1).mode(0).values
            for part, own in zip(self.parts, self._split(rows), strict=True)
            if part.asked
        ]
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.long, device=rows.device)

    def _split(self, rows: Tensor) -> tuple[Tensor, ...]:
        return (rows,) if len(self.parts) == 1 else torch.split(rows, [part.numbers for part in self.parts], 1)

    def _asked(self, rows: Tensor, asked: Tensor) -> list[tuple[Scores, Tensor, Tensor]]:
        """The parts that can be asked, each with its own scores and answers: [N] where an image is one place."""
        wanted = torch.split(asked, [part.asked for part in self.parts], 1)
        return [
            (part, own, answers if part.places else answers[:, 0])
            for part, own, answers in zip(self.parts, self._split(rows), wanted, strict=True)
            if part.asked
        ]

    def _pairs(self, one: Tensor, other: Tensor) -> list[tuple[Scores, Tensor, Tensor]]:
        return list(zip(self.parts, self._split(one), self._split(other), strict=True))


def mutual_information(log_probabilities: Tensor) -> float:
    """The entropy of the mean probabilities less the mean entropy, in nats.

    Salimans et al. (arXiv 1606.03498) score generated images by its exponential.

    Args:
        log_probabilities: Of each answer, [N, A] or [N, A, P].
    """
    each = log_probabilities.movedim(1, -1).flatten(0, -2).double().exp()
    entropies = torch.special.entr(each).sum(-1)
    return float((torch.special.entr(each.mean(0)).sum() - entropies.mean()).item())


def is_cosine(kind: str) -> bool:
    """Whether agreement is a hundred times a cosine, because nothing is decided (``Output.kind``)."""
    return set(kind.split(BETWEEN)) == {"values"}


def agreement_of(kind: str, percent: float, images: str) -> str:
    """Agreement in words, such as ``99.8 % of cells of 512 images``, or ``a cosine of 0.9998 on 512 images``.

    Args:
        kind: Of the output (``Output.kind``).
        percent: The agreement.
        images: On which images, in words.
    """
    if is_cosine(kind):
        return f"a cosine of {percent / 100:.4f} on {images}"
    return f"{percent:.1f} % of {counted_in(kind, images)}"


def counted_in(kind: str, images: str) -> str:
    """What agreement is a percentage of, such as ``cells of 512 images``; of several kinds the images."""
    return COUNTED.get(kind, "") + images


@dataclass(frozen=True)
class Answer:
    """What a network returns, and which tensors of it count.

    Attributes:
        structure: How the returned tensors are nested (``acq.core.structures``).
        counted: The names of the tensors that decide.
        logits: For each, the public name of the node with its scores: the values before a final softmax or sigmoid.
        output: How they decide.
    """

    structure: Structure
    counted: tuple[str, ...]
    logits: tuple[str, ...]
    output: Output

    def __str__(self) -> str:
        if len(self.names) == 1:
            return str(self.output)
        verb = "decides" if len(self.counted) == 1 else "decide"
        counted, returned = " and ".join(self.counted), ", ".join(self.names)
        return f"{self.output} in {counted}, which {verb}; returned: {returned}"

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each returned tensor."""
        return names_in(self.structure)

    def figures(self) -> dict[str, Any]:
        """What a summary shows of it, as JSON values."""
        return {
            "kind": self.output.kind,
            "meaning": str(self.output),
            "size": self.output.parts[0].size,
            "counted": BETWEEN.join(self.counted),
            "returned": ", ".join(self.names),
        }

    def rebuilt(self, tensors: Sequence[Any]) -> Any:
        """What the network returns, from its tensors in order."""
        return rebuilt(self.structure, tensors)
