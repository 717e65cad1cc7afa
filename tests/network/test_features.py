from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import SIZE, settled
from torch import Tensor, nn
from transformers import WIDTH, Block, ConvNeXt, Patches, ViT, Windows, transformer

from acq.network.features import Features, pooled
from acq.network.names import name_of
from acq.network.structure import structure_of
from acq.network.teacher import Teacher
from acq.network.trace import trace


class Tokens(nn.Module):
    """Blocks on tokens, some of which are added in front, and a head that reads the first one or the mean."""

    def __init__(self, more: int = 0, first: bool = False) -> None:
        super().__init__()
        self.first, self.stem, self.block = first, nn.Conv2d(3, WIDTH, 4, 4), Block()
        self.more = nn.Parameter(torch.zeros(1, more, WIDTH)) if more else None
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        if self.more is not None:
            x = torch.cat([self.more.expand(len(x), -1, -1), x], 1)
        x = self.norm(self.block(x))
        return self.head(x[:, 0] if self.first else x.mean(1))


class Linear(nn.Module):
    """Patches by a reshape and a linear layer: no convolution says where a token is."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(48, WIDTH), Block(), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(2, (4, 4)).unflatten(4, (4, 4)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return self.head(self.block(self.embed(x)).mean(1))


class Channels(nn.Module):
    """A map whose channels are as many as its places, flattened before it is pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).relu().flatten(2).mean(2))


def features_of_(model: nn.Module) -> Features | None:
    return structure_of(trace(settled(model), SIZE)).features


@pytest.mark.parametrize(
    ("make", "name", "channels"),
    [
        (Tokens, "norm", WIDTH),
        (lambda: Tokens(1, first=True), "norm", WIDTH),
        (lambda: Tokens(2), "norm", WIDTH),
        (lambda: Tokens(3), "stem", WIDTH),
        (lambda: ViT(token=False), "norm", WIDTH),
        (ConvNeXt, "add", WIDTH),
        (Channels, "relu", 16),
    ],
)
def test_features_are_the_last_values_with_places(make: Callable[[], nn.Module], name: str, channels: int) -> None:
    """Tokens behind a map have its places, with up to two more in front; channels of a flat map are no places."""
    found = features_of_(make())
    assert found is not None
    assert (name_of(found.node), found.channels, len(found.grid)) == (name, channels, 2)


@pytest.mark.parametrize("make", [Linear, lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 5))])
def test_tokens_without_a_convolution_have_no_grid(make: Callable[[], nn.Module]) -> None:
    """Nothing tells the places of tokens that come from a reshape."""
    assert features_of_(make()) is None


@pytest.mark.parametrize("more", [0, 1, 2])
def test_tokens_become_a_map(more: int) -> None:
    """The last tokens are the places row by row; those in front of them are left out."""
    found = features_of_(Tokens(more))
    assert found is not None
    values = torch.randn(2, 16 + more, WIDTH)
    seen = found.as_map(values)
    assert seen.shape == (2, WIDTH, 4, 4)
    assert torch.equal(seen[:, :, 1, 2], values[:, more + 6])


def test_the_mean_over_places_has_the_channels() -> None:
    """Maps and tokens are pooled alike."""
    maps = torch.randn(2, 8, 3, 4)
    torch.testing.assert_close(pooled(maps), pooled(maps.flatten(2).transpose(1, 2)))


def test_attention_of_tokens_is_their_class_activation() -> None:
    """A head that is the mean of tokens and a linear layer gives class activation: its mean is the answer's score."""
    teacher = Teacher(trace(settled(Tokens()), SIZE))
    output = teacher.read(torch.randn(3, *SIZE))
    assert teacher.structure.head is not None
    assert output.attention.shape == (3, 4, 4)
    torch.testing.assert_close(output.attention.sum((1, 2)), torch.ones(3))
    assert output.centre.shape == (3, 2)


@pytest.mark.parametrize("name", ["class token", "mean of tokens", "norms before", "sequence first", "hybrid"])
def test_every_transformer_of_the_tests_has_features(name: str) -> None:
    """Whatever the style, features are found behind the first block or at its end."""
    assert features_of_(transformer(name)) is not None


def test_a_teacher_without_features_sees_nothing() -> None:
    """Features, attention and centre have no numbers, and the logits are those of the network."""
    model = settled(Linear())
    teacher = Teacher(trace(model, SIZE))
    images = torch.randn(3, *SIZE)
    output = teacher.read(images)
    assert (output.features.shape, output.attention.shape, output.centre.shape) == ((3, 0), (3, 0, 0), (3, 0))
    torch.testing.assert_close(output.logits, model(images))
    assert teacher.features is None


def test_windows_keep_the_features_of_their_grid() -> None:
    """Features of attention within windows are found, because the network puts the windows back."""
    assert features_of_(Windows()) is not None
    assert Patches(False, 16)(torch.randn(1, *SIZE)).shape == (1, 16, WIDTH)
