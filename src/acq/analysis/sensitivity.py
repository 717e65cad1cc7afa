"""Sensitivity: what each layer or tensor costs when it alone is quantized and the rest stays in floating point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from acq.core.evaluate import evaluating
from acq.network.names import name_of
from acq.quantization.layers import QuantLayer
from acq.quantization.quantizers import ActivationQuantizer, WeightQuantizer
from acq.quantization.student import Student, quantizers_off

_MOST_DB = 120.0  # what float32 resolves


@dataclass(frozen=True)
class Sensitivity:
    """A layer that is quantized alone with its output; or a tensor alone that no layer produces, such as a sum.

    Attributes:
        layer: Public name of the layer, or of the tensor.
        weights: Number of weights; 0 for a tensor alone.
        weight_bits: Bits of the weights; None for a tensor alone.
        bits: Bits of the tensor; None for logits, which have no quantizer.
        low: Smallest value that the quantizer represents; None without one.
        high: Largest value that the quantizer represents; None without one.
        output_snr_db: Signal to quantization noise ratio of the tensor, in dB.
        logits_snr_db: Signal to quantization noise ratio of the logits, in dB.
        agreement: Percentage of images that keep the class of the float network, or of labels that keep its answer.
    """

    layer: str
    weights: int
    weight_bits: int | None
    bits: int | None
    low: float | None
    high: float | None
    output_snr_db: float
    logits_snr_db: float
    agreement: float


def sensitivities(student: Student, batches: Sequence[Tensor]) -> list[Sensitivity]:
    """Measure every layer and tensor of a calibrated student, in order of execution.

    Args:
        student: Calibrated; its quantizers are as before afterwards.
        batches: Images [n, C, H, W].

    Raises:
        ValueError: There are no batches.
    """
    if not batches:
        raise ValueError("sensitivities need at least one batch of images")
    places, bits = list(_places(student)), {node.name: node.weight_bits for node in student.plan.nodes}
    sums = torch.zeros(
        len(places), 5, dtype=torch.float64
    )  # _energies, and the number of images that keep their answer
    with evaluating(student):
        for batch in batches:
            with quantizers_off(student):
                logits, values = student.read(batch, [place.tap for place in places])
                for row, place in zip(sums, places, strict=True):
                    with _enabled(place):
                        found, quantized = student.read(batch, (place.tap,))
                    energies = _energies(values[place.tap], quantized[place.tap], logits, found)
                    row += torch.stack([*energies, student.output.same(found, logits).sum().double()]).cpu()
    count = sum(map(len, batches))
    rows = zip(places, sums.tolist(), strict=True)
    return [_described(place, bits.get(place.name), row, count) for place, row in rows]


@dataclass(frozen=True)
class _Place:
    """A layer, the quantizer of its output, and the node whose values are compared. Layer or quantizer may be None."""

    name: str
    layer: QuantLayer | None
    quantizer: ActivationQuantizer | None
    tap: str


def _places(student: Student) -> Iterator[_Place]:
    seen: set[ActivationQuantizer | None] = set()
    for node, module in student.modules_in_order():
        if isinstance(module, QuantLayer):
            last, quantizer = _quantizer_after(student, node)
            seen.add(quantizer)
            yield _Place(module.name, module, quantizer, name_of(last))
        elif isinstance(module, ActivationQuantizer) and module not in seen:
            yield _Place(module.name, None, module, name_of(node))


def _quantizer_after(student: Student, node: fx.Node) -> tuple[fx.Node, ActivationQuantizer | None]:
    """The first quantizer behind a layer whose values have one consumer each, and the node before it."""
    last = node
    while len(last.users) == 1:
        (user,) = last.users
        module = student.get_submodule(str(user.target)) if user.op == "call_module" else None
        if isinstance(module, ActivationQuantizer):
            return last, module
        if module is not None or user.op != "call_function" or len(user.all_input_nodes) > 1:
            break
        last = user
    return node, None


@contextmanager
def _enabled(place: _Place) -> Iterator[None]:
    quantizers: list[WeightQuantizer | ActivationQuantizer] = [place.quantizer] if place.quantizer else []
    quantizers += [place.layer.weight_quantizer] if place.layer else []
    for quantizer in quantizers:
        quantizer.enabled = True
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.enabled = False


def _energies(values: Tensor, quantized: Tensor, logits: Tensor, found: Tensor) -> list[Tensor]:
    """The energy of signal and noise of the tensor, and the same of the logits."""
    return [value.double().square().sum() for value in (values, quantized - values, logits, found - logits)]


def _described(place: _Place, weight_bits: int | None, row: Sequence[float], count: int) -> Sensitivity:
    signal, noise, logit_signal, logit_noise, same = row
    layer, quantizer = place.layer, place.quantizer
    return Sensitivity(
        layer=place.name,
        weights=0 if layer is None else layer.weight.numel(),
        weight_bits=weight_bits,
        bits=None if quantizer is None else quantizer.bits,
        low=None if quantizer is None else _value(quantizer, quantizer.qmin),
        high=None if quantizer is None else _value(quantizer, quantizer.qmax),
        output_snr_db=_decibels(signal, noise),
        logits_snr_db=_decibels(logit_signal, logit_noise),
        agreement=100 * same / count,
    )


def _value(quantizer: ActivationQuantizer, integer: int) -> float:
    return float((integer - quantizer.zero_point.item()) * quantizer.scale.item())


def _decibels(signal: float, noise: float) -> float:
    """The ratio in dB, between -120 and 120."""
    least = 10 ** (-_MOST_DB / 10)
    ratio = torch.tensor(signal / max(noise, least * signal, 1e-300))
    return 10 * torch.log10(ratio.clamp_min(least)).item()
