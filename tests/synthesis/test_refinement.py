from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import SIZE, images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from acq.core.outputs import Output
from acq.core.pixels import denormalise
from acq.core.values import Preprocessing
from acq.runs.checkpoint import load, save
from acq.synthesis.condition import ConditionSampler
from acq.synthesis.refinement import ImageBatch, start
from acq.synthesis.scenes import scenes

KNOWN = Preprocessing(SIZE, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
CPU = torch.device("cpu")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def started(scene: float = 0.5, proposals: Tensor | None = None, seed: int = 0) -> ImageBatch:
    """Two pairs of images over scenes of ``seed``."""
    condition = ConditionSampler(4, Output.of("class", 5), 0.2).draw(2, rng(1))
    proposals = images(4) if proposals is None else proposals
    background = scenes(4, SIZE, rng(seed))
    return start(proposals, condition, KNOWN, background=background, scene=scene, learning_rate=0.1)


def pixels(batch: ImageBatch) -> Tensor:
    return denormalise(batch.images(KNOWN), KNOWN).detach()


def descend(batch: ImageBatch, steps: int) -> None:
    """Darken the images."""
    for _ in range(steps):
        batch.optimizer.zero_grad()
        batch.images(KNOWN).square().sum().backward()
        batch.optimizer.step()


def test_without_a_scene_images_start_as_proposed() -> None:
    """With no share of a scene, images are the proposals, kept a fiftieth away from black and white."""
    torch.testing.assert_close(pixels(started(0.0)), denormalise(images(4), KNOWN).clamp(0.02, 0.98))


def test_with_nothing_but_a_scene_proposals_do_not_count() -> None:
    """With the whole share, images are the scenes of the random state, whatever was proposed."""
    behind = scenes(4, SIZE, rng(3)).clamp(0.02, 0.98)
    for proposals in (images(4), images(4, seed=7)):
        torch.testing.assert_close(pixels(started(1.0, proposals, seed=3)), behind)


@settings(max_examples=20)
@given(scene=st.floats(0, 1), scale=st.sampled_from([0.1, 1.0, 50.0]), seed=st.integers(0, 99))
def test_images_start_between_proposal_and_scene(scene: float, scale: float, seed: int) -> None:
    """Logits are the weighted mean of both, so each pixel lies between them and inside (0, 1)."""
    proposals = scale * images(4, seed=seed)
    ends = [pixels(started(end, proposals, seed)) for end in (0.0, 1.0)]
    batch = started(scene, proposals, seed)
    found = pixels(batch)
    assert (found >= torch.minimum(*ends) - 1e-5).all()
    assert (found <= torch.maximum(*ends) + 1e-5).all()
    torch.testing.assert_close(found.clamp(0.02, 0.98), found, rtol=0, atol=1e-5)
    mean = (1 - scene) * torch.logit(ends[0]) + scene * torch.logit(ends[1])
    torch.testing.assert_close(batch.logits.detach(), mean, rtol=1e-3, atol=1e-3)


def test_the_proposals_are_left_alone() -> None:
    """The logits are a leaf in channels last, and proposals get neither changes nor a gradient."""
    proposals = images(4).requires_grad_()
    before = proposals.detach().clone()
    batch = started(proposals=proposals)
    assert batch.logits.is_leaf
    assert batch.logits.is_contiguous(memory_format=torch.channels_last)
    descend(batch, 2)
    assert proposals.grad is None
    assert torch.equal(proposals, before)


def test_the_optimizer_trains_the_logits_alone() -> None:
    """Steps change every image and nothing of the condition, and images stay pixels."""
    batch = started()
    condition = {name: value.clone() for name, value in vars(batch.condition).items()}
    before = batch.logits.detach().clone()
    descend(batch, 5)
    assert (batch.logits != before).flatten(1).any(1).all()
    assert all(torch.equal(value, condition[name]) for name, value in vars(batch.condition).items())
    assert pixels(batch).min() > -1e-6
    assert pixels(batch).max() < 1 + 1e-6


def test_one_seed_one_start() -> None:
    """Equal random states give equal images, whatever the global seed, and another state gives others."""
    first = pixels(started(seed=5))
    torch.manual_seed(99)
    assert torch.equal(pixels(started(seed=5)), first)
    assert not torch.equal(pixels(started(seed=6)), first)


@pytest.mark.parametrize("done", [0, 4])
def test_a_restored_batch_continues_exactly(done: int, tmp_path: Path) -> None:
    """Written and read after some steps, it takes the next ones bit for bit like the original."""
    batch = started()
    descend(batch, done)
    save(tmp_path / "state", batch.state())
    other = ImageBatch.restored(load(tmp_path / "state"), CPU)
    assert torch.equal(other.logits, batch.logits)
    assert other.logits.stride() == batch.logits.stride()
    assert all(torch.equal(value, vars(batch.condition)[name]) for name, value in vars(other.condition).items())
    for images_ in (batch, other):
        descend(images_, 4)
    assert torch.equal(other.logits, batch.logits)
    assert torch.equal(other.images(KNOWN), batch.images(KNOWN))


def test_a_state_is_a_snapshot() -> None:
    """Steps after it change neither the state nor what is restored from it."""
    batch = started()
    descend(batch, 2)
    state, logits = batch.state(), batch.logits.detach().clone()
    restored = ImageBatch.restored(state, CPU)
    descend(batch, 2)
    descend(restored, 2)
    assert torch.equal(batch.logits, restored.logits)
    assert torch.equal(ImageBatch.restored(state, CPU).logits, logits)


def test_pixels_near_black_and_white_are_restored() -> None:
    """Logits far beyond where images start are restored exactly, and so is the learning rate."""
    batch = started()
    with torch.no_grad():
        batch.logits.mul_(20)
    restored = ImageBatch.restored(batch.state(), CPU)
    assert torch.equal(restored.logits, batch.logits)
    assert restored.optimizer.param_groups[0]["lr"] == 0.1
