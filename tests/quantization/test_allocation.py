from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from helpers import images, student_of
from hypothesis import given
from hypothesis import strategies as st

from acq.quantization.allocation import Cost, allocate, costs
from acq.quantization.calibration import weight_scale
from acq.quantization.formats import WIDTHS
from acq.quantization.quantizers import ActivationQuantizer, WeightQuantizer
from acq.quantization.student import Student, mean_weight_bits, quantizers_off


def falling(unit: float) -> dict[int, float]:
    """The noise of a uniform quantizer: a quarter per additional bit."""
    return {width: unit * 4.0**-width for width in WIDTHS}


GIVEN = st.lists(
    st.tuples(st.integers(1, 50), st.floats(1e-3, 1e3)).map(lambda pair: (pair[0], falling(pair[1]))),
    min_size=1,
    max_size=4,
).map(lambda rows: [Cost(str(place), weights, noise) for place, (weights, noise) in enumerate(rows)])


def stored(given: list[Cost], widths: dict[str, int]) -> int:
    return sum(cost.weights * widths[cost.layer] for cost in given)


def noise(given: list[Cost], widths: dict[str, int]) -> float:
    return sum(cost.noise[widths[cost.layer]] for cost in given)


@given(given=GIVEN, mean=st.floats(2, 8))
def test_the_mean_is_kept(given: list[Cost], mean: float) -> None:
    """The mean over all weights is kept within 2 to 8 bits, and no layer could still be wider by one."""
    widths = allocate(given, mean)
    room = mean * sum(cost.weights for cost in given) - stored(given, widths)
    assert room >= -1e-6
    assert set(widths.values()) <= set(WIDTHS)
    assert all(widths[cost.layer] == 8 or cost.weights > room - 1e-6 for cost in given)


@given(given=GIVEN, mean=st.floats(3.5, 8))
def test_no_other_widths_are_better_for_the_same_size(given: list[Cost], mean: float) -> None:
    """No widths of the same or a smaller size have less noise, up to the last layer that did not fit."""
    widths = allocate(given, mean)
    every = (dict(zip(widths, choice, strict=True)) for choice in itertools.product(WIDTHS, repeat=len(given)))
    biggest = max(cost.weights for cost in given)
    room = mean * sum(cost.weights for cost in given)
    inside = [noise(given, other) for other in every if stored(given, other) <= room - biggest]
    assert noise(given, widths) <= min(inside, default=torch.inf) * (1 + 1e-9)


def test_equal_layers_get_equal_widths() -> None:
    """A layer without cost gets the fewest bits."""
    alike = [Cost(name, 10, falling(1.0)) for name in "abcd"]
    assert allocate(alike, 4.0) == dict.fromkeys("abcd", 4)
    free = Cost("e", 40, dict.fromkeys(WIDTHS, 0.0))
    assert allocate([*alike, free], 3.0) == {**dict.fromkeys("abcd", 4), "e": 2}


def test_a_mean_below_the_smallest_width_is_refused() -> None:
    """Two bits are the least that there is."""
    with pytest.raises(ValueError, match=r"mean of 1\.9 bits is below 2"):
        allocate([], 1.9)


def squared_error(weight: torch.Tensor, bits: int) -> float:
    quantizer = WeightQuantizer(len(weight), bits)
    quantizer.set_qparams(weight_scale(weight, quantizer))
    return float((quantizer(weight) - weight).detach().square().sum())


def measured(student: Student, x: torch.Tensor, layer: int, bits: int) -> float:
    """The squared error of the logits with one layer rounded directly."""
    with torch.no_grad(), quantizers_off(student):
        wanted = student(x)
        module = list(student.layers())[layer][1]
        before = module.weight.detach().clone()
        quantizer = WeightQuantizer(len(before), bits)
        quantizer.set_qparams(weight_scale(before, quantizer))
        module.weight.copy_(quantizer(before))
        found = student(x)
        module.weight.copy_(before)
    return float((found - wanted).double().square().sum())


def test_costs_are_those_of_layers_rounded_alone() -> None:
    """At the student's width they are measured, at others they grow as the weights' error; only named layers count."""
    student, x = student_of("residual", "w4a4", first_last_bits="same"), images(12)
    names, layout = [name for name, _ in student.layers()], student.plan
    student.plan = replace(layout, format=replace(layout.format, reduce_range=False))
    found = costs(student, x.split(5), names[:-1])
    layers = list(student.layers())
    assert [cost.layer for cost in found] == names[:-1]
    assert [cost.weights for cost in found] == [layer.weight.numel() for _, layer in layers[:-1]]
    for place, cost in enumerate(found):
        assert cost.noise[4] == pytest.approx(measured(student, x, place, 4), rel=1e-3)
        weight = layers[place][1].weight.detach()
        for bits in WIDTHS:
            grown = squared_error(weight, bits) / squared_error(weight, 4)
            assert cost.noise[bits] == pytest.approx(grown * cost.noise[4], rel=1e-3)
        assert list(cost.noise.values()) == sorted(cost.noise.values(), reverse=True)
    student.plan = replace(layout, format=replace(layout.format, reduce_range=True))
    (last,) = costs(student, [x], names[-1:])
    assert last.noise[8] == last.noise[7] < last.noise[6]


def test_costs_leave_the_student_as_it_was() -> None:
    """Weights and scales do not change, and every quantizer is enabled again."""
    student, x = student_of("residual"), images(4)
    with torch.no_grad():
        for _, layer in student.layers():
            layer.weight_quantizer.log_scale += 0.2
        before = student(x)
        costs(student, [x], {name for name, _ in student.layers()})
        assert torch.equal(student(x), before)
    kinds = WeightQuantizer | ActivationQuantizer
    assert all(module.enabled for module in student.modules() if isinstance(module, kinds))


def test_weights_that_are_already_quantized_are_measured_below_their_width() -> None:
    """They cost nothing from their width on and something below, so they do not get 2 bits."""
    student, x = student_of("residual", "w4a4", first_last_bits="same"), images(12)
    names = [name for name, _ in student.layers()]
    with torch.no_grad():
        layer = list(student.layers())[1][1]
        layer.weight.copy_(torch.randint(-7, 8, layer.weight.shape, generator=torch.Generator().manual_seed(0)) / 16)
        layer.weight.flatten(1)[:, 0] = 7 / 16
    found = costs(student, [x], names)[1]
    assert found.noise[2] > found.noise[3] > 1e-4
    assert found.noise[4] == 0
    assert allocate([found], 5.0) == {found.layer: 4}


def test_layers_in_float_have_no_cost() -> None:
    """The others are measured with them in floating point, and get the bits."""
    student, x = student_of("residual", first_last_bits="same", layers={"middle.0.*": "float"}), images(12)
    names = {name for name, _ in student_of("residual").layers()}
    found = costs(student, [x], names)
    assert {cost.layer for cost in found} == names - {"middle.0.block.0"}
    assert all(cost.noise[2] > cost.noise[8] > 0 for cost in found)


def test_mean_bits_count_weights() -> None:
    """Wide first and last layers count by their number of weights."""
    student = student_of("residual", "w4a4", first_last_bits="8", reduce_range=False)
    counts = [layer.weight.numel() for _, layer in student.layers()]
    ends = counts[0] + counts[-1]
    assert mean_weight_bits(student) == pytest.approx((8 * ends + 4 * (sum(counts) - ends)) / sum(counts))
