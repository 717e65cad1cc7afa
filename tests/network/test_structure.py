from __future__ import annotations

from collections.abc import Callable

import pytest
from helpers import CLASSES, SIZE, Head, network, traced
from torch import nn

from acq.errors import RequestError
from acq.network.names import name_of
from acq.network.structure import NetworkStructure, structure_of
from acq.network.trace import trace


def structure(name: str) -> NetworkStructure:
    return structure_of(traced(name))


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("residual", "middle.2.relu_2"),
        ("relu6", "middle.2"),
        ("pre-activation", "middle.1.add"),
        ("all convolutional", "relu"),
    ],
)
def test_features_are_the_last_map_before_the_logits(name: str, features: str) -> None:
    """The last feature map with at least four cells is what the head reads, however the network is written."""
    assert name_of(structure(name).features) == features


def test_norms_are_in_order_of_execution() -> None:
    """Every batch norm over images is found, those of one axis are not."""
    names = [name_of(norm) for norm in structure("residual").norms]
    assert names == ["stem.1", "middle.0.block.1", "middle.2.block.1"]


@pytest.mark.parametrize(
    ("name", "head"), [("residual", "head.fc.weight"), ("dense", "head.fc.weight"), ("all convolutional", None)]
)
def test_a_linear_head_is_found_by_what_it_reads(name: str, head: str | None) -> None:
    """The head is the weight of a linear layer on pooled features, and None where logits come from elsewhere."""
    found = structure(name).head
    assert (None if found is None else str(found.target)) == head


@pytest.mark.parametrize(("name", "depthwise"), [("relu6", True), ("residual", False)])
def test_classes_and_depthwise_convolutions_are_known(name: str, depthwise: bool) -> None:
    """The structure has the number of classes, and says whether a convolution is depthwise."""
    assert structure(name).answer.output == CLASSES
    assert structure(name).depthwise == depthwise


def without_norms() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Head(8))


def without_statistics() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(), Head(8))


def without_space() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 16), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5))


@pytest.mark.parametrize(
    ("make", "fact"),
    [
        (without_norms, "no BatchNorm2d layer"),
        (without_statistics, "no BatchNorm2d layer"),
        (lambda: network("two linears"), "no BatchNorm2d layer"),
        (without_space, r"no feature map .* at least 4 cells .*--input-size"),
    ],
)
def test_missing_parts_are_named(make: Callable[[], nn.Module], fact: str) -> None:
    """A network without batch norms over images, or without feature maps, is refused in one line."""
    with pytest.raises(RequestError, match=fact) as caught:
        structure_of(trace(make().eval(), SIZE))
    assert "\n" not in str(caught.value)
