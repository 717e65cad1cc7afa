from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from helpers import SIZE, images, traced
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from acq.core.values import GeneratorBatch, Preprocessing
from acq.network.teacher import Teacher
from acq.runs.checkpoint import load, save
from acq.synthesis.augmentation import jitter
from acq.synthesis.condition import draw
from acq.synthesis.losses import LOSSES, total
from acq.synthesis.refinement import ImageBatch, begin, refine
from acq.synthesis.scenes import scenes

PREPROCESSING = Preprocessing(SIZE, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
WEIGHTS = {"statistics": 1.0, "classes": 1.0, "centre": 2.0}
CPU = torch.device("cpu")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def teacher() -> Teacher:
    return Teacher(traced("pools")).requires_grad_(False)


def draft(scene: float = 0.5, proposals: Tensor | None = None, seed: int = 0, learning_rate: float = 0.1) -> ImageBatch:
    """Two pairs laid over scenes of ``seed``."""
    asked = draw(2, noise_dim=4, classes=5, spread=0.2, rng=rng(1))
    proposals = images(4) if proposals is None else proposals
    return begin(proposals, asked, PREPROCESSING, scene=scene, learning_rate=learning_rate, rng=rng(seed))


def pixels(normalised: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (PREPROCESSING.mean, PREPROCESSING.std))
    return normalised * std + mean


def descend(made: ImageBatch, steps: int, source: torch.Generator, weights: dict[str, float] = WEIGHTS) -> list[float]:
    """Refine for so many steps; the loss of each."""
    values = []
    for _ in range(steps):
        loss, _ = refine(made, teacher(), PREPROCESSING, weights, source)
        made.optimizer.zero_grad()
        loss.backward()
        made.optimizer.step()
        values.append(float(loss.detach()))
    return values


def test_without_a_scene_images_begin_as_proposed() -> None:
    """With no share of a scene they are the proposals, a fiftieth away from black and white."""
    made = draft(scene=0.0).images(PREPROCESSING)
    torch.testing.assert_close(pixels(made), pixels(images(4)).clamp(0.02, 0.98))


def test_with_nothing_but_a_scene_proposals_do_not_count() -> None:
    """With all of the share they are the scenes of the generator's seed, whatever was proposed."""
    behind = scenes(4, SIZE, rng(3)).clamp(0.02, 0.98)
    for proposals in (images(4), images(4, seed=7)):
        torch.testing.assert_close(pixels(draft(1.0, proposals, seed=3).images(PREPROCESSING)), behind)


@settings(max_examples=20)
@given(scene=st.floats(0, 1), scale=st.sampled_from([0.1, 1.0, 50.0]), seed=st.integers(0, 99))
def test_images_begin_between_proposal_and_scene(scene: float, scale: float, seed: int) -> None:
    """Logits are the weighted mean of the two, so every pixel is between them, inside (0, 1) and with a slope."""
    proposals = scale * images(4, seed=seed)
    ends = [pixels(draft(end, proposals, seed).images(PREPROCESSING)).detach() for end in (0.0, 1.0)]
    made = draft(scene, proposals, seed)
    found = pixels(made.images(PREPROCESSING)).detach()
    assert (found >= torch.minimum(*ends) - 1e-5).all()
    assert (found <= torch.maximum(*ends) + 1e-5).all()
    torch.testing.assert_close(found.clamp(0.02, 0.98), found, rtol=0, atol=1e-5)
    mean = (1 - scene) * torch.logit(ends[0]) + scene * torch.logit(ends[1])
    torch.testing.assert_close(made.logits.detach(), mean, rtol=1e-3, atol=1e-3)


def test_a_draft_holds_on_to_nothing_else() -> None:
    """Its logits are a leaf in channels last, and proposals are neither changed nor sent a gradient."""
    proposals = images(4).requires_grad_()
    before = proposals.detach().clone()
    made = draft(proposals=proposals)
    assert made.logits.is_leaf
    assert made.logits.is_contiguous(memory_format=torch.channels_last)
    descend(made, 2, rng())
    assert proposals.grad is None
    assert torch.equal(proposals, before)


@given(seed=st.integers(0, 20))
@settings(max_examples=8)
def test_refining_is_the_losses_on_images_a_little_moved(seed: int) -> None:
    """Equals the weighted losses of the teacher's reading of the images jittered with the same seed."""
    weights, made = {**WEIGHTS, "paired": 0.5}, draft()
    loss, parts = refine(made, teacher(), PREPROCESSING, weights, rng(seed))
    moved, asked = jitter(made.images(PREPROCESSING), made.condition, rng(seed))
    reading = teacher().read(moved, asked.label, moments=True)
    expected, named = total(GeneratorBatch(asked, moved, reading, None, teacher().stored_moments), weights)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(parts, named)
    torch.testing.assert_close(loss, torch.stack([weights[name] * parts[name] for name in weights]).sum())


def test_batch_statistics_are_read_when_asked_for() -> None:
    """Every loss can be weighed, consistency with its second reading too, and a weight of zero leaves one out."""
    _, parts = refine(draft(), teacher(), PREPROCESSING, dict.fromkeys(LOSSES, 1.0), rng())
    assert set(parts) == set(LOSSES)
    assert all(value.isfinite() for value in parts.values())
    assert parts["consistency"] > 0
    _, fewer = refine(draft(), teacher(), PREPROCESSING, {**dict.fromkeys(LOSSES, 1.0), "consistency": 0.0}, rng())
    assert set(fewer) == set(LOSSES) - {"consistency"}


@pytest.mark.parametrize("name", ["statistics", "classes", "centre"])
def test_pixels_descend_a_loss(name: str) -> None:
    """Forty steps on one loss lower it, seen with the same jitter before and after."""
    made = draft()

    def now() -> float:
        with torch.no_grad():
            return sum(float(refine(made, teacher(), PREPROCESSING, {name: 1.0}, rng(s))[0]) for s in range(8)) / 8

    before = now()
    descend(made, 40, rng(9), {name: 1.0})
    assert now() < 0.7 * before


def test_refining_changes_pixels_alone() -> None:
    """After steps the teacher and what was asked are as before, and images are still pixels."""
    made = draft(learning_rate=1.0)
    asked = {name: value.clone() for name, value in vars(made.condition).items()}
    weights = {name: value.clone() for name, value in teacher().state_dict().items()}
    begun = made.logits.detach().clone()
    descend(made, 5, rng(), {**WEIGHTS, "consistency": 1.0})
    assert (made.logits != begun).flatten(1).any(1).all()
    assert all(torch.equal(value, asked[name]) for name, value in vars(made.condition).items())
    assert all(torch.equal(value, weights[name]) for name, value in teacher().state_dict().items())
    found = pixels(made.images(PREPROCESSING))
    assert found.min() > -1e-6
    assert found.max() < 1 + 1e-6


def test_different_scenes_lead_to_different_images() -> None:
    """One proposal four times stays one image without scenes, and becomes four over them."""
    asked = draw(1, noise_dim=4, classes=5, spread=0.2, rng=rng(1))
    asked = type(asked)(*(value.repeat(2, *[1] * (value.dim() - 1)) for value in vars(asked).values()))
    proposals = images(1).expand(4, -1, -1, -1)
    spread = []
    for scene in (0.0, 0.5):
        made = begin(proposals, asked, PREPROCESSING, scene=scene, learning_rate=0.1, rng=rng())
        descend(made, 20, rng(2))
        spread.append(torch.pdist(pixels(made.images(PREPROCESSING)).detach().flatten(1)).min() / 768**0.5)
    assert spread[0] < 1e-3
    assert spread[1] > 0.05


def test_one_seed_one_set_of_images() -> None:
    """Two runs are equal bit for bit, whatever the global seed; other scenes or other jitter make others."""

    def run(scene: int, jitter: int) -> Tensor:
        made = draft(seed=scene)
        descend(made, 4, rng(jitter))
        return made.images(PREPROCESSING).detach()

    first = run(5, 5)
    torch.manual_seed(99)
    assert torch.equal(run(5, 5), first)
    assert not torch.equal(run(6, 5), first)
    assert not torch.equal(run(5, 6), first)


@pytest.mark.parametrize("done", [0, 1, 4])
def test_a_saved_draft_goes_on_exactly(done: int, tmp_path: Path) -> None:
    """Written, read and restored after some steps, it takes the next ones bit for bit, and so does the original."""
    made, source = draft(), rng()
    descend(made, done, source)
    save(tmp_path / "run.ckpt", {"draft": made.state(), "rng": source.get_state()})
    state = load(tmp_path / "run.ckpt")
    other, again = ImageBatch.restored(state["draft"], CPU), torch.Generator()
    again.set_state(state["rng"])
    assert torch.equal(other.logits, made.logits)
    assert other.logits.stride() == made.logits.stride()
    assert all(torch.equal(value, vars(made.condition)[name]) for name, value in vars(other.condition).items())
    assert descend(other, 4, again) == descend(made, 4, source)
    assert torch.equal(other.logits, made.logits)
    assert torch.equal(other.images(PREPROCESSING), made.images(PREPROCESSING))


def test_pixels_near_black_and_white_are_restored() -> None:
    """Logits far beyond where a draft begins come back as they were, not cut to the edge again."""
    made = draft()
    with torch.no_grad():
        made.logits.mul_(20)
    restored = ImageBatch.restored(made.state(), CPU)
    assert torch.equal(restored.logits, made.logits)
    assert restored.optimizer.param_groups[0]["lr"] == 0.1
