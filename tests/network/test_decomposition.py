from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from helpers import NETWORKS, SIZE, Applied, Chain, conv, images, network
from torch import Tensor, fx, nn
from torch.nn import functional as F

from acq.errors import RequestError
from acq.network.decomposition import decompositions
from acq.network.operators import VOCABULARY, operator_of
from acq.network.trace import trace


class Attention(nn.Module):
    """Multi-head attention over the places of a feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        found = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return x + found.transpose(1, 2).reshape(x.shape)


def own_attention(x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    return F.scaled_dot_product_attention(tokens, tokens * 2, tokens).transpose(1, 2).reshape(x.shape)


def causal(x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    return F.scaled_dot_product_attention(tokens, tokens, tokens, is_causal=True).transpose(1, 2).reshape(x.shape)


def warped(x: Tensor) -> Tensor:
    theta = torch.tensor([[1.0, 0.1, 0.0], [0.0, 0.9, 0.1]]).expand(x.shape[0], 2, 3)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


def norms(x: Tensor) -> Tensor:
    return sum(F.normalize(x, p, dim=1) for p in (1.0, 2.0, 3.0, float("inf"))) + x.norm(dim=(2, 3), keepdim=True)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "group norm": lambda: nn.GroupNorm(2, 8),
    "group norm of a slice": lambda: nn.Sequential(Applied(lambda x: x[:, ::2]), nn.GroupNorm(2, 4), conv(4, 8)),
    "instance norm": lambda: nn.InstanceNorm2d(8, affine=True),
    "instance norm with statistics": lambda: nn.InstanceNorm2d(8, track_running_stats=True),
    "prelu": lambda: nn.PReLU(8),
    "softmax": lambda: nn.Softmax(1),
    "log-softmax": lambda: nn.LogSoftmax(1),
    "einsum": lambda: Applied(lambda x: torch.einsum("nchw,ndhw->ncd", x, x)[..., None] * x[:, None, :, 0]),
    "attention": Attention,
    "attention as a function": lambda: Applied(own_attention),
    "causal attention": lambda: Applied(causal),
    "norms": lambda: Applied(norms),
    "warp": lambda: Applied(warped),
    "maximum": lambda: Applied(lambda x: torch.maximum(x, x.max(1, keepdim=True)[0] / 2)),
    "transposed convolution": lambda: nn.ConvTranspose2d(8, 8, 2, 2),
    "indices": lambda: Applied(lambda x: x[:, [2, 1, 0, 3, 4, 5, 6, 7]]),
    "lp pool": lambda: nn.LPPool2d(2, 2),
    "bicubic": lambda: nn.Upsample(scale_factor=2, mode="bicubic"),
    "threshold": lambda: nn.Threshold(0.1, 0.0),
    "log-sum-exp": lambda: Applied(lambda x: x * torch.logsumexp(x, (2, 3), keepdim=True)),
    "variance": lambda: Applied(lambda x: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1).sqrt()),
    "unfolded": lambda: Applied(lambda x: x.unfold(2, 3, 2).mean(-1)),
    "variance and mean": lambda: Applied(lambda x: sum(torch.var_mean(x, 1, keepdim=True)) + x),
    "extremes": lambda: Applied(lambda x: x.amax(1, keepdim=True) - x.amin(1, keepdim=True) + x),
    "3 dimensions": lambda: Applied(lambda x: F.avg_pool3d(x[:, None], 3, 1, 1)[:, 0]),
    "in place": lambda: nn.Sequential(nn.ELU(inplace=True), Applied(lambda x: x.mul_(2).add_(x))),
}


def known(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return operator_of(node) in VOCABULARY or torch.Tag.core in tags or operator_of(node).startswith("_operator.")


@pytest.mark.parametrize("kind", MODULES)
def test_operators_become_known_ones_and_compute_the_same(kind: str) -> None:
    """A trace holds operators of the planner and of torch's core set alone, and gives the network's numbers."""
    torch.manual_seed(0)
    model = Chain(nn.ReLU(), MODULES[kind]()).eval()
    graph = trace(model, SIZE)
    assert [node for node in graph.graph.nodes if node.op == "call_function" and not known(node)] == []
    for count in (1, 3):
        with torch.no_grad():
            torch.testing.assert_close(graph(images(count)), model(images(count)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_the_planner_knows_stays_whole(name: str) -> None:
    """Decomposition changes no usual network: its operators are those of an export that only removes in-place calls."""
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    model = network(name)
    exported = torch.export.export(model, (images(2),), dynamic_shapes=({0: batch},))
    plain, whole = exported.run_decompositions({}), exported.run_decompositions(decompositions())
    assert [str(node.target) for node in whole.graph.nodes] == [str(node.target) for node in plain.graph.nodes]


def test_the_table_keeps_the_planners_operators_and_the_core_set() -> None:
    """No rule takes apart an operator that a graph may hold."""
    table = decompositions()
    assert not [key for key in table if str(key) in VOCABULARY or torch.Tag.core in getattr(key, "tags", ())]


def dropped(x: Tensor) -> Tensor:
    return F.dropout(x, 0.5, training=True)


class StaysOn(nn.Module):
    """Dropout that its owner switches on again in each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout2d(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop.train()(x)


@torch.library.custom_op("acq_tests::halve", mutates_args=())
def halve(x: Tensor) -> Tensor:
    return x / 2


@halve.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@pytest.mark.parametrize(
    ("part", "fact"),
    [
        (Applied(dropped), "dropout stays on in eval mode .*F.dropout.*training=self.training"),
        (StaysOn(), "random numbers in eval mode"),
        (Applied(lambda x: x + torch.rand_like(x)), "aten.rand_like.default draws random numbers .*self.training"),
        (Applied(lambda x: x * torch.bernoulli(torch.sigmoid(x))), "draws random numbers"),
        (Applied(halve), "operator acq_tests.halve.default in middle.0 is none of torch's core operators"),
        (Applied(lambda x: x * torch.linalg.det(x)[..., None, None]), "linalg_det.* in middle.0 is none of torch's"),
        (Applied(lambda x: x * x.max().item()), "depend on the images' values"),
    ],
)
def test_operators_without_a_fixed_result_and_unknown_ones_are_refused(part: nn.Module, fact: str) -> None:
    """The refusal is one line that names the operator and the line of the network's own code."""
    with pytest.raises(RequestError, match=fact) as caught:
        trace(Chain(part), SIZE)
    file = "test_decomposition.py" if isinstance(part, StaysOn) else "helpers.py"  # of the forward that calls it
    assert re.search(rf"{file}, line \d+\)", str(caught.value))
    assert "\n" not in str(caught.value)


def by_hand(x: Tensor) -> Tensor:
    """An instance norm as a batch norm of one image with all channels."""
    n, c, h, w = x.shape
    return F.batch_norm(x.reshape(1, n * c, h, w), None, None, training=True).reshape(n, c, h, w)


def test_batch_norms_without_statistics_are_refused_by_name() -> None:
    """All of them are named, whatever keeps its statistics; a norm within each image is none of them."""
    layers = [nn.BatchNorm2d(8, track_running_stats=False) for _ in range(7)]
    with pytest.raises(
        RequestError, match=r"statistics: 'middle.0', .*'middle.4' and 2 more; .*track_running_stats=True"
    ):
        trace(Chain(*layers), SIZE)
    assert trace(Chain(Applied(by_hand)), SIZE)(images(2)).shape == (2, 5)


class Trains(nn.Module):
    """Puts its batch norm back into training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm.train()(x)


def test_batch_norms_in_training_mode_are_refused_by_name() -> None:
    """They have statistics and do not use them, so the way out is another."""
    with pytest.raises(RequestError, match=r"in training mode: 'middle.0.norm'; .* leave them in eval mode"):
        trace(Chain(Trains()), SIZE)
