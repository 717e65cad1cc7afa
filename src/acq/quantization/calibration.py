"""Calibration before training: search the range of each quantizer with the least squared error.

The candidates of the search are this project's definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from acq.errors import RequestError
from acq.network.operators import ROLES, Role, operator_of, sole_user
from acq.quantization.formats import FULL_BITS
from acq.quantization.layers import QuantLayer, squares_per_input
from acq.quantization.quantizers import ActivationQuantizer, WeightQuantizer
from acq.quantization.student import Student, quantizers_off

_SAMPLE = 32_768  # values kept per activation, over all batches
_WEIGHT_RATIOS = [percent / 100 for percent in range(104, 4, -1)]  # of the largest absolute weight
_SMALLEST_RANGE = 0.01  # of the observed range
_COARSE_SCALES, _FINE_SCALES = 60, 21  # odd, so that the best coarse one is among the fine ones

Reader = Callable[[Tensor], Tensor]


@torch.no_grad()
def calibrate(student: Student, batches: Iterable[Tensor]) -> None:
    """Set the range of every quantizer.

    Scales of weights come from the weights. Then the images pass through the network in floating point, each
    activation quantizer keeps a sample, and its range is searched on it. Two calls on the same images agree.

    Args:
        student: The student; its quantizers change.
        batches: Images [N, C, H, W].

    Raises:
        ValueError: There are no batches.
        RequestError: Values are not finite.
    """
    images = list(batches)
    if not images:
        raise ValueError("calibrate needs at least one batch of images")
    for _, layer in student.layers():
        layer.weight_quantizer.set_qparams(weight_scale(layer.weight, layer.weight_quantizer))
    rng = torch.Generator().manual_seed(0)
    nodes = {module: node for node, module in student.modules_in_order() if isinstance(module, ActivationQuantizer)}
    if not nodes:
        return  # weights alone are quantized
    try:
        for quantizer, node in nodes.items():
            quantizer.observe(max(_SAMPLE // len(images), 1), rng, _importance(student, node, quantizer))
        with quantizers_off(student):
            for batch in images:
                student(batch)
        for quantizer, node in nodes.items():
            sample, importance = quantizer.observed()
            quantizer.set_qparams(*activation_range(sample, quantizer, _reader(node), importance))
    finally:
        for quantizer in nodes:
            quantizer.stop()


def weight_scale(weight: Tensor, quantizer: WeightQuantizer) -> Tensor:
    """Search the scale per channel that minimises ``sum((w - s * clip(round(w / s), qmin, qmax))^2)``.

    Candidates are ``s = r * max|w| / qmax`` with 100 ratios r from 1.04 down to 0.05. Each is rounded to a scale that
    the quantizer can have. Any scale represents a channel of zeros. It takes the mean scale of the other channels, so
    that training can move its weights.

    Args:
        weight: [C, ...].
        quantizer: The quantizer, for its range.

    Returns:
        The scales [C].
    """
    flat = weight.detach().flatten(1)  # [C, ...] -> [C, n]
    largest = flat.abs().amax(1) / quantizer.qmax
    tiny = torch.finfo(flat.dtype).tiny
    candidates = (quantizer.representable((largest * ratio).clamp_min(tiny)) for ratio in _WEIGHT_RATIOS)
    scale = best_scale(flat, candidates, quantizer.qmin, quantizer.qmax)
    nonzero = largest > 0
    return torch.where(nonzero, scale, scale[nonzero].mean() if nonzero.any() else 1.0)


def best_scale(rows: Tensor, candidates: Iterable[Tensor], qmin: int, qmax: int) -> Tensor:
    """Choose the candidate with the least squared rounding error for each row.

    Args:
        rows: Values [C, n].
        candidates: Positive scales, [C] each.
        qmin: The least integer.
        qmax: The greatest integer.

    Returns:
        The scales [C]; 1 where no candidate has a finite error.
    """
    best, chosen = torch.full_like(rows[:, 0], torch.inf), torch.ones_like(rows[:, 0])
    for scale in candidates:
        column = scale.unsqueeze(1)
        rounded = (rows / column).round_().clamp_(qmin, qmax).mul_(column)
        error = rounded.sub_(rows).square_().sum(1)
        chosen = torch.where(error < best, scale, chosen)
        best = torch.minimum(best, error)
    return chosen


def activation_range(
    x: Tensor, quantizer: ActivationQuantizer, reader: Reader = torch.positive, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Search the scale and zero point that minimise the squared rounding error on a sample, as its reader sees it.

    With ``q(x)`` the quantized sample, ``f`` its reader and ``i`` the importance, that is
    ``sum(i (f(q(x)) - f(x))^2)``. So a hard swish, which is 0 below -3, takes no part of the range for values below -3.
    Zero is always exact.

    A scale is tried with every zero point that leaves some values on each side, even ones alone for a quantizer with
    power-of-two scales. The scales are 60 geometric steps from that of the full range down to a hundredth of it, and
    then 21 between the neighbours of the best one; or powers of two in the same range.

    Args:
        x: The sample [n].
        quantizer: The quantizer, for its range and name.
        reader: The element-wise function through which all consumers read the values.
        importance: Of each value's squared error [n]; None is 1.

    Returns:
        The scale [] and the zero point []; 1 and 0 for a sample of zeros.

    Raises:
        RequestError: The sample is empty or not finite.
    """
    if not x.numel() or not x.isfinite().all():
        fault = "are not finite" if x.numel() else "were never observed"
        raise RequestError(f"values of {quantizer.name!r} {fault}; check the network on these images in floating point")
    low, high = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
    if low == high:
        return x.new_ones(()), x.new_zeros(())
    widest, even = (high - low) / quantizer.qmax, quantizer.power_of_two_scales
    importance = torch.ones_like(x) if importance is None else importance
    sample = _Sorted.of(x.cpu(), importance.cpu(), reader)  # sums on the CPU repeat bit for bit

    if even:
        largest, smallest = math.ceil(math.log2(widest)), math.floor(math.log2(widest * _SMALLEST_RANGE))
        powers = [2.0**power for power in range(largest, smallest - 1, -1)]
        scale, zero_point = sample.best_range(powers, quantizer.qmax, step=2)
    else:
        coarse = _geometric(widest * _SMALLEST_RANGE, widest, _COARSE_SCALES)
        scale, _ = sample.best_range(coarse, quantizer.qmax)
        ratio = _SMALLEST_RANGE ** (-1 / (_COARSE_SCALES - 1))
        scale, zero_point = sample.best_range(_geometric(scale / ratio, scale * ratio, _FINE_SCALES), quantizer.qmax)
    return x.new_tensor(scale), x.new_tensor(zero_point)


@dataclass(frozen=True)
class _Sorted:
    """A sample in ascending order [n], and sums [n + 1] over its first values.

    Attributes:
        values: The sample.
        below: The sums of importance, and of what is read and its squares, each times the importance.
        reader: The function through which they are read.
    """

    values: Tensor
    below: tuple[Tensor, Tensor, Tensor]
    reader: Reader

    @classmethod
    def of(cls, sample: Tensor, importance: Tensor, reader: Reader) -> _Sorted:
        """Sort a sample [n]."""
        values, order = sample.double().sort()
        read, weight = reader(values), importance.double()[order]
        sums = (weight, weight * read, weight * read.square())
        mass, total, squares = (F.pad(each.cumsum(0), (1, 0)) for each in sums)
        return cls(values, (mass, total, squares), reader)

    def best_range(self, scales: Sequence[float], qmax: int, step: int = 1) -> tuple[float, float]:
        """The scale of the least squared error and its zero point, a multiple of ``step``.

        A scale alone says to which integer a value is rounded. The zero point says where the integers end. So the
        errors of all zero points follow from three sums per integer.
        """
        # those of all zero points, and one more on each side for what is clipped
        integers = torch.arange(-qmax - 1, qmax + 2, dtype=torch.float64)
        column = torch.tensor(scales, dtype=torch.float64).unsqueeze(1)  # [S, 1]
        levels = self.reader(integers * column)  # [S, I]
        ends = torch.searchsorted(self.values, (integers + 0.5) * column)  # of the values that are rounded to each
        sums = [part[ends] for part in self.below]
        rounding = F.pad(_squares([part.diff() for part in sums], levels[:, 1:]).cumsum(1), (1, 0))

        zero_points = torch.arange(0, qmax + 1, step)
        first = qmax + 1 - zero_points  # the place of the least integer
        last = first + qmax
        under = _squares([part[:, first] for part in sums], levels[:, first])
        above = [whole[-1] - part[:, last - 1] for whole, part in zip(self.below, sums, strict=True)]
        errors = under + rounding[:, last - 1] - rounding[:, first] + _squares(above, levels[:, last])  # [S, Z]

        needed = (max(-self.values[0].item(), 0.0) / column).ceil()  # further ones leave integers below all values
        errors = errors.where(zero_points <= needed + step - 1, torch.inf)
        places = (errors == errors.min()).nonzero().tolist()
        zero_point, scale = min((zero_points[z].item(), scales[s]) for s, z in places)
        return scale, zero_point


def _squares(moments: Sequence[Tensor], level: Tensor) -> Tensor:
    """``sum(i (v - level)^2)`` of values v of importance i, from ``sum(i)``, ``sum(i v)`` and ``sum(i v^2)``."""
    mass, total, squares = moments
    return squares - 2 * level * total + level**2 * mass


def _reader(node: fx.Node) -> Reader:
    """The element-wise function that alone reads a node; the identity if there is none."""
    user = sole_user(node)
    if user is None or user.op != "call_function" or ROLES.get(operator_of(user)) != Role.NONLINEARITY:
        return torch.positive
    if user.all_input_nodes != [node]:  # slopes per channel: a sample has no channels
        return torch.positive
    target: Any = user.target
    return lambda values: target(values, *user.args[1:], **user.kwargs)


def _geometric(low: float, high: float, count: int) -> list[float]:
    """``count`` ratios from ``high`` down to ``low`` in geometric steps."""
    return [high * (low / high) ** (i / (count - 1)) for i in range(count)]


def _importance(student: Student, node: fx.Node, quantizer: ActivationQuantizer) -> Tensor | None:
    """What a squared error in each channel adds to the squared errors of the layers that alone read a node.

    It is None, for 1, below 8 bits, where it was no better, and where powers of two leave no choice.
    """
    if (
        quantizer.bits < FULL_BITS
        or quantizer.power_of_two_scales
        or not all(user.op == "call_module" for user in node.users)
    ):
        return None
    readers = [student.get_submodule(str(user.target)) for user in node.users]
    squares = [squares_per_input(reader) for reader in readers if isinstance(reader, QuantLayer)]
    alike = len({each.shape for each in squares}) == 1 and len(squares) == len(readers)
    return torch.stack(squares).sum(0) if alike else None
