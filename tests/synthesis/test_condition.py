from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from acq.core.outputs import Output
from acq.synthesis.condition import ConditionSampler


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(pairs=st.integers(1, 40), classes=st.integers(2, 12), seed=st.integers(0, 99))
def test_pairs_share_label_and_centre_and_differ_in_noise(pairs: int, classes: int, seed: int) -> None:
    """Entries ``i`` and ``i + pairs`` have one label and one centre, and noise of their own."""
    condition = ConditionSampler(3, Output.of("class", classes), 0.2).draw(pairs, rng(seed))
    assert condition.noise.shape == (2 * pairs, 3)
    assert torch.equal(condition.label[:pairs], condition.label[pairs:])
    assert torch.equal(condition.centre[:pairs], condition.centre[pairs:])
    assert (condition.noise[:pairs] != condition.noise[pairs:]).any(1).all()


@given(pairs=st.integers(1, 40), classes=st.integers(2, 12), seed=st.integers(0, 99))
def test_labels_are_balanced(pairs: int, classes: int, seed: int) -> None:
    """In one draw no class has two pairs more than another."""
    label = ConditionSampler(1, Output.of("class", classes), 0.2).draw(pairs, rng(seed)).label[:pairs]
    counts = torch.bincount(label, minlength=classes)
    assert len(counts) == classes
    assert counts.max() - counts.min() <= 1


def test_small_draws_reach_every_class() -> None:
    """With fewer pairs than classes, no class is favoured over many draws."""
    source = rng()
    draws = [ConditionSampler(1, Output.of("class", 10), 0.2).draw(4, source).label[:4] for _ in range(500)]
    counts = torch.bincount(torch.cat(draws), minlength=10)
    assert counts.min() > 150
    assert counts.max() < 250


def test_centres_and_noise_have_their_deviations() -> None:
    """Centres are normal with the requested deviation, noise is standard normal, and no two are correlated."""
    condition = ConditionSampler(2, Output.of("class", 5), 0.15).draw(20_000, rng())
    torch.testing.assert_close(condition.centre.std(0), torch.full((2,), 0.15), rtol=0.03, atol=0)
    torch.testing.assert_close(condition.centre.mean(0), torch.zeros(2), rtol=0, atol=0.005)
    torch.testing.assert_close(condition.noise.std(0), torch.ones(2), rtol=0.03, atol=0)
    columns = torch.cat((condition.noise, condition.centre, condition.label.unsqueeze(1)), 1)
    assert (torch.corrcoef(columns.T) - torch.eye(5)).abs().max() < 0.03


def test_centres_stay_in_the_frame() -> None:
    """A wide distribution is clipped to [-1, 1], and a deviation of zero asks for the middle."""
    wide = ConditionSampler(1, Output.of("class", 2), 1.0).draw(1000, rng()).centre
    assert wide.abs().max() == 1
    assert not ConditionSampler(1, Output.of("class", 2), 0.0).draw(10, rng()).centre.any()


def test_one_seed_one_draw() -> None:
    """Equal random states give equal draws, whatever the global seed, and another state gives another."""
    first = ConditionSampler(4, Output.of("class", 3), 0.2).draw(8, rng(5))
    torch.manual_seed(99)
    second = ConditionSampler(4, Output.of("class", 3), 0.2).draw(8, rng(5))
    other = ConditionSampler(4, Output.of("class", 3), 0.2).draw(8, rng(6))
    for name in ("noise", "label", "centre"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert not torch.equal(first.noise, other.noise)
    assert not torch.equal(first.centre, other.centre)
