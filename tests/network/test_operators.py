from __future__ import annotations

import operator

import torch
from helpers import traced

from acq.network.names import name_of
from acq.network.operators import ROLES, VOCABULARY, Role, float_inputs, is_constant, is_float, operator_of

aten = torch.ops.aten


def test_every_operator_of_the_table_exists() -> None:
    """Each name is an operator of this torch, so that none is misspelt."""
    for name in VOCABULARY - {"_operator.getitem"}:
        _, packet, overload = name.split(".")
        assert getattr(getattr(aten, packet), overload) is not None, name
    assert operator.getitem.__module__ == "_operator"


def test_the_table_assigns_only_roles_of_operators() -> None:
    """Roles that depend on more than the operator are the planner's to assign."""
    decided = {Role.IMAGE, Role.FOLD, Role.RESCALE, Role.PAD, Role.CONSTANT, Role.FLOAT}
    assert set(ROLES.values()) == set(Role) - decided


def test_roles_are_text() -> None:
    """A role equals its text, so plans can be saved and compared as JSON."""
    assert Role.RECTIFIER == "rectifier"
    assert ROLES["aten.relu.default"] is Role.RECTIFIER


def test_operators_are_named() -> None:
    """Nodes of a trace have ATen's names; the placeholder is the image."""
    names = {
        name_of(node): operator_of(node)
        for node in traced("dense").graph.nodes
        if node.op in ("placeholder", "call_function")
    }
    assert names["image"] == "image"
    assert names["stem.0"] == "aten.conv2d.default"
    assert names["middle.0.cat"] == "aten.cat.default"


def test_values_are_told_from_constants_and_sizes() -> None:
    """Only floating-point tensors that depend on the image are float inputs."""
    nodes = {name_of(node): node for node in traced("resnet").graph.nodes}
    assert [name_of(node) for node in float_inputs(nodes["conv1"])] == ["image"]
    assert is_constant(nodes["conv1.weight"])
    assert not is_constant(nodes["conv1"])
    assert is_float(nodes["conv1"])
    assert not is_float(nodes["sym_size"])
