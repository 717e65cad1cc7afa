"""Tiny networks with attention or layer norms, one for each style in which they are written."""

from __future__ import annotations

from collections.abc import Callable

import torch
from helpers import settled
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS = 16, 2


class Patches(nn.Module):
    """An image as tokens [N, T, C]; ``token`` adds one for the class, ``positions`` are added to all."""

    def __init__(self, token: bool, tokens: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 4, 4), nn.BatchNorm2d(WIDTH))
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH)) if token else None
        self.positions = nn.Parameter(torch.zeros(1, tokens + token, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return x + self.positions


class Attention(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused, self.qkv, self.proj = fused, nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * (c // HEADS) ** -0.5).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(n, t, c))


class Block(nn.Module):
    """Attention and two layers, each behind a norm and beside the sum; ``scaled`` adds a layer scale."""

    def __init__(self, fused: bool = True, scaled: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), Attention(fused)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.scale1, self.scale2 = (nn.Parameter(torch.ones(WIDTH)) if scaled else 1.0 for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale1 * self.attention(self.norm1(x))
        return x + self.scale2 * self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A vision transformer whose head reads the class token, or the mean of all tokens."""

    def __init__(self, token: bool = True, fused: bool = True, scaled: bool = False) -> None:
        super().__init__()
        self.token, self.patches, self.block = token, Patches(token, 16), Block(fused, scaled)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.block(self.patches(x)))
        return self.head(x[:, 0] if self.token else x.mean(1))


class Encoder(nn.Module):
    """The layer of torch, with its norms before or behind each part."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.patches = Patches(False, 16)
        self.layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 2 * WIDTH, activation="gelu", batch_first=True, norm_first=norm_first
        )
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.patches(x)).mean(1))


class Sequence(nn.Module):
    """Multi-head attention of torch on tokens [T, N, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = Patches(False, 16), nn.LayerNorm(WIDTH)
        self.attention, self.head = nn.MultiheadAttention(WIDTH, HEADS), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.patches(x)).transpose(0, 1)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x.mean(0))


class Windows(nn.Module):
    """Attention within shifted windows of 2 x 2 places, with a mask and a table of relative positions."""

    def __init__(self, places: int = 4, window: int = 2, shift: int = 1) -> None:
        super().__init__()
        self.places, self.window, self.shift = places, window, shift
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 4, 4), nn.BatchNorm2d(WIDTH))
        self.norm, self.out = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)
        self.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, HEADS))
        places_of = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        apart = places_of[:, None] - places_of[None] + window - 1
        self.register_buffer("index", apart[..., 0] * (2 * window - 1) + apart[..., 1])

    def cut(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        x = x.view(n, h // self.window, self.window, w // self.window, self.window, c)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, self.window**2, c)

    def mask(self) -> Tensor:
        areas = torch.zeros(1, self.places, self.places, 1)
        ends = (slice(0, -self.window), slice(-self.window, -self.shift), slice(-self.shift, None))
        for count, (rows, columns) in enumerate((a, b) for a in ends for b in ends):
            areas[:, rows, columns] = count
        found = self.cut(areas).squeeze(2)
        return torch.zeros(1).where(found[:, None] == found[:, :, None], torch.tensor(-100.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        y = self.cut(torch.roll(self.norm(x), (-self.shift, -self.shift), (1, 2)))
        n, t, c = y.shape
        q, k, v = self.qkv(y).reshape(n, t, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        a = q * (c // HEADS) ** -0.5 @ k.transpose(-2, -1)
        a = a + self.table[self.index.view(-1)].view(t, t, HEADS).permute(2, 0, 1)
        mask = self.mask()
        a = a.view(-1, len(mask), HEADS, t, t) + mask.unsqueeze(1)
        y = self.proj((a.view(-1, HEADS, t, t).softmax(-1) @ v).transpose(1, 2).reshape(n, t, c))
        side = self.places // self.window
        y = y.view(-1, side, side, self.window, self.window, c).permute(0, 1, 3, 2, 4, 5).reshape(x.shape)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return self.head(self.out(x).mean((1, 2)))


class ConvNeXt(nn.Module):
    """A block of ConvNeXt: a depthwise convolution, a norm of channels, two layers, and a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 2, 2), nn.BatchNorm2d(WIDTH))
        self.depthwise = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.norm, self.scale = nn.LayerNorm(WIDTH), nn.Parameter(torch.ones(WIDTH))
        self.wide, self.narrow = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.out, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(F.gelu(self.wide(y)))
        x = x + y.permute(0, 3, 1, 2)
        return self.head(self.out(x.mean((2, 3))))


class Hybrid(nn.Module):
    """MobileViT: tokens between convolutions, joined with what came before."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.SiLU())
        self.block, self.norm = Block(), nn.LayerNorm(WIDTH)
        self.fuse = nn.Sequential(nn.Conv2d(2 * WIDTH, WIDTH, 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.SiLU())
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.block(x.flatten(2).transpose(1, 2))).transpose(1, 2).unflatten(2, x.shape[2:])
        return self.head(self.fuse(torch.cat([x, y], 1)).mean((2, 3)))


TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {
    "class token": ViT,
    "mean of tokens": lambda: ViT(token=False, fused=False),
    "layer scale": lambda: ViT(scaled=True),
    "norms before": lambda: Encoder(True),
    "norms behind": lambda: Encoder(False),
    "sequence first": Sequence,
    "shifted windows": Windows,
    "convnext": ConvNeXt,
    "hybrid": Hybrid,
}


def transformer(name: str, seed: int = 0) -> nn.Module:
    """A network of this file with random weights, for images of ``helpers.SIZE``."""
    return settled(TRANSFORMERS[name](), seed)
