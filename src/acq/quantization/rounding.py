"""Rounding without training: each layer's weights are rounded so that its output, on the inputs that the quantized
layers before it give, is nearest to what the float network has there.

Least squares in closed form, layer after layer. It takes seconds where training takes minutes, and depthwise kernels,
of which rounding each weight to its nearest integer leaves little, come through.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from acq.quantization.calibration import weight_scale
from acq.quantization.quantizers import WeightQuantizer
from acq.quantization.student import QuantConv2d, QuantLayer, Student, quantizers_off

_DAMPING = 0.2  # of the mean variance of a layer's inputs: synthetic images show some of it too seldom
_RATIOS = (0.7, 0.8, 0.9, 1.0, 1.1)  # of the scale that suits the weights alone
_SWEEPS = 3
_ROOM = 0.45  # of a step: how far a weight may stand from the integer that it rounds to
# memory: unfolded inputs at once; values of the widest node over all images; entries of a layer's covariances
_VALUES, _WIDEST, _COVARIANCES = 1 << 24, 1 << 28, 1 << 25


@torch.no_grad()
def round_layers(student: Student, batches: Sequence[Tensor]) -> None:
    """Round the weights of a calibrated ``student`` on images [N, C, H, W] given in batches, in order of execution.

    With ``x`` the input of a layer in the float network and ``y`` the one that the quantized layers before it give,
    the rounded weight ``Q`` and the bias ``c`` make ``|(W x + b) - (Q y + c)|^2`` small over all images and places:
    first in real numbers, which makes up for the inputs' error (this project's definition), then on the grid
    (``best_grid``). Scales are searched anew, and each weight is left as near to where it was as rounds to its integer,
    so that training can take back what was rounded far. A layer with so many inputs that their covariance does not fit
    in memory (over 5,792 a group) stays as calibrated.

    Raises:
        ValueError: there are no batches.
    """
    if not batches:
        raise ValueError("round_layers needs at least one batch of images")
    walk = _Walk(student, batches)
    for node in student.graph.nodes:
        module = student.get_submodule(str(node.target)) if node.op == "call_module" else None
        found = _rounded(module, walk.inputs(node)) if isinstance(module, QuantLayer) else None
        with quantizers_off(student):
            walk.step(node, walk.float)
        if found is not None and isinstance(module, QuantLayer):
            found.give(module)
        walk.step(node, walk.quantized)


def images_that_fit(student: Student) -> int:
    """How many images ``round_layers`` can take at once: all values of a few nodes are held, at most 1 GiB each."""
    shapes: Iterable[tuple[int, ...]] = (node.meta["shape"] for node in student.graph.nodes if "shape" in node.meta)
    return max(1, _WIDEST // max(math.prod(shape[1:]) for shape in shapes))


def best_grid(target: Tensor, scale: Tensor, energy: Tensor, quantizer: WeightQuantizer) -> tuple[Tensor, Tensor]:
    """Scales [G, K, 1] around ``scale`` that ``quantizer`` can have, and weights on its grid with a small output error.

    Weights are ``target`` [G, K, D]; the output error of a difference d is ``d energy d'`` with ``energy`` [G, D, D].
    Each channel takes the multiple of its scale at which ``rounded_columns`` errs least; then scales are refitted and
    weights moved one at a time to their best integer, in turn (this project's definition).
    """
    best = torch.full_like(scale, torch.inf)
    rounded, chosen, order = target, scale, _order(energy)
    low, high = quantizer.qmin, quantizer.qmax
    for ratio in _RATIOS:
        step = quantizer.representable(scale * ratio)
        tried = rounded_columns(target, step, order, low, high)
        error = _output_error(target - tried, energy)
        better = error < best
        best, rounded = torch.where(better, error, best), torch.where(better, tried, rounded)
        chosen = torch.where(better, step, chosen)
    for _ in range(_SWEEPS):
        integers = (rounded / chosen).round()
        chosen = quantizer.representable(_refitted(target, integers, chosen, energy))
        rounded = _swept(target, integers * chosen, chosen, energy, low, high)
    return chosen, rounded


@dataclass(frozen=True)
class _Order:
    """In which order columns are rounded [G, D], and how the error of each is taken up by those after it [G, D, D]."""

    columns: Tensor
    shares: Tensor


def _order(energy: Tensor) -> _Order:
    """Columns by falling energy; ``shares`` is the upper U of ``energy^-1 = U' U``, both in that order."""
    columns = energy.diagonal(dim1=1, dim2=2).argsort(1, descending=True)  # [G, D]
    rows = energy.gather(1, columns.unsqueeze(2).expand_as(energy))
    ordered = rows.gather(2, columns.unsqueeze(1).expand_as(energy))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(ordered))
    return _Order(columns, torch.linalg.cholesky(inverse, upper=True))


def rounded_columns(target: Tensor, scale: Tensor, order: _Order, low: int, high: int) -> Tensor:
    """``target`` [G, K, D] on the grid ``q * scale`` (scale [G, K, 1]), q in ``low..high``, column after column.

    Each column's error is taken up by those still to come, with the least increase of the output error (Frantar et al.,
    arXiv 2210.17323, eq. 2, by a Cholesky factor as in their section 3.3).
    """
    places = order.columns.unsqueeze(1).expand_as(target)
    left, rounded = target.gather(2, places), torch.empty_like(target)
    for column in range(left.shape[2]):
        here = slice(column, column + 1)
        rounded[:, :, here] = (left[:, :, here] / scale).round().clamp(low, high) * scale
        missed = (left[:, :, here] - rounded[:, :, here]) / order.shares[:, here, here]
        left[:, :, column + 1 :] -= missed * order.shares[:, here, column + 1 :]
    return torch.empty_like(rounded).scatter_(2, places, rounded)


class _Walk(fx.Interpreter):
    """The student's graph run one node at a time on all batches, in floating point and quantized side by side."""

    def __init__(self, student: Student, batches: Sequence[Tensor]) -> None:
        super().__init__(student, graph=student.graph)
        self.batches = batches
        self.float: list[dict[fx.Node, Tensor]] = [{} for _ in batches]
        self.quantized: list[dict[fx.Node, Tensor]] = [{} for _ in batches]

    def step(self, node: fx.Node, values: list[dict[fx.Node, Tensor]]) -> None:
        """Run the node on every batch: what it reads is taken from ``values``, and dropped at once where no node after
        it reads it, and what it gives is added."""
        for images, known in zip(self.batches, values, strict=True):
            self.env = known
            self.args_iter = iter((images,))
            known[node] = self.run_node(node)
            for spent in self.user_to_last_uses.get(node, []):
                del known[spent]

    def inputs(self, node: fx.Node) -> Iterator[tuple[Tensor, Tensor]]:
        """What reaches a layer, batch by batch: in the float network and in the quantized one."""
        (source,) = node.all_input_nodes
        for before, ours in zip(self.float, self.quantized, strict=True):
            yield before[source], ours[source]


@dataclass(frozen=True)
class _Moments:
    """Of a layer's inputs, group by group, y being the quantized and x the float ones.

    ``mean`` [G, D] is that of y, ``shift`` [G, D] that of x - y, ``energy`` [G, D, D] the covariance of y and ``error``
    [G, D, D] that of x - y with y; both are second moments where the layer has no bias to take up the means.
    """

    mean: Tensor
    shift: Tensor
    energy: Tensor
    error: Tensor


@dataclass(frozen=True)
class _Rounded:
    """What rounding makes of a layer: its scales [K], its weights, and what its biases [K] grow by."""

    scale: Tensor
    weight: Tensor
    shift: Tensor

    def give(self, layer: QuantLayer) -> None:
        layer.weight_quantizer.set_qparams(self.scale)
        layer.weight.copy_(self.weight)
        if layer.bias is not None:
            layer.bias.add_(self.shift)


def _rounded(layer: QuantLayer, inputs: Iterable[tuple[Tensor, Tensor]]) -> _Rounded | None:
    """None where the layer has too many inputs."""
    groups = layer.groups
    if groups * layer.weight[0].numel() ** 2 > _COVARIANCES:
        return None
    found = _moments(layer, groups, inputs)
    weight = layer.weight.detach().reshape(groups, len(layer.weight) // groups, -1).double()  # [G, K / G, D]
    energy = _damped(found.energy)
    # argmin over real Q of |W x - Q y|^2, drawn towards W by the damping: W + W E[(x - y) y'] E[y y']^-1
    target = weight + torch.linalg.solve(energy, weight @ found.error, left=False)
    quantizer = layer.weight_quantizer
    first = weight_scale(target.reshape(layer.weight.shape).to(layer.weight), quantizer)
    scale, rounded = best_grid(target, first.view(groups, -1, 1).double(), energy, quantizer)
    missed = weight @ (found.mean + found.shift).unsqueeze(2) - rounded @ found.mean.unsqueeze(2)
    kept = rounded + torch.minimum(torch.maximum(weight - rounded, -_ROOM * scale), _ROOM * scale)
    return _Rounded(scale.reshape(-1).to(first), kept.view_as(layer.weight), missed.reshape(-1).to(first))


def _refitted(target: Tensor, integers: Tensor, scale: Tensor, energy: Tensor) -> Tensor:
    """argmin over s of the output error of ``target - s * integers``, one a channel, within a factor of two."""
    size = (integers @ energy * integers).sum(2, keepdim=True)
    wanted = (target @ energy * integers).sum(2, keepdim=True)
    ratio = (wanted / (size * scale)).nan_to_num(1.0)
    return scale * ratio.clamp(0.5, 2.0)


def _swept(target: Tensor, rounded: Tensor, scale: Tensor, energy: Tensor, low: int, high: int) -> Tensor:
    """Move each weight in turn to the integer at which the output error is least, the others staying as they are."""
    pull = (target - rounded) @ energy  # [G, K, D]
    for column in range(target.shape[2]):
        here = slice(column, column + 1)
        ideal = rounded[:, :, here] + pull[:, :, here] / energy[:, here, here]
        moved = (ideal / scale).round().clamp(low, high) * scale - rounded[:, :, here]
        rounded[:, :, here] += moved
        pull -= moved * energy[:, here]
    return rounded


def _output_error(difference: Tensor, energy: Tensor) -> Tensor:
    return (difference @ energy * difference).sum(2, keepdim=True)


def _damped(energy: Tensor) -> Tensor:
    level = energy.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).clamp_min(1e-12)
    damped = energy.clone()
    damped.diagonal(dim1=1, dim2=2).add_(_DAMPING * level)
    return damped


def _moments(layer: QuantLayer, groups: int, inputs: Iterable[tuple[Tensor, Tensor]]) -> _Moments:
    size = layer.weight[0].numel()
    mean, shift = (layer.weight.new_zeros(groups, size, dtype=torch.float64) for _ in range(2))
    energy, error = (mean.new_zeros(groups, size, size) for _ in range(2))
    count, origin = 0, None
    for x, y in inputs:
        for float_part, part in _columns(layer, groups, x, y):
            if origin is None:  # near the mean, so that nothing cancels where inputs hardly vary
                origin = part.mean(2, keepdim=True) * (layer.bias is not None)
            difference, centred = float_part - part, part - origin
            count += part.shape[2]
            mean += centred.sum(2)
            shift += difference.sum(2)
            energy += centred @ centred.mT
            error += difference @ centred.mT
    assert origin is not None
    mean, shift, energy, error = mean / count, shift / count, energy / count, error / count
    if layer.bias is not None:
        energy -= mean.unsqueeze(2) * mean.unsqueeze(1)
        error -= shift.unsqueeze(2) * mean.unsqueeze(1)
    return _Moments(mean + origin.squeeze(2), shift, energy, error)


def _columns(layer: QuantLayer, groups: int, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """What the layer's products multiply, a few images at a time: [G, D, n] of both, n being images times places."""
    if not isinstance(layer, QuantConv2d):
        yield x.reshape(1, -1, x.shape[-1]).mT, y.reshape(1, -1, y.shape[-1]).mT
        return
    values = y[0].numel() * layer.weight[0, 0].numel()
    images = max(1, _VALUES // values)
    for float_part, part in zip(x.split(images), y.split(images), strict=True):  # type: ignore[no-untyped-call]
        yield _unfolded(layer, groups, float_part), _unfolded(layer, groups, part)


def _unfolded(layer: QuantConv2d, groups: int, x: Tensor) -> Tensor:
    above, left, below, right = layer.pads()
    padded = F.pad(x, (left, right, above, below))
    kernel, dilation, stride = tuple(layer.weight.shape[2:]), layer.steps("dilation"), layer.steps("stride")
    columns = F.unfold(padded, kernel, dilation, 0, stride)  # [n, G * D, L]
    return columns.view(len(columns), groups, -1, columns.shape[2]).permute(1, 2, 0, 3).flatten(2)
