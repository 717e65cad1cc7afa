"""Detectors in small: they return maps or boxes, which are taken as values."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks.blocks import Residual, Trunk, conv, mobile_trunk, separable


class FastestDet(nn.Module):
    """One map at 1/16 of the image: object score, box and classes of each cell, from three joined scales."""

    def __init__(self, classes: int = 8) -> None:
        super().__init__()
        self.trunk = mobile_trunk(3)
        self.fuse = conv(32 + 48 + 64, 64, 1)
        self.pools = nn.ModuleList([nn.Sequential(*[separable(64, 64, 5) for _ in range(i + 1)]) for i in range(3)])
        self.join = nn.Sequential(nn.Conv2d(192, 64, 1, bias=False), nn.BatchNorm2d(64))
        self.object = nn.Sequential(separable(64, 64, 5), nn.Conv2d(64, 1, 1), nn.Sigmoid())
        self.box = nn.Sequential(separable(64, 64, 5), nn.Conv2d(64, 4, 1))
        self.classes = nn.Sequential(separable(64, 64, 5), nn.Conv2d(64, classes, 1), nn.Softmax(1))

    def forward(self, x: Tensor) -> Tensor:
        one, two, three = self.trunk(x)
        up = F.interpolate(three, scale_factor=2.0)
        x = self.fuse(torch.cat([F.avg_pool2d(one, 3, 2, 1), two, up], 1))
        x = torch.relu(x + self.join(torch.cat([pool(x) for pool in self.pools], 1)))
        return torch.cat([self.object(x), self.box(x), self.classes(x)], 1)


class SSD(nn.Module):
    """Boxes and scores of all cells of three maps, joined to [N, boxes, numbers]."""

    def __init__(self, classes: int = 5, anchors: int = 3) -> None:
        super().__init__()
        self.trunk, self.extra = mobile_trunk(2), conv(64, 64, 3, 2, act=nn.ReLU6)
        self.classes = classes
        self.scores = nn.ModuleList(nn.Conv2d(c, anchors * classes, 3, padding=1) for c in (48, 64, 64))
        self.boxes = nn.ModuleList(nn.Conv2d(c, anchors * 4, 3, padding=1) for c in (48, 64, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.trunk(x)
        maps.append(self.extra(maps[-1]))
        scores = [layer(each).permute(0, 2, 3, 1).flatten(1) for layer, each in zip(self.scores, maps, strict=True)]
        boxes = [layer(each).permute(0, 2, 3, 1).flatten(1) for layer, each in zip(self.boxes, maps, strict=True)]
        scored = torch.cat(scores, 1).reshape(x.shape[0], -1, self.classes)
        return torch.cat(boxes, 1).reshape(x.shape[0], -1, 4), torch.softmax(scored, -1)


class CrossStage(nn.Module):
    """Half of the channels pass residual blocks and the other half passes by, as in YOLOv5."""

    def __init__(self, channels: int, out: int, blocks: int = 1, shortcut: bool = True) -> None:
        super().__init__()
        half = out // 2
        self.one, self.two = conv(channels, half, 1, act=nn.SiLU), conv(channels, half, 1, act=nn.SiLU)
        inner = [nn.Sequential(conv(half, half, 1, act=nn.SiLU), conv(half, half, act=nn.SiLU)) for _ in range(blocks)]
        self.blocks = nn.Sequential(*map(Residual, inner) if shortcut else inner)
        self.join = conv(2 * half, out, 1, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(torch.cat([self.blocks(self.one(x)), self.two(x)], 1))


class PooledPyramid(nn.Module):
    """The values and three poolings of them, joined: SPPF."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = conv(channels, channels // 2, 1, act=nn.SiLU), conv(2 * channels, channels, 1, act=nn.SiLU)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.one(x)]
        for _ in range(3):
            found.append(self.pool(found[-1]))
        return self.two(torch.cat(found, 1))


class YOLO(nn.Module):
    """Two maps of anchors, decoded to boxes [N, boxes, 5 + classes], as YOLOv5 exports them."""

    def __init__(self, classes: int = 3, anchors: int = 2, size: int = 64) -> None:
        super().__init__()
        stem = nn.Sequential(conv(3, 16, 3, 2, act=nn.SiLU), conv(16, 32, 3, 2, act=nn.SiLU), CrossStage(32, 32))
        middle = nn.Sequential(conv(32, 48, 3, 2, act=nn.SiLU), CrossStage(48, 48))
        last = nn.Sequential(conv(48, 64, 3, 2, act=nn.SiLU), CrossStage(64, 64), PooledPyramid(64))
        self.trunk = Trunk(stem, middle, last, kept=2)
        self.lateral, self.fuse = conv(64, 48, 1, act=nn.SiLU), CrossStage(96, 48, shortcut=False)
        self.down, self.deep = conv(48, 48, 3, 2, act=nn.SiLU), CrossStage(96, 64, shortcut=False)
        self.numbers, self.anchors = 5 + classes, anchors
        self.heads = nn.ModuleList(nn.Conv2d(c, anchors * self.numbers, 1) for c in (48, 64))
        for place, cells in enumerate((size // 8, size // 16)):
            y, x = torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="ij")
            self.register_buffer(f"grid{place}", torch.stack([x, y], -1).float().view(1, 1, cells, cells, 2))
            self.register_buffer(f"sizes{place}", (torch.rand(1, anchors, 1, 1, 2) + 0.5) * 8 * 2**place)

    def forward(self, x: Tensor) -> Tensor:
        two, three = self.trunk(x)
        lateral = self.lateral(three)
        two = self.fuse(torch.cat([F.interpolate(lateral, scale_factor=2.0, mode="nearest"), two], 1))
        three = self.deep(torch.cat([self.down(two), lateral], 1))
        return torch.cat([self._decoded(place, maps) for place, maps in enumerate((two, three))], 1)

    def _decoded(self, place: int, x: Tensor) -> Tensor:
        n, _, h, w = (x := self.heads[place](x)).shape
        x = x.view(n, self.anchors, self.numbers, h, w).permute(0, 1, 3, 4, 2).sigmoid()
        grid, sizes = getattr(self, f"grid{place}"), getattr(self, f"sizes{place}")
        centre = (x[..., 0:2] * 2 - 0.5 + grid) * 8 * 2**place
        extent = (x[..., 2:4] * 2) ** 2 * sizes
        return torch.cat([centre, extent, x[..., 4:]], -1).view(n, -1, self.numbers)


class CenterNet(nn.Module):
    """Heat maps of classes with sizes and offsets, from features that are scaled up by transposed convolutions."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.trunk, layers, channels = mobile_trunk(1), list[nn.Module](), 64
        for out in (48, 32):
            up = nn.ConvTranspose2d(channels, out, 4, 2, 1, bias=False)
            layers += [up, nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        self.up = nn.Sequential(*layers)
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, out, 1))
                for name, out in (("heat", classes), ("size", 2), ("offset", 2))
            }
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.up(self.trunk(x)[-1])
        found = {name: layer(x) for name, layer in self.heads.items()}
        return {**found, "heat": found["heat"].sigmoid()}


class FaceBoxes(nn.Module):
    """Scores, boxes and landmarks of faces from a pyramid of two maps, with leaky rectifiers, as RetinaFace has."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = mobile_trunk(2)
        self.lateral = nn.ModuleList(conv(c, 32, 1, act=_leaky) for c in (48, 64))
        self.merge = conv(32, 32, act=_leaky)
        self.heads = nn.ModuleList(nn.ModuleList(nn.Conv2d(32, 2 * size, 1) for _ in range(2)) for size in (4, 2, 10))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        one, two = (layer(each) for layer, each in zip(self.lateral, self.trunk(x), strict=True))
        one = self.merge(one + F.interpolate(two, size=one.shape[2:], mode="nearest"))
        found = []
        for layers, size in zip(self.heads, (4, 2, 10), strict=True):
            rows = [layer(each).permute(0, 2, 3, 1) for layer, each in zip(layers, (one, two), strict=True)]
            found.append(torch.cat([row.contiguous().view(row.shape[0], -1, size) for row in rows], 1))
        boxes, scores, landmarks = found
        return boxes, F.softmax(scores, -1), landmarks


def _leaky() -> nn.Module:
    return nn.LeakyReLU(0.1)
