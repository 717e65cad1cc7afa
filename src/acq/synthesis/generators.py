"""Generators turn conditions into images. A generator is a class; register a new one with ``@generator("name")``."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acq.core.batchnorm import at_least_float
from acq.core.pixels import normalise
from acq.core.values import Condition, Preprocessing
from acq.errors import RequestError, nearest
from acq.network.attention import cell_middles

Affine = tuple[Tensor, Tensor]
GENERATORS: dict[str, Callable[..., nn.Module]] = {}
GAIN = 2.0  # how far content moves for a centre: attention follows a shift of the content about half way
_BUMP = 0.35  # standard deviation of the bump, in half image sizes
_SLOPE = 0.2  # of the leaky ReLU for negative values
_CELLS = 8  # least cells of the first resolution on the shorter side
_NARROWEST = 16  # least channels of a stage
_CODE = 128  # longest code of an answer that is begun from the network
_AFFINE = 0.3  # standard deviation of the first factors and offsets of conditional norms, per deviation of the code
_TINY = 1e-12


def generator(name: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a generator class under ``name``, the value of ``generator.kind``."""

    def register(kind: type[nn.Module]) -> type[nn.Module]:
        GENERATORS[name] = kind
        return kind

    return register


def make_generator(
    kind: str,
    preprocessing: Preprocessing,
    answers: int,
    *,
    rows: Tensor | None = None,
    noise_dim: int,
    width: int,
    seed: int,
) -> nn.Module:
    """Build a registered generator with weights drawn from ``seed``.

    Args:
        kind: Its registered name.
        preprocessing: Of the network, which the images must suit.
        answers: Answers of the network that an image can be asked for.
        rows: What the network itself knows of each answer (``Teacher.answer_rows``), [answers, C].
        noise_dim: Noise values per image.
        width: Channels at the lowest resolution.
        seed: Of the initial weights; the global random state is left as it was.

    Raises:
        RequestError: No generator of that name is registered.
    """
    if kind not in GENERATORS:
        raise RequestError(
            f"generator.kind {kind!r} is not known{nearest(kind, GENERATORS)}; give one of {', '.join(GENERATORS)}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GENERATORS[kind](preprocessing, answers, rows=rows, noise_dim=noise_dim, width=width)


def bump(centre: Tensor, height: int, width: int, deviation: float = _BUMP) -> Tensor:
    """A Gaussian with peak one at each centre: [N, 2] -> [N, 1, H, W].

    The position enters the convolutions as a map, which they can follow directly (this project's definition).
    """
    x, y = cell_middles(width).to(centre), cell_middles(height).to(centre)
    across = (x.view(1, 1, -1) - centre[:, 0].view(-1, 1, 1)).square()
    down = (y.view(1, -1, 1) - centre[:, 1].view(-1, 1, 1)).square()
    return torch.exp((across + down) / (-2 * deviation**2)).unsqueeze(1)


def window(canvas: Tensor, centre: Tensor, height: int, width: int) -> Tensor:
    """Cut ``height x width`` cells out of each canvas so that its content moves by ``GAIN * centre``.

    Cells are interpolated bilinearly, so the position is differentiable. A canvas is mirrored beyond its edge. Moved
    content moves the teacher's attention, so the condition steers from the first step on (this project's definition).

    Args:
        canvas: [N, C, H, W].
        centre: Attention centres, [N, 2].
        height: Rows of the result.
        width: Columns of the result.

    Returns:
        [N, C, height, width].
    """
    across, down = width / canvas.shape[3], height / canvas.shape[2]
    theta = canvas.new_zeros(len(canvas), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = across, down
    theta[:, :, 2] = -GAIN * centre * centre.new_tensor((across, down))  # content to the right: window to the left
    grid = F.affine_grid(theta, [len(canvas), 1, height, width], align_corners=False)
    return F.grid_sample(canvas, grid, padding_mode="reflection", align_corners=False)


class _Canvas(nn.Module):
    """Noise and label make a small canvas, the centre places a window on it, and convolutions upsample the window.

    The centre enters twice: as the position of the window, and as a bump beside the features of every stage. Pixels lie
    in [0, 1] before normalisation. Widths halve when the resolution doubles, so all stages cost about the same and the
    first layer is small at any image size.

    Args:
        preprocessing: Of the network, which the images must suit.
        codes: The code of each answer, [answers, D]; they are trained too.
        conditional: Whether noise and code set factor and offset of each norm, too.
        noise_dim: Noise values per image.
        width: Channels at the lowest resolution.
    """

    def __init__(
        self, preprocessing: Preprocessing, codes: nn.Embedding, *, conditional: bool, noise_dim: int, width: int
    ) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        channels, height, across = preprocessing.input_size
        doublings = max(1, math.ceil(math.log2(min(height, across) / _CELLS)))
        self.sizes = [(math.ceil(height / 2**k), math.ceil(across / 2**k)) for k in range(doublings, -1, -1)]
        self.canvas = [size + 2 * (size // 4) for size in self.sizes[0]]
        widths = [max(_NARROWEST, width // 2**k) for k in range(doublings + 1)]
        self.embedding = codes
        length = noise_dim + codes.embedding_dim
        self.start = nn.Linear(length, widths[0] * math.prod(self.canvas), bias=False)
        self.norm = nn.BatchNorm2d(widths[0], affine=not conditional)
        self.stages = nn.ModuleList(
            _Stage(before, after, conditional=conditional) for before, after in pairwise(widths)
        )
        self.affines = nn.ModuleList(_Affine(length, channels) for channels in widths) if conditional else None
        self.last = nn.Conv2d(widths[-1], channels, 3, 1, 1)

    def forward(self, condition: Condition) -> Tensor:
        """Normalised images [N, C, H, W] for the teacher."""
        code = torch.cat((condition.noise, self.embedding(condition.label)), 1)
        affines = [None] * len(self.sizes) if self.affines is None else [affine(code) for affine in self.affines]
        x = _with_affine(self.norm(self.start(code).unflatten(1, (-1, *self.canvas))), affines[0])
        x = window(x, condition.centre, *self.sizes[0])
        for stage, affine, size in zip(self.stages, affines[1:], self.sizes[1:], strict=True):
            x = stage(F.interpolate(x, size=size), bump(condition.centre, *size), affine)
        return normalise(at_least_float(torch.sigmoid(self.last(x))), self.preprocessing)


class _Stage(nn.Module):
    """Convolve features and bump together at one resolution, then normalise."""

    def __init__(self, channels: int, out_channels: int, *, conditional: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels + 1, out_channels, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, affine=not conditional)

    def forward(self, x: Tensor, position: Tensor, affine: Affine | None) -> Tensor:
        # channels last is the layout in which CPU convolutions run without copies; images inherit it
        both = torch.cat((x, position), 1).contiguous(memory_format=torch.channels_last)
        return F.leaky_relu(_with_affine(self.norm(self.conv(both)), affine), _SLOPE)


class _Affine(nn.Module):
    """Factor and offset of each channel [N, C, 1, 1], linear in noise and code [N, L]. They begin near 1 and 0."""

    def __init__(self, length: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(length, 2 * channels)
        nn.init.normal_(self.linear.weight, std=_AFFINE / math.sqrt(length))
        nn.init.zeros_(self.linear.bias)

    def forward(self, code: Tensor) -> Affine:
        change, offset = self.linear(code)[:, :, None, None].chunk(2, 1)
        return 1 + change, offset


def _with_affine(x: Tensor, affine: Affine | None) -> Tensor:
    return x if affine is None else x * affine[0] + affine[1]


@generator("canvas")
class CanvasGenerator(_Canvas):
    """A canvas whose noise and label enter at the start alone, and the centre at each stage.

    Noise and label make a small canvas, the centre places a window on it, and convolutions upsample the window. Codes
    of answers are random at first.

    Args:
        preprocessing: Of the network, which the images must suit.
        answers: Answers of the network that an image can be asked for.
        rows: Not used.
        noise_dim: Noise values per image, and the length of a code.
        width: Channels at the lowest resolution.
    """

    def __init__(
        self, preprocessing: Preprocessing, answers: int, *, rows: Tensor | None, noise_dim: int, width: int
    ) -> None:
        codes = nn.Embedding(answers, noise_dim)
        super().__init__(preprocessing, codes, conditional=False, noise_dim=noise_dim, width=width)


@generator("conditional")
class ConditionalGenerator(_Canvas):
    """A canvas whose noise and label enter at the start and in each norm, for many answers.

    Codes of answers begin as what the network knows of each. So answers that the network takes for alike begin alike,
    and what one learns helps the others. GDFQ's generator for ImageNet has norms with an embedding per class, and
    Qimera begins embeddings with the rows of the last layer.

    Args:
        preprocessing: Of the network, which the images must suit.
        answers: Answers of the network that an image can be asked for.
        rows: Of each answer in the network's last layer, [answers, C], from which codes begin; None for random ones.
        noise_dim: Noise values per image, and the length of a random code.
        width: Channels at the lowest resolution.
    """

    def __init__(
        self, preprocessing: Preprocessing, answers: int, *, rows: Tensor | None, noise_dim: int, width: int
    ) -> None:
        begin = torch.randn(answers, noise_dim) if rows is None else codes_of(rows.cpu())
        codes = nn.Embedding(answers, begin.shape[1], _weight=begin)
        super().__init__(preprocessing, codes, conditional=True, noise_dim=noise_dim, width=width)


def codes_of(rows: Tensor, most: int = _CODE) -> Tensor:
    """Short codes of answers: the principal components of their rows, with a mean square of 1.

    Args:
        rows: Of each answer, [A, C]. Columns count alike, whatever their size.
        most: The largest length of a code.

    Returns:
        [A, D], where D is at most ``most``, A and C.
    """
    centred = rows.double() - rows.double().mean(0)
    u, s, _ = torch.linalg.svd(centred / centred.square().mean(0).sqrt().clamp_min(_TINY), full_matrices=False)
    codes: Tensor = (u * s)[:, :most]
    return (codes / codes.square().mean().sqrt().clamp_min(_TINY)).float()
