"""How a network's logits decide, and every formula that depends on it.

Shapes: N images, K logits per image, A answers that an image can be asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from acq.core.structures import Structure, names_in, rebuilt

Kind = Literal["class", "multilabel"]
Ending = Literal["sigmoid", "softmax", "log_softmax"]

# percent of the images with one answer, above which agreement says little: halfway between the least and all of them
_MOST_MAJORITY: dict[Kind, float] = {"class": 50.0, "multilabel": 75.0}


@dataclass(frozen=True)
class Output:
    """What the logits [N, K] of a network mean.

    Attributes:
        kind: ``class``: the largest logit names the class. ``multilabel``: each logit says yes to its label where it is
            above 0, and no elsewhere.
        size: K, the number of classes or of labels.
    """

    kind: Kind
    size: int

    def __post_init__(self) -> None:
        if self.size < (2 if self.kind == "class" else 1):
            raise ValueError(f"{self.size} logits are none of kind {self.kind}")

    def __str__(self) -> str:
        if self.kind == "class":
            return f"{self.size} classes"
        return "one yes-or-no answer" if self.size == 1 else f"{self.size} labels, yes or no each"

    @property
    def accuracy(self) -> str:
        """The name of the accuracy that is measured: ``top1`` of classes, ``label_accuracy`` the mean over labels."""
        return "top1" if self.kind == "class" else "label_accuracy"

    def named(self, answer: int) -> str:
        """An answer in words, such as ``class 3`` or ``label 3: no``."""
        if self.kind == "class":
            return f"class {answer}"
        word = "yes" if answer < self.size else "no"
        return word if self.size == 1 else f"label {answer % self.size}: {word}"

    @property
    def answers(self) -> int:
        """A, the answers that an image can be asked for: the classes, or yes to each label and then no to each."""
        return self.size if self.kind == "class" else 2 * self.size

    @property
    def most_majority(self) -> float:
        """The percentage of the commonest answer above which agreement says little (this project's definition)."""
        return _MOST_MAJORITY[self.kind]

    def flat(self, values: Tensor) -> Tensor:
        """The logits [N, K] of values [N], [N, K] or [N, K, 1, 1]."""
        return values if values.dim() == 2 else values.reshape(-1, self.size)

    def before(self, values: Tensor, ending: Ending | None) -> Tensor:
        """Values that decide as the logits do: [N, K] -> [N, K].

        Args:
            values: What a network returns.
            ending: The operator that made it of the logits, if one did.
        """
        if ending == "sigmoid":
            return torch.logit(values)
        return values.log() if ending == "softmax" else values

    def scores(self, logits: Tensor) -> Tensor:
        """The evidence for each answer: [N, K] -> [N, A]. That for no to a label is the negated logit."""
        return logits if self.kind == "class" else torch.cat((logits, -logits), 1)

    def rows(self, weight: Tensor) -> Tensor:
        """The weight of each answer's score, from that of the logits: [K, C] -> [A, C]."""
        return weight if self.kind == "class" else torch.cat((weight, -weight))

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """The logarithm of each answer's probability: [N, K] -> [N, A].

        Classes exclude each other, so theirs sum to one. With labels, those of yes and no to each label do.
        """
        return logits.log_softmax(1) if self.kind == "class" else F.logsigmoid(self.scores(logits))

    def centred(self, logits: Tensor) -> Tensor:
        """The part of the logits that decides. A number added to all of them changes no class, but every label."""
        return logits - logits.mean(1, keepdim=True) if self.kind == "class" else logits

    def answered(self, logits: Tensor) -> Tensor:
        """The answer with the largest score: [N, K] -> [N]."""
        return self.scores(logits).argmax(1)

    def came_true(self, logits: Tensor, asked: Tensor) -> Tensor:
        """Whether each image gets the answer that was asked of it: [N, K] and answers [N] -> [N]."""
        if self.kind == "class":
            return logits.argmax(1) == asked
        return self.scores(logits).gather(1, asked.unsqueeze(1)).squeeze(1) > 0

    def same(self, one: Tensor, other: Tensor) -> Tensor:
        """The share of equal decisions per image: [N, K], [N, K] -> [N]. One class is equal or not."""
        if self.kind == "class":
            return (one.argmax(1) == other.argmax(1)).float()
        return ((one > 0) == (other > 0)).float().mean(1)

    def right(self, logits: Tensor, truth: Tensor) -> Tensor:
        """The share of right decisions per image: [N, K] -> [N].

        Args:
            logits: [N, K].
            truth: Classes [N]; or labels 0 and 1, [N, K], or [N] where K is 1.
        """
        if self.kind == "class":
            return (logits.argmax(1) == truth).float()
        return ((logits > 0) == truth.reshape(logits.shape).bool()).float().mean(1)

    def majority(self, logits: Tensor) -> float:
        """The agreement, in percent, of the best answer that is the same for all images [N, K]."""
        if self.kind == "class":
            return 100 * int(torch.bincount(logits.argmax(1)).max()) / len(logits)
        yes = (logits > 0).float().mean(0)
        return 100 * torch.maximum(yes, 1 - yes).mean().item()


@dataclass(frozen=True)
class Answer:
    """What a network returns, and which part of it decides.

    Attributes:
        structure: How the returned tensors are nested (``acq.core.structures``).
        counted: The name of the tensor that decides.
        logits: The public name of the node with its logits: the values before a final softmax or sigmoid.
        output: How they decide.
    """

    structure: Structure
    counted: str
    logits: str
    output: Output

    def __str__(self) -> str:
        if len(self.names) == 1:
            return str(self.output)
        return f"{self.output} in {self.counted}, which decides; returned: {', '.join(self.names)}"

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each returned tensor."""
        return names_in(self.structure)

    def figures(self) -> dict[str, Any]:
        """What a summary shows of it, as JSON values."""
        return {
            "kind": self.output.kind,
            "size": self.output.size,
            "counted": self.counted,
            "returned": ", ".join(self.names),
        }

    def rebuilt(self, tensors: Sequence[Any]) -> Any:
        """What the network returns, from its tensors in order."""
        return rebuilt(self.structure, tensors)
