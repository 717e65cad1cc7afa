from __future__ import annotations

import argparse
import io
from typing import Any

import pytest
import torch
from torch import nn

from acq.files.tensors import read_foreign_pickle
from acq.zoo.nests import tables_of


def read(value: Any) -> Any:
    """The value as it comes from a file: objects of foreign classes are inert."""
    file = io.BytesIO()
    torch.save(value, file)
    return read_foreign_pickle(file)


def names(value: Any) -> dict[str, list[str]]:
    return {path: list(table) for path, table in tables_of(read(value)).items()}


def test_tables_have_the_path_of_keys() -> None:
    """In dictionaries, lists and objects; keys that are no text become text, and other values are left out."""
    weight = torch.zeros(2)
    content = {"a": {"w": weight, "epoch": 3}, "b": (1, {"c.d": weight}), 7: {"x": weight}, "loss": weight, "n": None}
    content["o"] = argparse.Namespace(inner={"y": weight})
    assert names(content) == {"": ["loss"], "a": ["w"], "b.1": ["c.d"], "7": ["x"], "o.inner": ["y"]}
    assert names([weight, weight]) == {}


@pytest.mark.parametrize(
    "content",
    [
        {"optimizer": {"exp_avg": {"a": torch.zeros(1)}}},
        {"optimizer_states": [{"a": torch.zeros(1)}]},
        {"base_optim_state": {"a": torch.zeros(1)}},
        {"lr_schedulers": [{"a": torch.zeros(1)}]},
        {"opt": {"a": torch.zeros(1)}},
        {"any": {"state": {"a": {"exp_avg": torch.zeros(1)}}, "param_groups": []}},
        {"any": {"state": [{"a": torch.zeros(1)}], "hypers": []}},
    ],
)
def test_tensors_of_optimizers_are_left_out(content: Any) -> None:
    """By their structure or their key; they have shapes of weights."""
    assert names(content | {"w": torch.zeros(1)}) == {"": ["w"]}


def test_a_name_like_an_optimizer_s_is_no_reason_to_leave_out_a_weight() -> None:
    """Only containers are left out."""
    assert names({"opt.weight": torch.zeros(1), "optimal_model": {"a": torch.zeros(1)}}) == {
        "": ["opt.weight"], "optimal_model": ["a"],
    }  # fmt: skip


def test_a_module_has_the_names_of_its_state_dict() -> None:
    """With shared modules under both names, and without buffers that it does not save."""
    block = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    network = nn.ModuleDict({"a": block, "b": block, "c": nn.Linear(2, 2)})
    network.register_buffer("passing", torch.zeros(1), persistent=False)
    network.register_parameter("none", None)
    found = tables_of(read({"net": network}))
    assert found.keys() == {"net"}
    assert found["net"].keys() == network.state_dict().keys()
    assert all(torch.equal(found["net"][name], value) for name, value in network.state_dict().items())
    assert not any(tensor.requires_grad for tensor in found["net"].values())


def test_a_content_in_itself_or_repeated_without_end_is_refused() -> None:
    """A list in itself, and 50 levels of two times the same."""
    within: list[Any] = []
    within.append(within)
    doubled: Any = {"w": torch.zeros(1)}
    for _ in range(50):
        doubled = [doubled, doubled]
    for content in (within, doubled, {"a": within}):
        with pytest.raises(ValueError, match="nested too deeply"):
            tables_of(read(content))


def test_many_objects_are_none_that_is_repeated() -> None:
    """Hyper-parameters may hold an object per image."""
    content = {"net": {"w": torch.zeros(1)}, "files": [argparse.Namespace(path=str(at)) for at in range(25_000)]}
    assert names(content)["net"] == ["w"]


def test_a_foreign_file_cannot_replace_methods() -> None:
    """Attributes of dictionaries and parameters come from the file too."""
    weight = nn.Parameter(torch.ones(2))
    weight.detach = weight.isfinite = nn.functional.relu  # type: ignore[method-assign]
    state = nn.Linear(1, 1).state_dict()
    state.items = state.get = nn.functional.relu  # type: ignore[method-assign]
    state["mine"] = weight
    found = tables_of(state)[""]  # pickles would need other functions to be written, but can set any attribute
    assert list(found) == ["weight", "bias", "mine"]
    assert bool(found["mine"].isfinite().all())
