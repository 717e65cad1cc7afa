from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers import CLASSES
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from acq.core.pixels import normalise
from acq.core.values import Condition, GeneratorBatch, Moments, Preprocessing, TeacherOutput
from acq.network.attention import centre_of, channel_energy
from acq.synthesis.losses import LOSSES, loss, relative_distance, total, unit_variance

KNOWN = Preprocessing((3, 8, 8), (0.5, 0.4, 0.3), (0.25, 0.2, 0.1))


def output(count: int = 4, seed: int = 0, moments: tuple[Moments, ...] = ()) -> TeacherOutput:
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 3, 4, 4, generator=rng)
    attention = channel_energy(features)
    return TeacherOutput(torch.randn(count, 5, generator=rng), features, attention, centre_of(attention), moments)


def batch_(seed: int = 0, **changes: object) -> GeneratorBatch:
    """A batch of two pairs; ``changes`` replace its values."""
    rng = torch.Generator().manual_seed(seed + 100)
    condition = Condition(
        torch.randn(4, 6, generator=rng),
        torch.tensor([0, 3, 0, 3]),
        torch.randn(2, 2, generator=rng).repeat(2, 1) * 0.2,
    )
    moments = (Moments(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 4.0])),)
    eval_output = output(seed=seed, moments=moments)
    made = GeneratorBatch(
        condition, torch.zeros(4, 3, 8, 8), eval_output, output(seed=seed + 1), moments, CLASSES, KNOWN
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def moments_of(mean: list[float], var: list[float]) -> Moments:
    return Moments(torch.tensor(mean), torch.tensor(var))


def test_the_class_loss_is_zero_where_the_teacher_is_sure_and_right() -> None:
    """It is zero where logits name the requested class, and log K where all logits are equal."""
    made = batch_()
    sure = 50 * F.one_hot(made.condition.label, 5).float()
    right = replace(made, eval_output=replace(made.eval_output, logits=sure))
    ignorant = replace(made, eval_output=replace(made.eval_output, logits=torch.zeros(4, 5)))
    assert LOSSES["classes"](right) < 1e-6
    torch.testing.assert_close(LOSSES["classes"](ignorant), torch.tensor(math.log(5)))


@pytest.mark.parametrize("name", ["statistics", "statistics_plain"])
def test_stored_moments_cost_nothing(name: str) -> None:
    """Both losses of statistics are zero where moments equal the stored ones, and positive elsewhere."""
    made = batch_()
    assert LOSSES[name](made) == 0
    other = replace(made, stored_moments=(moments_of([0.0, 1.5], [1.0, 4.0]),))
    assert LOSSES[name](other) > 0


def test_statistics_are_measured_in_stored_deviations() -> None:
    """The loss equals the formula written out: squared differences of mean and deviation over the stored variance."""
    found = (moments_of([0.5, 1.0], [1.0, 9.0]), moments_of([0.0], [0.25]))
    stored_moments = (moments_of([0.0, 1.0], [1.0, 4.0]), moments_of([1.0], [1.0]))
    made = batch_()
    made = replace(made, eval_output=replace(made.eval_output, moments=found), stored_moments=stored_moments)
    # a channel is softened by a hundredth of its layer's mean variance
    first = (0.5**2 / (1 + 0.025) + (3 - 2) ** 2 / (4 + 0.025)) / 2
    second = (1 + (0.5 - 1) ** 2) / 1.01
    torch.testing.assert_close(LOSSES["statistics"](made), torch.tensor((first + second) / 2), rtol=1e-4, atol=0)
    plain = ((0.25 + 25) / 2 + (1 + 0.5625)) / 2
    torch.testing.assert_close(LOSSES["statistics_plain"](made), torch.tensor(plain), rtol=1e-5, atol=0)


@given(factor=st.floats(0.1, 50), shift=st.floats(-5, 5))
def test_statistics_do_not_depend_on_a_layer_s_units(factor: float, shift: float) -> None:
    """Scaling and shifting a layer's values, stored ones included, changes nothing."""
    found, stored_moments = moments_of([0.5, -1.0], [2.0, 3.0]), moments_of([0.0, 0.5], [1.0, 4.0])
    made = batch_()

    def cost(a: Moments, b: Moments) -> Tensor:
        return LOSSES["statistics"](
            replace(made, eval_output=replace(made.eval_output, moments=(a,)), stored_moments=(b,))
        )

    def moved(value: Moments) -> Moments:
        return Moments(factor * value.mean + shift, factor**2 * value.var)

    torch.testing.assert_close(
        cost(moved(found), moved(stored_moments)), cost(found, stored_moments), rtol=1e-2, atol=1e-4
    )


def test_channels_that_never_fire_cost_a_finite_amount() -> None:
    """A stored variance of zero gives a finite loss with finite gradients."""
    mean, var = torch.tensor([0.1, 0.2], requires_grad=True), torch.tensor([0.0, 1.0], requires_grad=True)
    made = batch_()
    made = replace(
        made,
        eval_output=replace(made.eval_output, moments=(Moments(mean, var),)),
        stored_moments=(moments_of([0.0, 0.0], [0.0, 1.0]),),
    )
    LOSSES["statistics"](made).backward()
    for value in (mean, var):
        assert value.grad is not None
        assert value.grad.isfinite().all()


def test_the_centre_loss_is_the_squared_distance() -> None:
    """It is zero where realised and requested centres agree, and the mean square over axes elsewhere."""
    made = batch_()
    met = replace(made, eval_output=replace(made.eval_output, centre=made.condition.centre))
    off = replace(made, eval_output=replace(made.eval_output, centre=made.condition.centre + torch.tensor([0.2, 0.0])))
    assert LOSSES["centre"](met) == 0
    torch.testing.assert_close(LOSSES["centre"](off), torch.tensor(0.02))


def apart(distance: float, made: GeneratorBatch) -> GeneratorBatch:
    """The batch with the features of each pair ``distance`` from one another, and one attention for all."""
    base, other = torch.randn(2, 3, 1, 1), torch.randn(2, 3, 1, 1)
    features = torch.cat((base, base + distance * other)).expand(4, 3, 4, 4)
    attention = torch.full((4, 4, 4), 1 / 16)
    return replace(made, eval_output=replace(made.eval_output, features=features, attention=attention))


def test_pairs_that_differ_cost_less() -> None:
    """The paired loss is one for equal features, and falls as they move apart without reaching zero."""
    made = batch_()
    costs = []
    for distance in (0.0, 0.1, 0.3, 1.0):
        torch.manual_seed(0)
        costs.append(LOSSES["paired"](apart(distance, made)).item())
    assert costs[0] == pytest.approx(1)
    assert costs == sorted(costs, reverse=True)
    assert len(set(costs)) == 4
    assert costs[-1] > 0


def test_pairs_may_differ_in_attention_alone() -> None:
    """Equal pooled features with attention elsewhere count as different."""
    made = batch_()
    features = torch.ones(4, 3, 4, 4)
    attention = torch.zeros(4, 4, 4)
    attention[:, 1, 1] = 1
    same = replace(made, eval_output=replace(made.eval_output, features=features, attention=attention))
    elsewhere = attention.clone()
    elsewhere[2:, 1, 1], elsewhere[2:, 2, 3] = 0, 1
    moved = replace(made, eval_output=replace(same.eval_output, attention=elsewhere))
    assert LOSSES["paired"](moved) < LOSSES["paired"](same)


@given(seed=st.integers(0, 200), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_the_paired_loss_is_bounded(seed: int, scale: float) -> None:
    """It lies in (0, 1] whatever features, attention and noise are."""
    made = batch_(seed)
    features = scale * made.eval_output.features
    value = LOSSES["paired"](replace(made, eval_output=replace(made.eval_output, features=features)))
    assert 0 < value <= 1


def test_equal_outputs_are_consistent() -> None:
    """Consistency is zero where both statistics give equal attention and logits, and positive elsewhere."""
    made = batch_()
    assert LOSSES["consistency"](replace(made, train_output=made.eval_output)).abs() < 1e-6
    assert LOSSES["consistency"](made) > 0
    for name in ("logits", "attention"):
        other = replace(made.eval_output, **{name: getattr(made.train_output, name)})
        assert LOSSES["consistency"](replace(made, train_output=other)) > 0


@given(seed=st.integers(0, 200))
def test_consistency_is_bounded_and_symmetric(seed: int) -> None:
    """It is the sum of two relative distances of at most 2, whichever output comes first."""
    made = batch_(seed)
    assert made.train_output is not None
    value = LOSSES["consistency"](made)
    assert 0 <= value <= 4
    swapped = replace(made, eval_output=made.train_output, train_output=made.eval_output)
    torch.testing.assert_close(LOSSES["consistency"](swapped), value)


def test_consistency_needs_both_outputs() -> None:
    """Without an output with batch statistics the loss is refused."""
    with pytest.raises(ValueError, match="batch statistics"):
        LOSSES["consistency"](batch_(train_output=None))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_a_differentiable_number(name: str) -> None:
    """Each registered loss is a finite scalar with finite gradients."""
    made = batch_(3, images=torch.randn(4, 3, 8, 8))
    read = made.eval_output.logits, made.eval_output.features, made.images
    leaves = [value.clone().requires_grad_() for value in read]
    attention = channel_energy(leaves[1])
    var, mean = torch.var_mean(leaves[1], (0, 2, 3), correction=0)
    eval_output = TeacherOutput(leaves[0], leaves[1], attention, centre_of(attention), (Moments(mean, var),))
    stored_moments = (moments_of([0.1, 0.2, 0.3], [1.0, 2.0, 3.0]),)
    value = LOSSES[name](replace(made, eval_output=eval_output, stored_moments=stored_moments, images=leaves[2]))
    assert value.shape == ()
    assert value.isfinite()
    value.backward()
    grads = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)
    assert any(grad.any() for grad in grads)


def test_smoothness_is_that_of_pixels() -> None:
    """A step between black and white costs 16 per pair of neighbours, an even image nothing, in any normalisation."""
    pixels = torch.zeros(4, 3, 8, 8)
    pixels[..., 4:] = 1
    for known in (KNOWN, replace(KNOWN, mean=(0.0,) * 3, std=(1 / 255,) * 3)):
        made = batch_(images=normalise(pixels, known), preprocessing=known)
        torch.testing.assert_close(LOSSES["smoothness"](made), torch.tensor(16 / 7 / 2))
        even = replace(made, images=normalise(torch.full_like(pixels, 0.7), known))
        assert LOSSES["smoothness"](even) < 1e-8


def test_relative_distances_do_not_depend_on_size() -> None:
    """Equal rows are at distance zero, orthogonal ones at one and opposite ones at two, and zeros are finite."""
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    b = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])
    for scale in (1.0, 1e-4):
        torch.testing.assert_close(relative_distance(scale * a, scale * b), torch.tensor([0.0, 1.0, 2.0, 0.0]))


def test_a_silent_channel_has_a_unit() -> None:
    """The unit of a channel is its variance and a hundredth of the layer's mean."""
    torch.testing.assert_close(unit_variance(torch.tensor([0.0, 2.0])), torch.tensor([0.01, 2.01]))
    assert unit_variance(torch.zeros(2)).min() > 0


def test_the_total_is_the_weighted_sum() -> None:
    """``total`` gives the weighted sum, and beside it each loss without its weight."""
    made = batch_()
    value, losses = total(made, {"classes": 2.0, "centre": 10.0})
    assert list(losses) == ["classes", "centre"]
    torch.testing.assert_close(value, 2 * LOSSES["classes"](made) + 10 * LOSSES["centre"](made))
    torch.testing.assert_close(losses["centre"], LOSSES["centre"](made))


def test_a_loss_without_weight_is_not_computed() -> None:
    """A weight of zero switches a loss off, so its inputs may be missing."""
    value, losses = total(batch_(train_output=None), {"classes": 1.0, "consistency": 0.0})
    assert list(losses) == ["classes"]
    assert value == losses["classes"]


def test_a_new_loss_is_a_function_with_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decorator registers a formula, and a weight of that name reaches it."""
    monkeypatch.setattr("acq.synthesis.losses.LOSSES", dict(LOSSES))

    @loss("bright")
    def bright(batch: GeneratorBatch) -> Tensor:
        return batch.images.mean()

    value, _ = total(batch_(images=torch.ones(4, 3, 8, 8)), {"bright": 3.0})
    assert value == 3
    assert bright(batch_()) == 0
