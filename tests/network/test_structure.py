from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from answers import ANSWERS, answering
from helpers import CLASSES, SIZE, Head, conv, network, traced
from torch import Tensor, nn
from torch.nn import functional as F

from acq.network.constants import shape_of
from acq.network.names import name_of
from acq.network.structure import NetworkStructure, structure_of
from acq.network.teacher import Teacher
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
    found = structure(name).features
    assert found is not None
    assert name_of(found.node) == features


def test_norms_are_in_order_of_execution() -> None:
    """Every batch norm over images is found, those of one axis are not."""
    names = [name_of(norm) for norm in structure("residual").norms]
    assert names == ["stem.1", "middle.0.block.1", "middle.2.block.1"]


class TwoOpinions(nn.Module):
    """Logits are means of two sets of scores."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = conv(3, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3))).view(-1, 2, 5).mean(1)


def test_a_layer_with_two_rows_per_logit_is_no_head() -> None:
    found = structure_of(trace(TwoOpinions().eval(), SIZE))
    assert found.features is not None
    assert (found.head, found.last_weight) == (None, None)


@pytest.mark.parametrize(
    ("network", "weight"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), "1.weight"),
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.LogSoftmax(1)), "1.weight"),
        (nn.Sequential(nn.Conv2d(3, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "0.weight"),
        (nn.Sequential(nn.Conv2d(3, 5, 3, padding="same"), nn.AdaptiveAvgPool2d(1), nn.Flatten(1)), "0.weight"),
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.ReLU()), None),
        (nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), None),
    ],
)
def test_the_weight_of_the_last_layer_is_found(network: nn.Module, weight: str | None) -> None:
    """It may be of a linear layer or a convolution, before reshapes, means and softmax, with a row per logit."""
    found = structure_of(trace(network.eval(), (3, 4, 4))).last_weight
    assert (None if found is None else str(found.target)) == weight


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


class Attention(nn.Module):
    """Multi-head attention over the places of a map, whose inner tensors are [N, heads, places, d]."""

    def __init__(self, back: bool) -> None:
        super().__init__()
        self.attention, self.back = nn.MultiheadAttention(8, 2, batch_first=True), back

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return tokens.transpose(1, 2).reshape(x.shape) if self.back else tokens.mean(1)


class Places(nn.Module):
    """Operators that keep places: a layer norm over channels and a scaled sum, as in ConvNeXt, and a shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.linear(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


@pytest.mark.parametrize(
    ("model", "features"),
    [
        (nn.Sequential(conv(3, 8), nn.ReLU(), Attention(back=False), nn.Linear(8, 5)), "1"),
        (nn.Sequential(conv(3, 8), Attention(back=True), nn.ReLU(), Head(8)), "0.1"),
        (nn.Sequential(conv(3, 8), Attention(back=True), conv(8, 8), nn.MaxPool2d(2), Head(8)), "3"),
        (nn.Sequential(conv(3, 8), Places(), Head(8)), "1.reshape_2"),
        (nn.Sequential(conv(3, 8, stride=2), nn.Upsample(scale_factor=2), nn.Softmax(1), Head(8)), "2"),
    ],
)
def test_features_are_maps_and_no_attention(model: nn.Module, features: str) -> None:
    """Features descend from a convolution by operators that keep places; tensors of attention heads are none."""
    found = structure_of(trace(model.eval(), SIZE)).features
    assert found is not None
    assert name_of(found.node) == features


def without_norms() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Head(8))


def without_space() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 16), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5))


def test_a_network_may_have_no_batch_norms() -> None:
    """Features and head are found all the same."""
    found = structure_of(trace(without_norms().eval(), SIZE))
    assert (found.norms, found.normalised) == ((), False)
    assert found.features is not None
    assert name_of(found.features.node) == "1"
    assert found.head is not None


@pytest.mark.parametrize("make", [lambda: network("two linears"), without_space])
def test_a_network_may_have_no_features_with_places(make: Callable[[], nn.Module]) -> None:
    """Layers of vectors, and maps of less than four cells, have no places; then there is no head for attention."""
    found = structure_of(trace(make().eval(), SIZE))
    assert (found.features, found.head) == (None, None)
    assert not found.traits.spatial


class Written(nn.Module):
    """A head that is written by hand; ``logits`` makes them of pooled features [N, 8] and a matrix [8, 5]."""

    def __init__(self, logits: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.weight, self.logits = conv(3, 8), nn.Parameter(torch.ones(8, 5)), logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.body(x).mean((2, 3)), self.weight)


@pytest.mark.parametrize(
    "logits",
    [
        lambda x, w: x @ w,
        lambda x, w: torch.addmm(torch.ones(5), x, w),
        lambda x, w: x @ w + torch.arange(5.0),
        lambda x, w: F.linear(x, w.t()) / 0.07,
        lambda x, w: ((x @ w - 1) * torch.arange(1, 6.0)).softmax(1),
    ],
)
def test_a_head_that_is_written_by_hand_is_found(logits: Callable[[Tensor, Tensor], Tensor]) -> None:
    """A product with a matrix, with a bias or a temperature behind it; its weight has a row per class."""
    graph = trace(Written(logits).eval(), SIZE)
    found = structure_of(graph)
    assert found.head is not None
    assert found.head is found.last_weight
    assert shape_of(found.head) == (5, 8)
    rows = Teacher(graph).answer_rows()
    assert rows is not None
    assert rows.shape == (5, 8)


@pytest.mark.parametrize("logits", [lambda x, w: -(x @ w), lambda x, w: (x @ w) * torch.tensor([1.0, 1, 0, 1, 1])])
def test_a_head_that_is_turned_round_is_none(logits: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Its weights do not say which features speak for a class."""
    assert structure_of(trace(Written(logits).eval(), SIZE)).head is None


@pytest.mark.parametrize("name", ANSWERS)
def test_the_head_is_found_behind_the_end_of_a_network(name: str) -> None:
    """A softmax, a sigmoid, a shape and other outputs do not hide the linear layer of the logits."""
    graph = trace(answering(name), SIZE)
    head = structure_of(graph).head
    assert head is not None
    assert str(head.target) == ("side.weight" if "one" in name or name == "flat" else "head.weight")
