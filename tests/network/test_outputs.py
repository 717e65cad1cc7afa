from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from answers import ANSWERS, Answering, answering
from helpers import CLASSES, SIZE, conv, images, settled
from torch import Tensor, fx, nn
from torch.nn import functional as F

from acq.core.outputs import Output
from acq.core.scores import Ending, Kind, Scores
from acq.errors import RequestError
from acq.network.names import name_of
from acq.network.outputs import answer_of, end_of, logits_from, logits_of, returned_nodes
from acq.network.teacher import Teacher
from acq.network.trace import trace

LABELS, ONE = Output.of("multilabel", 5), Output.of("multilabel", 1)
FOUND: dict[str, Output] = {"sigmoid": LABELS, "one": ONE, "flat": ONE, "one sigmoid": ONE}


def scores(name: str, x: Tensor) -> Tensor:
    """The values of the head before what the network makes of them."""
    model = answering(name)
    model.answer = lambda z, one, _: one if FOUND.get(name) == ONE else z
    found: Tensor = model(x)
    return found


def flat_logits(graph: fx.GraphModule, x: Tensor) -> Tensor:
    return logits_from(graph, logits_of(graph), answer_of(graph).output, x)


@pytest.mark.parametrize("name", ANSWERS)
def test_logits_are_what_is_before_the_end(name: str) -> None:
    """A final softmax or sigmoid, a shape, a structure and other returned tensors leave the logits as they are."""
    graph, x = trace(answering(name), SIZE), images(3)
    with torch.no_grad():
        torch.testing.assert_close(flat_logits(graph, x), scores(name, x))
        torch.testing.assert_close(Teacher(graph)(x), scores(name, x))
        assert flat_logits(graph, x[:1]).shape[0] == 1
    assert answer_of(graph).output == FOUND.get(name, CLASSES)


@pytest.mark.parametrize("name", ANSWERS)
def test_the_answer_of_a_trace_is_that_of_the_network(name: str) -> None:
    """Its tensors in their structure are the network's own, for any number of images."""
    model, x = answering(name), images(3)
    graph = copy.deepcopy(trace(model, SIZE))
    with torch.no_grad():
        flat: Any = graph(x)
        found = answer_of(graph).rebuilt([flat] if isinstance(flat, Tensor) else flat)
        assert str(found) == str(model(x)) or name in ("object", "named")
    assert len(returned_nodes(graph.graph)) == len(answer_of(graph).names)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [("scores", "multilabel", LABELS), ("sigmoid", "class", CLASSES), ("softmax", "class", CLASSES)],
)
def test_the_kind_is_the_users_word(name: str, kind: Kind, expected: Output) -> None:
    """Scores of labels look like those of classes, and a sigmoid may end a network of classes."""
    assert answer_of(trace(answering(name), SIZE, kinds=(kind,))).output == expected


@pytest.mark.parametrize(
    ("name", "kind", "fact"),
    [
        ("softmax", "multilabel", "ends in a softmax"),
        ("log softmax", "multilabel", "softmax"),
        ("one", "class", "no class"),
    ],
)
def test_a_kind_that_contradicts_the_network_is_refused(name: str, kind: Kind, fact: str) -> None:
    """One score names no class, and classes of a softmax are no labels."""
    with pytest.raises(RequestError, match=f"{fact}.*--output-kind"):
        answer_of(trace(answering(name), SIZE, kinds=(kind,)))


def test_a_chosen_output_decides() -> None:
    """Another head's scores are the logits when it is named."""
    model = settled(Answering(lambda z, one, x: {"many": z, "one": one.sigmoid()}))
    assert answer_of(trace(model, SIZE, "many")).output == CLASSES
    answer = answer_of(graph := trace(model, SIZE, "one"))
    assert (answer.output, answer.counted, answer.names) == (ONE, ("one",), ("many", "one"))
    assert answer.logits == tuple(map(name_of, logits_of(graph))) == ("side",)


def test_a_softmax_over_another_axis_does_not_end_a_network() -> None:
    """Over groups of scores it is an operator like any other."""
    model = Answering(lambda z, one, x: torch.cat([z, one], 1).unflatten(1, (2, 3)).softmax(2).flatten(1))
    graph = trace(settled(model), SIZE)
    (node,) = returned_nodes(graph.graph)
    assert (end_of(node).ending, end_of(node).logits) == (None, node)


def test_names_of_layers_have_no_prefix() -> None:
    """Layers of a network that returns a structure are called as in a network that returns scores."""
    names = [{name_of(node) for node in trace(answering(name), SIZE).graph.nodes} for name in ("dict", "scores")]
    assert {"stem.1", "head"} <= names[0] & names[1]


class Spatial(nn.Module):
    """A network whose answer is a function of a map [N, 5, H, W] and its pooled values."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.stem, self.scores, self.answer = conv(3, 6), nn.Conv2d(6, 5, 1), answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(self.scores(F.relu(self.stem(x))))


def levels(z: Tensor, *, last: int | None = None) -> Tensor:
    """Boxes beside yes-or-no scores, joined per level, then over levels: [N, T, 5]."""
    found = []
    for level in (z, F.avg_pool2d(z, 2)):
        joined = torch.cat([level[:, :2], level[:, 2:3].sigmoid(), level[:, 3:].sigmoid()], 1)
        found.append((joined if last is None else joined[:, -last:]).flatten(2))
    return torch.cat(found, 2).permute(0, 2, 1)


def split_levels(z: Tensor) -> Tensor:
    """The same of a sigmoid over all, of which the boxes are computed further."""
    found = []
    for level in (z, F.avg_pool2d(z, 2)):
        box, scores = torch.split(level.permute(0, 2, 3, 1).contiguous().sigmoid(), [2, 3], 3)
        found.append(torch.cat([(box * 2) ** 2, scores], 3).flatten(1, 2))
    return torch.cat(found, 1)


def decoded(z: Tensor) -> Tensor:
    """The same, with the boxes computed further behind the join."""
    joined = levels(z)
    return torch.cat([(joined[..., :2] + 1) * 4, joined[..., 2:]], -1)


def written(z: Tensor) -> Tensor:
    """The same, with the boxes written into the scores."""
    y = z.sigmoid().permute(0, 2, 3, 1).contiguous()
    y[..., :2] = y[..., :2] * 2 - 0.5
    return y.flatten(1, 2)


H, W = SIZE[1:]
STEPS = H * W + H * W // 4
BY_SHAPE: dict[str, tuple[Callable[[Tensor], Any], Scores, Ending | None]] = {
    "map": (lambda z: z, Scores("map", (5, H, W)), None),
    "softmax of cells": (lambda z: z.softmax(1), Scores("map", (5, H, W)), "softmax"),
    "yes or no of cells": (lambda z: z[:, :1].sigmoid(), Scores("map", (1, H, W)), "sigmoid"),
    "upsampled": (lambda z: F.interpolate(z, scale_factor=2), Scores("map", (5, 2 * H, 2 * W)), None),
    "labels of cells": (lambda z: z.sigmoid(), Scores("multilabel", (5 * H * W,)), "sigmoid"),
    "steps": (lambda z: z.mean(2).transpose(1, 2), Scores("sequence", (W, 5)), None),
    "softmax of steps": (lambda z: z.mean(2).transpose(1, 2).softmax(2), Scores("sequence", (W, 5)), "softmax"),
    "log-softmax of steps": (
        lambda z: z.mean(2).transpose(1, 2).log_softmax(-1), Scores("sequence", (W, 5)), "log_softmax",
    ),
    "steps behind their classes": (lambda z: z.mean(2).softmax(1), Scores("map", (5, W)), "softmax"),
    "vectors of length one": (lambda z: F.normalize(z.mean((2, 3))), Scores("values", (5,)), None),
    "vectors over the sum of their sizes": (
        lambda z: (v := z.mean((2, 3))) / v.abs().sum(1, keepdim=True), Scores("values", (5,)), None,
    ),
    "vectors over the root of their squares": (
        lambda z: (v := z.mean((2, 3))) / (v * v).sum(1, keepdim=True).clamp_min(1e-6).pow(0.5),
        Scores("values", (5,)), None,
    ),
    "softmax in pieces": (
        lambda z: (e := z.mean((2, 3)).exp()) / e.sum(1, keepdim=True), Scores("class", (5,)), "softmax",
    ),
    "one sigmoid in pieces": (
        lambda z: 1 / (1 + torch.exp(-z[:, :1].mean((2, 3)))), Scores("multilabel", (1,)), "sigmoid",
    ),
    "one sigmoid in pieces of a scaled score": (
        lambda z: 1 / (1 + torch.exp(-(z[:, :1].mean((2, 3)) / 0.5))), Scores("multilabel", (1,)), "sigmoid",
    ),
    "hard sigmoids": (lambda z: F.hardsigmoid(z.mean((2, 3))), Scores("multilabel", (5,)), "hardsigmoid"),
    "heads joined": (
        lambda z: torch.cat([z[:, :1].sigmoid(), z[:, 1:].permute(0, 2, 3, 1).softmax(3).permute(0, 3, 1, 2)], 1),
        Scores("values", (5, H, W)), None,
    ),
    "labels beside numbers": (
        lambda z: torch.cat([z[:, :2].sigmoid(), z[:, 2:]], 1).mean((2, 3)), Scores("class", (5,)), None,
    ),
    "branches joined": (lambda z: torch.cat([z[:, :2], z[:, 2:].relu()], 1), Scores("map", (5, H, W)), None),
    "softmax over columns": (lambda z: z.softmax(3), Scores("values", (5, H, W)), "softmax"),
    "levels of heads": (levels, Scores("values", (STEPS, 5)), None),
    "levels of split heads": (split_levels, Scores("values", (STEPS, 5)), None),
    "levels decoded": (decoded, Scores("values", (STEPS, 5)), None),
    "boxes written into scores": (written, Scores("values", (H * W, 5)), None),
    "heads stacked": (
        lambda z: torch.stack([z[:, :2], z[:, 2:4].sigmoid()], 1).flatten(3), Scores("values", (2, 2, H * W)), None,
    ),
    "heads split and joined": (
        lambda z: torch.cat(torch.split(torch.cat([z[:, :2], z[:, 2:].softmax(1)], 1).flip(1), [1, 4], 1), 1),
        Scores("values", (5, H, W)), None,
    ),
    "scores of levels": (lambda z: levels(z, last=3), Scores("sequence", (STEPS, 3)), None),
    "scores of levels picked": (lambda z: levels(z)[:, 10:, 2:], Scores("sequence", (STEPS - 10, 3)), None),
    "scores of levels split": (lambda z: torch.split(levels(z), [2, 3], 2)[1], Scores("sequence", (STEPS, 3)), None),
    "branches joined twice": (
        lambda z: torch.cat([torch.cat([z, z.relu()], 1), z], 1).flip(1), Scores("map", (15, H, W)), None,
    ),
    "classes last": (lambda z: z.permute(0, 2, 3, 1), Scores("values", (H, W, 5)), None),
    "classes last, resized": (
        lambda z: F.interpolate(z, scale_factor=2).transpose(1, 3), Scores("values", (2 * W, 2 * H, 5)), None,
    ),
    "classes last, computed further": (
        lambda z: torch.cat([z, z], 1).movedim(1, -1) * 2 + 1, Scores("values", (H, W, 10)), None,
    ),
    "classes last, linear": (
        lambda z: z.flatten(2).mT.matmul(torch.ones(5, 4)).reshape(-1, H, W, 4), Scores("values", (H, W, 4)), None,
    ),
    "classes last behind a softmax": (lambda z: z.softmax(1).permute(0, 2, 3, 1), Scores("values", (H, W, 5)), None),
    "softmax over classes last": (lambda z: z.permute(0, 2, 3, 1).softmax(-1), Scores("values", (H, W, 5)), "softmax"),
    "log-softmax over classes last": (
        lambda z: z.permute(0, 2, 3, 1).log_softmax(3), Scores("values", (H, W, 5)), "log_softmax",
    ),
    "labels of cells last": (lambda z: z.permute(0, 2, 3, 1).sigmoid(), Scores("multilabel", (5 * H * W,)), "sigmoid"),
    "classes last and first again": (
        lambda z: z.permute(0, 2, 3, 1).matmul(torch.ones(5, 4)).permute(0, 3, 1, 2), Scores("map", (4, H, W)), None,
    ),
    "tokens as a map": (
        lambda z: z.flatten(2).transpose(1, 2).softmax(2).mT.reshape(-1, 5, H, W), Scores("map", (5, H, W)), None,
    ),
    "numbers of classes": (lambda z: z.argmax(1).float(), Scores("values", (H, W)), None),
    "numbers of classes last": (
        lambda z: z.permute(0, 2, 3, 1).argmax(-1).float().unsqueeze(3), Scores("values", (H, W, 1)), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_SHAPE)
def test_shape_and_end_say_what_scores_mean(name: str) -> None:
    """Maps, sequences, labels and embeddings are told apart, and their logits are rows before the end."""
    answer, scores, ending = BY_SHAPE[name]
    model, x = settled(Spatial(answer)), images(3)
    graph = trace(model, SIZE)
    found = answer_of(graph).output
    assert found.parts == (scores,)
    (node,) = returned_nodes(graph.graph)
    assert end_of(node).ending == ending
    with torch.no_grad():
        logits, wanted = flat_logits(graph, x), found.flat([model(x)])
        assert logits.shape == (3, scores.numbers)
        before = found.before(wanted, (None if scores.kind == "values" else ending,))
        torch.testing.assert_close(found.same(logits, before), torch.ones(3))


def test_several_tensors_count_together() -> None:
    """Their logits are one row per image, in the order in which they were named."""
    model = settled(Spatial(lambda z: {"cells": z.softmax(1), "box": z.mean((2, 3)), "other": z.amax((2, 3))}))
    graph, x = trace(model, SIZE, "box, cells", ("values", "map")), images(2)
    answer = answer_of(graph)
    assert answer.counted == ("box", "cells")
    assert answer.output.parts == (Scores("values", (5,)), Scores("map", (5, H, W)))
    assert str(answer).endswith("in box and cells, which decide; returned: cells, box, other")
    with torch.no_grad():
        torch.testing.assert_close(flat_logits(graph, x)[:, :5], model(x)["box"])


@pytest.mark.parametrize(
    ("kind", "answer", "fact"),
    [
        ("class", lambda z: z, r"of kind class are \[N, K\], not \[N, 5, "),
        ("map", lambda z: z.mean((2, 3)), r"of kind map are \[N, K, H, W\], not \[N, 5\]"),
        ("sequence", lambda z: z, r"of kind sequence are \[N, T, K\]"),
        ("map", lambda z: z.permute(0, 2, 3, 1), rf"on axis 3 of \[N, {H}, {W}, 5\].*\[N, K, H, W\]; transpose"),
        ("map", lambda z: z.permute(0, 2, 3, 1).softmax(3), r"on axis 3 .*name the value before its transpose"),
        ("map", lambda z: z.movedim(1, -1).log_softmax(-1), "on axis 3 "),
        ("map", lambda z: z[:, :1].permute(0, 2, 3, 1).sigmoid(), "on axis 3 "),
        ("map", lambda z: z.softmax(3), "on axis 3 "),
        ("sequence", lambda z: z.mean(2).softmax(1), r"on axis 1 of \[N, 5, .*\[N, T, K\]; transpose"),
        ("map", lambda z: z.permute(0, 2, 3, 1).argmax(-1).float(), "numbers of classes, no scores"),
        ("sequence", lambda z: z.argmax(1).float(), "numbers of classes, no scores"),
    ],
)
def test_a_kind_of_another_shape_is_refused(kind: Kind, answer: Callable[[Tensor], Any], fact: str) -> None:
    """The message has both shapes and the option."""
    with pytest.raises(RequestError, match=f"{fact}.*--output-kind"):
        answer_of(trace(settled(Spatial(answer)), SIZE, kinds=(kind,)))


def test_values_of_any_shape_are_the_users_word() -> None:
    """A map of numbers looks like a map of classes."""
    graph = trace(settled(Spatial(lambda z: z)), SIZE, kinds=("values",))
    assert answer_of(graph).output == Output.of("values", 5, H, W)
