from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from answers import ANSWERS, Answering, answering
from helpers import CLASSES, SIZE, images, settled
from torch import Tensor

from acq.core.outputs import Kind, Output
from acq.errors import RequestError
from acq.network.names import name_of
from acq.network.outputs import answer_of, ending_of, logits_from, logits_of, returned_nodes
from acq.network.teacher import Teacher
from acq.network.trace import trace

LABELS, ONE = Output("multilabel", 5), Output("multilabel", 1)
FOUND: dict[str, Output] = {"sigmoid": LABELS, "one": ONE, "flat": ONE, "one sigmoid": ONE}


def scores(name: str, x: Tensor) -> Tensor:
    """The values of the head before what the network makes of them."""
    model = answering(name)
    model.answer = lambda z, one, _: one if FOUND.get(name) == ONE else z
    found: Tensor = model(x)
    return found


@pytest.mark.parametrize("name", ANSWERS)
def test_logits_are_what_is_before_the_end(name: str) -> None:
    """A final softmax or sigmoid, a shape, a structure and other returned tensors leave the logits as they are."""
    graph, x = trace(answering(name), SIZE), images(3)
    with torch.no_grad():
        torch.testing.assert_close(logits_from(graph, x), scores(name, x))
        torch.testing.assert_close(Teacher(graph)(x), scores(name, x))
        assert logits_from(graph, x[:1]).shape[0] == 1
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
    assert answer_of(trace(answering(name), SIZE, kind=kind)).output == expected


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
        answer_of(trace(answering(name), SIZE, kind=kind))


def test_a_chosen_output_decides() -> None:
    """Another head's scores are the logits when it is named."""
    model = settled(Answering(lambda z, one, x: {"many": z, "one": one.sigmoid()}))
    assert answer_of(trace(model, SIZE, "many")).output == CLASSES
    answer = answer_of(graph := trace(model, SIZE, "one"))
    assert (answer.output, answer.counted, answer.names) == (ONE, "one", ("many", "one"))
    assert answer.logits == name_of(logits_of(graph)) == "side"


def test_a_softmax_over_another_axis_does_not_end_a_network() -> None:
    """Over groups of scores it is an operator like any other."""
    model = Answering(lambda z, one, x: torch.cat([z, one], 1).unflatten(1, (2, 3)).softmax(2).flatten(1))
    graph = trace(settled(model), SIZE)
    (node,) = returned_nodes(graph.graph)
    assert ending_of(node, answer_of(graph).output.size) == (None, node)


def test_names_of_layers_have_no_prefix() -> None:
    """Layers of a network that returns a structure are called as in a network that returns scores."""
    names = [{name_of(node) for node in trace(answering(name), SIZE).graph.nodes} for name in ("dict", "scores")]
    assert {"stem.1", "head"} <= names[0] & names[1]
