from __future__ import annotations

from typing import Any

import pytest
import torch
from answers import Pair, Scores
from torch import Tensor, nn

from acq.core.structures import TENSOR
from acq.errors import RequestError
from acq.network.returned import flat_answers, returned

SCORES, OTHER, ONE = torch.zeros(2, 5), torch.zeros(2, 3), torch.zeros(2)
MAP, STEPS, GUESSES = torch.zeros(2, 5, 8, 8), torch.zeros(2, 7, 5), torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (SCORES, 0),
        (ONE, 0),
        (SCORES[:, :, None, None], 0),
        ((MAP, SCORES), 1),
        ((torch.zeros(4, 3), SCORES, torch.tensor(1.0)), 1),
        ((SCORES, GUESSES), 0),
        ({"map": MAP, "deep": [None, {"scores": SCORES}]}, 1),
        (Scores(SCORES, OTHER), 0),
        ({"hidden": OTHER, "head": {"logits": SCORES}}, 1),
        (MAP, 0),
        ([STEPS], 0),
        ({"map": MAP, "logits": STEPS}, 1),
    ],
)
def test_the_tensor_that_decides_is_found(value: Any, place: int) -> None:
    """It is the only one that holds scores of floats, or the one that is called logits."""
    assert returned(value, 2).places == (place,)


@pytest.mark.parametrize(
    ("outputs", "value", "place"),
    [
        ("1", (SCORES, OTHER), 1),
        ("age", {"sex": OTHER, "age": SCORES}, 1),
        ("1", {"sex": OTHER, "age": SCORES}, 1),
        ("a.0", {"a": [SCORES], "b": OTHER}, 0),
        ("pooled", Pair(SCORES, OTHER), 1),
        ("hidden", Scores(SCORES, OTHER), 1),
    ],
)
def test_the_user_chooses_by_name_or_index(outputs: str, value: Any, place: int) -> None:
    """Names win over indices, and a choice wins over what is called logits."""
    assert returned(value, 2, outputs).places == (place,)


def test_several_are_named_with_commas() -> None:
    """Each has its own kind, or one kind stands for all."""
    value = {"cells": MAP, "box": SCORES, "steps": STEPS}
    found = returned(value, 2, "box, 0", ("values", "map"))
    assert (found.places, found.kinds) == ((1, 0), ("values", "map"))
    assert returned(value, 2, "box,steps", ("values",)).kinds == ("values", "values")
    with pytest.raises(RequestError, match="2 kinds for 1 tensors"):
        returned(value, 2, "box", ("values", "map"))
    with pytest.raises(RequestError, match="names one tensor twice"):
        returned(value, 2, "box,1")


def test_maps_alone_are_listed() -> None:
    """Where no tensor has a row of scores per image, the user chooses among maps."""
    with pytest.raises(RequestError, match=r"0 \[N, 5, 8, 8\], 1 \[N, 7, 5\].*--outputs 0, or all that count"):
        returned([MAP, STEPS], 2)


def test_several_tensors_are_listed_with_the_option() -> None:
    """The line has every name and shape, and an option that works."""
    with pytest.raises(RequestError) as caught:
        returned({"age": SCORES, "sex": [OTHER]}, 2)
    text = str(caught.value)
    assert "age [N, 5], sex.0 [N, 3]" in text
    assert "--outputs age" in text
    with pytest.raises(RequestError, match=r"no 'agee' \(did you mean 'age'\?\).*age \[N, 5\]"):
        returned({"age": SCORES, "sex": OTHER}, 2, "agee")


@pytest.mark.parametrize(
    ("value", "fact", "code"),
    [
        (GUESSES, "a tensor [N] of int64", "self.network(images)[...]"),
        (MAP.transpose(0, 1), "a tensor [N, 2, 8, 8]", "self.network(images)[...]"),
        ([{"boxes": torch.zeros(4, 4)}, {SCORES}], "a value of type set", "self.network(images)[...]"),
        ((None, "text"), "no tensor", "self.network(images)[...]"),
        (torch.tensor(1.0), "a tensor []", "self.network(images)[...]"),
        ({"a.b": SCORES, "a": {"b": OTHER}}, "two tensors of one name", "self.network(images)[...]"),
    ],
)
def test_the_message_shows_the_module_that_helps(value: Any, fact: str, code: str) -> None:
    """Guesses, batches on another axis and other objects are refused with lines of code that can be filled in."""
    with pytest.raises(RequestError) as caught:
        returned(value, 2)
    first, *lines = str(caught.value).splitlines()
    assert fact in first
    assert code in lines[-1]
    found: dict[str, Any] = {"nn": nn}
    exec("\n".join(line.removeprefix("    ") for line in lines).replace("[...]", ""), found)
    assert isinstance(found["Scores"](nn.Identity())(SCORES), Tensor)


class Nested(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return {"a": x, "b": (x + 1, "text" if len(x) == 2 else None)}


def test_answers_are_flat_while_a_module_is_traced() -> None:
    """Within the block a module returns a tuple of tensors; afterwards it is as it was."""
    model = Nested()
    structure = returned(model(OTHER), 2, "a").structure
    with flat_answers(model, structure):
        one, two = model(OTHER)
        assert torch.equal(two, one + 1)
        with pytest.raises(ValueError, match="depends on the images"):
            model(torch.zeros(3, 3))
    assert set(model(OTHER)) == {"a", "b"}
    assert "forward" not in vars(model)


def test_a_forward_of_an_instance_is_put_back() -> None:
    """Some libraries replace the forward of one module."""
    model = nn.Identity()
    own = model.forward = lambda x: [x]  # type: ignore[method-assign]
    with flat_answers(model, {"list": [TENSOR]}):
        assert isinstance(model(ONE), tuple)
    assert vars(model)["forward"] is own
    with flat_answers(model, TENSOR):
        assert isinstance(model(ONE), list)
