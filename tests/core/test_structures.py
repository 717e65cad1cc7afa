from __future__ import annotations

import json
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from answers import Pair, Scores
from hypothesis import given
from hypothesis import strategies as st

from acq.core.structures import TENSOR, Fields, checked, flattened, names_in, rebuilt

ONE, TWO, THREE = (torch.full((2, 3), value) for value in (1.0, 2.0, 3.0))

constants = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False)
keys = st.text() | st.integers()
values = st.recursive(
    constants | st.just(ONE),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner),
    max_leaves=12,
)


@given(values)
def test_what_is_taken_apart_comes_together_again(value: Any) -> None:
    """Tuples, lists, dicts and constants are the same afterwards, also when the structure went through a file."""
    structure, tensors = flattened(value)
    assert checked(json.loads(json.dumps(structure))) == structure
    assert len(names_in(structure)) == len(tensors)
    assert str(rebuilt(structure, tensors)) == str(value)


def test_tensors_are_named_by_keys_and_positions() -> None:
    """Dots join the names on the way to a tensor; constants have none, and a tensor alone is called logits."""
    structure, tensors = flattened({"a": ONE, "b": [TWO, None, (THREE,)], "what": "toy"})
    assert names_in(structure) == ("a", "b.0", "b.2.0")
    assert [tensor is wanted for tensor, wanted in zip(tensors, (ONE, TWO, THREE), strict=True)] == [True] * 3
    assert names_in(flattened(ONE)[0]) == ("logits",)


@pytest.mark.parametrize("value", [Scores(ONE, TWO), SimpleNamespace(logits=ONE, hidden=TWO, loss=None)])
def test_objects_become_values_by_attribute_key_and_position(value: Any) -> None:
    """Data classes and other objects with tensors keep their names, and what is None stays."""
    structure, tensors = flattened(value)
    made = rebuilt(structure, tensors)
    assert names_in(structure) == ("logits", "hidden")
    assert (made.logits is ONE, made["hidden"] is TWO, made[0] is ONE, made.loss) == (True, True, True, None)
    for wrong, fault in (("nothing", AttributeError), ("_x", AttributeError)):
        with pytest.raises(fault):
            getattr(made, wrong)
    with pytest.raises(KeyError):
        made["nothing"]


def test_a_named_tuple_keeps_positions_and_names() -> None:
    """It can be unpacked, and read by attribute."""
    structure, tensors = flattened(Pair(ONE, TWO))
    made = rebuilt(structure, tensors)
    scores, pooled = made
    assert (scores is ONE, pooled is TWO, made.pooled is TWO, names_in(structure)) == (True, True, True, Pair._fields)
    with pytest.raises(AttributeError):
        _ = made.nothing


def test_ordered_dicts_are_dicts() -> None:
    """The order of keys is kept."""
    structure, tensors = flattened(OrderedDict(b=ONE, a=TWO))
    assert list(rebuilt(structure, tensors)) == ["b", "a"]


@pytest.mark.parametrize("value", [{ONE}, object(), float("nan"), {(1, 2): ONE}, {None: ONE}, 1j])
def test_other_values_are_refused(value: Any) -> None:
    """Sets, objects without tensors, numbers that are no JSON and other keys have no structure."""
    with pytest.raises(TypeError):
        flattened({"a": ONE, "b": value})


def test_depth_is_bounded() -> None:
    """A value or a structure nested too deeply is refused before recursion ends."""
    value: Any = ONE
    structure: Any = TENSOR
    for _ in range(40):
        value, structure = [value], {"list": [structure]}
    with pytest.raises(TypeError, match="too deeply"):
        flattened(value)
    with pytest.raises(ValueError, match="structure"):
        checked(structure)


@pytest.mark.parametrize(
    "structure",
    [
        None, 3, "tensors", [], {}, {"tuple": {}}, {"list": "tensor"}, {"dict": ["tensor"]}, {"dict": [["a"]]},
        {"dict": [[1.5, "tensor"]]}, {"fields": [[1, "tensor"]]}, {"constant": []}, {"list": [], "tuple": []},
        {"other": []}, {"named": [["a", "tensor", 1]]}, {"dict": [[True, "tensor"]]},
    ],
)  # fmt: skip
def test_a_value_that_is_no_structure_is_refused(structure: Any) -> None:
    """Only what is written is read."""
    with pytest.raises(ValueError, match="structure"):
        checked(structure)


def test_an_empty_structure_has_no_names() -> None:
    """Constants and empty containers hold no tensor."""
    assert names_in({"tuple": [{"constant": None}, {"dict": []}]}) == ()
    assert rebuilt({"fields": []}, []) == Fields()
