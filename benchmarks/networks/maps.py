"""Networks that return maps: segmentation, key points, and images."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks.blocks import Branches, Residual, conv, mobile_trunk, separable


class UNet(nn.Module):
    """Convolutions down and up again, each level joined with the one of its size."""

    def __init__(self, classes: int = 5, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        pairs = list(zip((3, *widths), widths, strict=False))
        self.down = nn.ModuleList(nn.Sequential(conv(c, out), conv(out, out)) for c, out in pairs)
        back = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(c, out, 2, 2) for c, out in back)
        self.join = nn.ModuleList(conv(2 * out, out) for _, out in back)
        self.out = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for layer in self.down:
            x = layer(x if not kept else F.max_pool2d(x, 2))
            kept.append(x)
        for up, join, other in zip(self.up, self.join, kept[-2::-1], strict=True):
            x = join(torch.cat([other, up(x)], 1))
        return self.out(x)


class Pyramid(nn.Module):
    """The module of ESPNet: dilated convolutions whose results are summed step by step, and joined."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        part = out // 4
        self.reduce = conv(channels, part, 1 if stride == 1 else 3, stride, act=lambda: nn.PReLU(part))
        self.layers = nn.ModuleList(nn.Conv2d(part, part, 3, padding=2**i, dilation=2**i, bias=False) for i in range(4))
        self.norm, self.act, self.same = nn.BatchNorm2d(out), nn.PReLU(out), stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.reduce(x)
        found = [layer(y) for layer in self.layers]
        for place in range(1, len(found)):
            found[place] = found[place] + found[place - 1]
        y = self.norm(torch.cat(found, 1))
        return self.act(x + y if self.same else y)


class ESPNet(nn.Module):
    """Segmentation by pyramids of dilated convolutions, with the image itself joined to deeper levels."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem, self.level1 = conv(3, 16, 3, 2, act=lambda: nn.PReLU(16)), Pyramid(19, 32, 2)
        self.level2, self.pool = nn.Sequential(Pyramid(32, 32), Pyramid(32, 32)), nn.AvgPool2d(3, 2, 1)
        self.reduce = nn.Conv2d(64, classes, 1, bias=False)
        self.up = nn.ConvTranspose2d(classes, classes, 2, 2, bias=False)
        self.join = conv(19 + classes, classes, act=lambda: nn.PReLU(classes))
        self.out = nn.ConvTranspose2d(classes, classes, 2, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        one = torch.cat([self.stem(x), self.pool(x)], 1)
        two = self.level1(one)
        two = torch.cat([self.level2(two), two], 1)
        return self.out(self.join(torch.cat([self.up(self.reduce(two)), one], 1)))


class DeepLab(nn.Module):
    """Dilated convolutions and the mean of the image beside each other, and bilinear scaling to the image's size."""

    def __init__(self, classes: int = 6) -> None:
        super().__init__()
        self.trunk, self.pooled = mobile_trunk(2), nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(64, 32, 1))
        self.parts = Branches(conv(64, 32, 1), *(conv(64, 32, 3, dilation=rate) for rate in (2, 4)))
        self.project, self.low, self.out = conv(128, 32, 1), conv(48, 16, 1), nn.Conv2d(48, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        low, y = self.trunk(x)
        mean = F.interpolate(self.pooled(y), size=y.shape[2:], mode="bilinear", align_corners=False)
        y = self.project(torch.cat([self.parts(y), mean], 1))
        y = F.interpolate(y, size=low.shape[2:], mode="bilinear", align_corners=False)
        y = self.out(torch.cat([self.low(low), y], 1))
        return F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)


class FastSCNN(nn.Module):
    """A fine and a coarse path that are added, with pools of several sizes between them."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.fine = nn.Sequential(conv(3, 16, 3, 2), separable(16, 24, 3, 2), separable(24, 32, 3, 2))
        self.coarse = nn.Sequential(separable(32, 48, 3, 2), separable(48, 48))
        self.pools = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(size), conv(48, 12, 1)) for size in (1, 2, 4))
        self.join, self.keep = conv(84, 32, 1, act=None), conv(32, 32, 1, act=None)
        self.out = nn.Sequential(separable(32, 32), nn.Dropout(0.1), nn.Conv2d(32, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        y = self.coarse(fine)
        pooled = [F.interpolate(pool(y), y.shape[2:], mode="bilinear", align_corners=True) for pool in self.pools]
        y = F.interpolate(self.join(torch.cat([y, *pooled], 1)), fine.shape[2:], mode="bilinear", align_corners=True)
        y = self.out(torch.relu(self.keep(fine) + y))
        return F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=True).softmax(1)


class Exchange(nn.Module):
    """The unit of HRNet: blocks at each resolution, then each receives the sum of all, scaled to its size."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        blocks = (Residual(nn.Sequential(conv(w, w), conv(w, w, act=None)), act=nn.ReLU()) for w in widths)
        self.blocks = nn.ModuleList(blocks)
        self.paths = nn.ModuleList(
            nn.ModuleList(_path(widths, source, place) for source in range(len(widths))) for place in range(len(widths))
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [block(each) for block, each in zip(self.blocks, maps, strict=True)]
        found = []
        for paths in self.paths:
            total = paths[0](maps[0])
            for path, each in zip(paths[1:], maps[1:], strict=True):
                total = total + path(each)
            found.append(F.relu(total))
        return found


def _path(widths: tuple[int, ...], source: int, place: int) -> nn.Module:
    if source == place:
        return nn.Identity()
    if source > place:
        up = nn.Upsample(scale_factor=2.0 ** (source - place), mode="nearest")
        return nn.Sequential(conv(widths[source], widths[place], 1, act=None), up)
    steps = [conv(widths[source], widths[source], 3, 2) for _ in range(place - source - 1)]
    return nn.Sequential(*steps, conv(widths[source], widths[place], 3, 2, act=None))


class HRNet(nn.Module):
    """Heat maps of key points from three resolutions that exchange values."""

    def __init__(self, points: int = 6, widths: tuple[int, ...] = (16, 24, 32)) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, 3, 2), conv(16, widths[0], 3, 2))
        self.smaller = nn.ModuleList(conv(c, out, 3, 2) for c, out in itertools.pairwise(widths))
        self.stages, self.out = nn.ModuleList([Exchange(widths), Exchange(widths)]), nn.Conv2d(widths[0], points, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.stem(x)]
        for layer in self.smaller:
            maps.append(layer(maps[-1]))
        for stage in self.stages:
            maps = stage(maps)
        return self.out(maps[0])


def super_resolution() -> nn.Module:
    """ESPCN: an image of twice the size, by a shuffle of channels to places."""
    layers = [nn.Conv2d(1, 32, 5, padding=2), nn.Tanh(), nn.Conv2d(32, 16, 3, padding=1), nn.Tanh()]
    return nn.Sequential(*layers, nn.Conv2d(16, 4, 3, padding=1), nn.PixelShuffle(2))


def denoiser() -> nn.Module:
    """DnCNN: the image less the noise that convolutions find."""

    class Less(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.noise = nn.Sequential(nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), conv(24, 24), conv(24, 24))
            self.out = nn.Conv2d(24, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x - self.out(self.noise(x))

    return Less()


def autoencoder() -> nn.Module:
    """An image from few numbers: strided convolutions, two linear layers and transposed convolutions."""
    down = [conv(3, 16, 3, 2), conv(16, 32, 3, 2), conv(32, 32, 3, 2), nn.Flatten(), nn.Linear(512, 32)]
    up = [nn.Linear(32, 512), nn.ReLU(), nn.Unflatten(1, (32, 4, 4))]
    for channels, out in ((32, 32), (32, 16)):
        layer = nn.ConvTranspose2d(channels, out, 3, 2, 1, output_padding=1, bias=False)
        up += [layer, nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*down, *up, nn.ConvTranspose2d(16, 3, 3, 2, 1, output_padding=1), nn.Sigmoid())


class Style(nn.Module):
    """A network that paints an image anew: reflected edges, instance norms, residual blocks and scaling up."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = _painted(3, 16, 9), _painted(16, 32, 3, 2)
        self.block = Residual(nn.Sequential(_painted(32, 32, 3), nn.ReflectionPad2d(1), nn.Conv2d(32, 32, 3)))
        self.up, self.last = _painted(32, 16, 3), nn.Sequential(nn.ReflectionPad2d(4), nn.Conv2d(16, 3, 9))

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.down(self.first(x)))
        return self.last(self.up(F.interpolate(x, scale_factor=2.0, mode="nearest"))).tanh()


def _painted(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(channels, out, kernel, stride)
    return nn.Sequential(nn.ReflectionPad2d(kernel // 2), layer, nn.InstanceNorm2d(out, affine=True), nn.ReLU())
