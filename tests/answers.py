"""Tiny networks of one trunk that return what people's networks return: scores, structures, and much else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from helpers import conv, settled
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Scores:
    """What a network may return: the scores of its classes and what it saw."""

    logits: Tensor
    hidden: Tensor
    loss: Tensor | None = None


class Pair(NamedTuple):
    scores: Tensor
    pooled: Tensor


class Answering(nn.Module):
    """Two heads on one trunk. ``answer`` makes what it returns of scores [N, 5], one score [N, 1] and features."""

    def __init__(self, answer: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.stem, self.head, self.side, self.answer = conv(3, 8), nn.Linear(8, 5), nn.Linear(8, 1), answer

    def extra_repr(self) -> str:
        return str(self.answer)  # networks that differ in it alone are not the same

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.stem(x))
        pooled = x.mean((2, 3))
        return self.answer(self.head(pooled), self.side(pooled), x)


# what a network returns, and its logits of these scores
ANSWERS: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "scores": lambda z, one, x: z,
    "softmax": lambda z, one, x: z.softmax(1),
    "log softmax": lambda z, one, x: F.log_softmax(z, dim=-1),
    "sigmoid": lambda z, one, x: torch.sigmoid(z),
    "one": lambda z, one, x: one,
    "flat": lambda z, one, x: one.squeeze(1),
    "one sigmoid": lambda z, one, x: one.sigmoid().flatten(),
    "map": lambda z, one, x: z[:, :, None, None],
    "softmax map": lambda z, one, x: z[:, :, None, None].softmax(1),
    "dict": lambda z, one, x: {"scores": z, "extra": {"map": x, "what": "toy"}},
    "tuple": lambda z, one, x: (x, [z, None], 3),
    "object": lambda z, one, x: Scores(z, x),
    "named": lambda z, one, x: Pair(z.softmax(1), x),
    "guesses": lambda z, one, x: (z, z.argmax(1), z > 0),
    "constant": lambda z, one, x: {"z": z.unsqueeze(2), "means": torch.full((3, 1), 0.5)},
}


def answering(name: str, seed: int = 0) -> nn.Module:
    """A network of one trunk that returns one of ``ANSWERS``."""
    return settled(Answering(ANSWERS[name]), seed)
