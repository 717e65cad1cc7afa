from __future__ import annotations

import pytest
import torch
from torch import nn

from acq.zoo.fitting import bare, distinct, fits, own_name, pairs, places_of

OWN = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict()


@pytest.mark.parametrize(
    ("path", "averaged"),
    [
        ("state_dict_ema", True), ("ema", True), ("model.ema_model.module", True), ("modelEMA", True),
        ("swa_net", True), ("averaged", True), ("avg.0", True), ("model", False), ("schema", False),
        ("avgpool", False), ("", False),
    ],
)  # fmt: skip
def test_averaged_weights_are_known_by_a_word_of_their_path(path: str, averaged: bool) -> None:
    """Not by a part of a word."""
    (place,) = places_of({path: OWN}, OWN, None)
    assert place.is_averaged == averaged


def test_places_are_split_at_any_dot() -> None:
    """A nest and a prefix are the same, and what lies beside is told apart."""
    flat = {f"net.{name}": value for name, value in OWN.items()} | {"loss": torch.zeros(1), "net.x": torch.zeros(1)}
    (place,) = [place for place in places_of({"model": flat}, OWN, None) if fits(place, OWN)]
    assert (place.path, place.unexpected, place.outside) == ("model.net", ("x",), ("loss",))
    assert [place.path for place in places_of({"model": flat}, OWN, "model.net")] == ["model.net"]
    assert places_of({"model": flat}, OWN, "mod") == []


def test_two_tables_may_hold_one_network() -> None:
    """Its parts were saved one by one."""
    parts = {"0": nn.Linear(2, 3).state_dict(), "1": nn.BatchNorm1d(3).state_dict()}
    found = [place for place in places_of(parts, OWN, None) if fits(place, OWN)]
    assert [place.path for place in found] == [""]


def test_equal_places_are_one() -> None:
    """By values and types."""
    same = {name: value.clone() for name, value in OWN.items()}
    half = {name: value.half() for name, value in OWN.items()}
    assert [place.path for place in distinct(places_of({"a": OWN, "b": same, "c": half}, OWN, None))] == ["a", "c"]


def test_names_lose_what_wrappers_add() -> None:
    """Anywhere for compilation and sharding; in front for data parallelism of the network itself."""
    assert bare("_orig_mod.a._fsdp_wrapped_module.b") == "a.b"
    assert bare("module.a") == "module.a"
    assert own_name("module._orig_mod.module.a.module.b") == "a.module.b"
    assert own_name("module") == "module"


def test_renamed_weights_are_paired_by_shape_and_last_name() -> None:
    """Or not at all, if one has no partner."""
    others = {"x.bias": torch.zeros(3), "x.weight": torch.zeros(3, 2), "y.weight": torch.zeros(3)}
    assert pairs(["0.weight", "0.bias", "1.weight"], others, OWN) == {
        "0.weight": "x.weight", "0.bias": "x.bias", "1.weight": "y.weight",
    }  # fmt: skip
    assert pairs(["1.bias"], {"y.scale": torch.zeros(3)}, OWN) == {"1.bias": "y.scale"}
    assert pairs(["0.weight", "0.bias"], {"x.weight": torch.zeros(3, 2)}, OWN) == {}
