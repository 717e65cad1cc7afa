"""How the scores of one tensor decide, and every formula that depends on it.

Shapes: N images, L scores per image, P places such as cells or steps, K scores per place, A answers that a place can be
asked for. The scores of a whole image are one place. Formulas take scores as rows [N, L].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["class", "multilabel", "map", "sequence", "values"]
Ending = Literal["sigmoid", "hardsigmoid", "softmax", "log_softmax"]
Decision = Literal["one", "each", "none"]

KINDS: tuple[Kind, ...] = get_args(Kind)
# percent with one answer, above which agreement says little: halfway between the least and all of them
_MOST_MAJORITY: dict[Decision, float] = {"one": 50.0, "each": 75.0, "none": 95.0}
# what agreement and accuracy count, in an image
COUNTED: dict[str, str] = {
    "class": "", "multilabel": "labels of ", "map": "cells of ", "sequence": "steps of ", "values": "",
}  # fmt: skip
_LARGEST_BLOCK, _CHANGED_STEPS = 0.5, 1 / 3  # of a side, and of the steps (this project's definition)


@dataclass(frozen=True)
class Scores:
    """What the scores of one tensor mean.

    Attributes:
        kind: ``class``: the largest of K scores names the class. ``multilabel``: each of K scores says yes to its label
            where it is above 0, and no elsewhere. ``map``: a class per cell of [K, H, W], or yes or no where K is 1.
            ``sequence``: a class per step of [T, K]. ``values``: numbers that name nothing.
        shape: Of the scores of one image.
    """

    kind: Kind
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        axes = {"class": 1, "multilabel": 1, "sequence": 2, "map": max(2, len(self.shape))}
        fits = len(self.shape) == axes.get(self.kind, len(self.shape)) and all(side > 0 for side in self.shape)
        if not fits or (self.kind in ("class", "sequence") and self.size < 2):
            raise ValueError(f"scores {list(self.shape)} are none of kind {self.kind}")

    def __str__(self) -> str:
        if self.kind == "values":
            return f"{self.numbers} values"
        if self.decision == "one":
            what = f"{self.size} classes"
        else:
            what = "one yes-or-no answer" if self.size == 1 else f"{self.size} labels, yes or no each"
        places = "x".join(map(str, self.places))
        return what if not places else f"{what} per {'cell of' if self.kind == 'map' else 'step of'} {places}"

    @property
    def numbers(self) -> int:
        """L, the scores of an image."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """K, the scores of a place: the classes or labels. Of values, all are those of one place."""
        if self.kind == "values":
            return self.numbers
        return self.shape[-1 if self.kind == "sequence" else 0]

    @property
    def places(self) -> tuple[int, ...]:
        """The sides of a map, or the steps of a sequence; empty where an image as a whole is one place."""
        return {"map": self.shape[1:], "sequence": self.shape[:1]}.get(self.kind, ())

    @property
    def ignored(self) -> int:
        """The number of a cell or step without a known class: 255, or -1 where 255 is a class."""
        return 255 if self.size <= 255 else -1

    @property
    def decision(self) -> Decision:
        """``one`` of K classes, yes or no to ``each`` score, or ``none``."""
        if self.kind == "values":
            return "none"
        return "each" if self.kind == "multilabel" or (self.kind == "map" and self.size == 1) else "one"

    @property
    def answers(self) -> int:
        """A: the classes; or yes to each label, and then no to each; 0 of values."""
        return {"one": self.size, "each": 2 * self.size, "none": 0}[self.decision]

    @property
    def asked(self) -> int:
        """How many answers an image is asked for: one per place, none of values."""
        return math.prod(self.places) if self.answers else 0

    @property
    def most_majority(self) -> float:
        """The percentage of the commonest answer above which agreement says little (this project's definition)."""
        return _MOST_MAJORITY[self.decision]

    def named(self, answer: int, names: Sequence[str] = ()) -> str:
        """An answer in words, such as ``class 3`` or ``label 3: no``, or with the name of its class or label."""
        if self.decision == "one":
            return self.word(answer, names)
        said = "yes" if answer < self.size else "no"
        return said if self.size == 1 and not names else f"{self.word(answer % self.size, names)}: {said}"

    def word(self, index: int, names: Sequence[str] = ()) -> str:
        """A class or label in words: its name, or such as ``class 3``."""
        return names[index] if names else f"{'class' if self.decision == 'one' else 'label'} {index}"

    def flat(self, values: Tensor) -> Tensor:
        """The rows [N, L] of a tensor such as [N], [N, K, 1, 1] or [N, K, H, W]."""
        return values if values.dim() == 2 else values.reshape(-1, self.numbers)

    def before(self, rows: Tensor, ending: Ending | None) -> Tensor:
        """Rows that decide as the scores do.

        Args:
            rows: What a network returns, as rows.
            ending: The operator that made it of the scores, if one did.
        """
        if ending in ("sigmoid", "hardsigmoid"):
            return torch.logit(rows) if ending == "sigmoid" else 6 * rows - 3
        return rows.log() if ending == "softmax" else rows

    def by_place(self, rows: Tensor) -> Tensor:
        """Scores as [N, K], or as [N, K, P] where an image has places."""
        if not self.places:
            return rows
        if self.kind == "map":
            return rows.reshape(len(rows), self.size, -1)
        return rows.reshape(len(rows), -1, self.size).transpose(1, 2)

    def evidence(self, rows: Tensor) -> Tensor:
        """The score of each answer: [N, A] or [N, A, P]. That of no to a label is the negated score."""
        scores = self.by_place(rows)
        return scores if self.decision == "one" else torch.cat((scores, -scores), 1)

    def head(self, weight: Tensor) -> Tensor:
        """The weight of each answer's score, from that of the scores: [K, C] -> [A, C]."""
        return weight if self.decision == "one" else torch.cat((weight, -weight))

    def log_probabilities(self, rows: Tensor) -> Tensor:
        """The logarithm of each answer's probability: [N, A] or [N, A, P].

        Classes exclude each other, so theirs sum to one. With labels, those of yes and no to each label do.
        """
        if self.decision == "one":
            return self.by_place(rows).log_softmax(1)
        return F.logsigmoid(self.evidence(rows))

    def centred(self, rows: Tensor) -> Tensor:
        """The part of the scores that decides. A number added to all of a place changes no class, but every label."""
        if self.decision != "one":
            return rows
        scores = self.by_place(rows)
        return scores - scores.mean(1, keepdim=True)

    def answered(self, rows: Tensor) -> Tensor:
        """The answer with the largest score: [N], or [N, P] where an image has places."""
        return self.evidence(rows).argmax(1)

    def mismatch(self, rows: Tensor, asked: Tensor) -> Tensor:
        """Cross entropy in nats of the answers and those that were asked for, mean over images and places.

        Args:
            rows: Scores [N, L].
            asked: [N], or [N, P] where an image has places.
        """
        return F.nll_loss(self.log_probabilities(rows), asked)

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """KL divergence in nats of the student's probabilities from the teacher's, mean over images and places.

        That of labels is the sum over labels. Of values, it is their squared error relative to the teacher's.
        """
        if self.decision == "none":
            return relative_error(student, teacher)
        answers, reference = map(self.log_probabilities, (student, teacher))
        return F.kl_div(answers, reference, reduction="batchmean", log_target=True) / math.prod(self.places)

    def apart(self, student: Tensor, teacher: Tensor) -> Tensor:
        """|zs - zt|^2 / |zt|^2 over a batch of scores [N, L], both centred over classes if they are those of classes.

        This is the high-temperature limit of distillation by KL divergence (Hinton et al., arXiv 1503.02531,
        section 2.1).
        """
        return relative_error(self.centred(student), self.centred(teacher))

    def came_true(self, rows: Tensor, asked: Tensor) -> Tensor:
        """Whether each place gets the answer that was asked of it: [N], or [N, P] where an image has places."""
        if self.decision == "one":
            return self.by_place(rows).argmax(1) == asked
        return self.evidence(rows).gather(1, asked.unsqueeze(1)).squeeze(1) > 0

    def same(self, one: Tensor, other: Tensor) -> Tensor:
        """The share of equal decisions per image, [N]; of values the cosine of both rows."""
        if self.decision == "none":
            return F.cosine_similarity(one, other)
        if self.decision == "one":
            equal = self.by_place(one).argmax(1) == self.by_place(other).argmax(1)
        else:
            equal = (one > 0) == (other > 0)
        return equal.float().reshape(len(one), -1).mean(1)

    def tally(self, rows: Tensor, truth: Tensor) -> Tensor:
        """Counts that sum over batches and from which ``measured`` makes the accuracy.

        Args:
            rows: Scores [N, L].
            truth: Classes [N]; labels 0 and 1, [N, K], or [N] where K is 1; classes per cell [N, H, W], of any size, to
                which scores are resized; or classes per step [N, T]. ``ignored`` leaves a cell or step out.

        Returns:
            Right decisions and all, [2]; of a map cells in both and in either per class, [2, classes].
        """
        if self.kind == "map":
            return self._overlaps(rows, truth)
        if self.decision == "each":
            right, known = (rows > 0) == truth.reshape(rows.shape).bool(), torch.ones_like(rows)
        else:
            right = self.by_place(rows).argmax(1) == truth
            known = truth.ne(self.ignored) if self.places else truth.ge(0)
        return torch.stack([(right & known.bool()).sum(), known.sum()]).double()

    def measured(self, tally: Tensor) -> float:
        """The accuracy in percent, from a sum of tallies: of a map the mean over classes of intersection over union."""
        part, whole = tally
        found = part.sum() / whole.sum() if self.kind != "map" else (part[whole > 0] / whole[whole > 0]).mean()
        return float(100 * found.item())

    def _overlaps(self, rows: Tensor, truth: Tensor) -> Tensor:
        scores = rows.reshape(len(rows), *self.shape)
        if truth.shape[1:] != self.places:
            mode = ("linear", "bilinear", "trilinear")[len(self.places) - 1]
            scores = F.interpolate(scores, truth.shape[1:], mode=mode, align_corners=False)
        found = scores.argmax(1) if self.decision == "one" else (scores[:, 0] > 0).long()
        known, count = truth != self.ignored, max(self.size, 2)
        both = torch.bincount(found[known & (found == truth)], minlength=count)
        each = [torch.bincount(classes[known], minlength=count) for classes in (found, truth)]
        return torch.stack([both, sum(each) - both]).double()

    def drawn(self, pairs: int, usual: Tensor, rng: torch.Generator) -> Tensor:
        """What images are asked for: [N] of the image as a whole, otherwise [N, P]. Entries i and i + N/2 are equal.

        Answers of whole images are as balanced as their number allows. A map has the usual answers save one block, and
        a sequence save a third of its steps: these have random ones (this project's definition).

        Args:
            pairs: N/2.
            usual: The answer that scenes get most often, per place [P].
            rng: Random state.
        """
        device = rng.device
        first = torch.randint(self.answers, (), generator=rng, device=device)
        order = torch.randperm(pairs, generator=rng, device=device)
        label = (order + first) % self.answers
        if not self.places:
            return label.repeat(2)
        changed = self._changed(pairs, rng)
        if self.kind == "sequence":
            answers = torch.randint(self.answers, (pairs, self.asked), generator=rng, device=device)
        else:
            answers = label[:, None].expand(-1, self.asked)
        return torch.where(changed, answers, usual.to(device)).repeat(2, 1)

    def _changed(self, count: int, rng: torch.Generator) -> Tensor:
        """The places whose answers are not the usual ones, [count, P]."""
        if self.kind == "sequence":
            return torch.rand(count, self.asked, generator=rng, device=rng.device) < _CHANGED_STEPS
        inside = torch.ones(count, *self.places, dtype=torch.bool, device=rng.device)
        for axis, side in enumerate(self.places):
            extent, start = torch.rand(2, count, 1, generator=rng, device=rng.device)
            length = (extent * _LARGEST_BLOCK * side).ceil()
            begin = (start * (side - length + 1)).floor()
            cells = torch.arange(side, device=rng.device)
            within = (cells >= begin) & (cells < begin + length)
            inside &= within.reshape(count, *(side if a == axis else 1 for a in range(len(self.places))))
        return inside.flatten(1)

    def majority(self, rows: Tensor) -> float:
        """The agreement, in percent, of the best answer that is the same for all images and places."""
        if self.decision == "none":
            return 100 * self.same(rows, rows.mean(0, keepdim=True)).mean().item()
        if self.decision == "one":
            answers = self.by_place(rows).argmax(1).flatten()
            return 100 * int(torch.bincount(answers).max()) / len(answers)
        yes = (rows > 0).float().mean(0) if not self.places else (rows > 0).float().mean().reshape(1)
        return 100 * torch.maximum(yes, 1 - yes).mean().item()


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """|f - w|^2 / |w|^2 over tensors of one shape."""
    return (found - wanted).square().sum() / wanted.square().sum().clamp_min(1e-12)
