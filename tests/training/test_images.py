from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import SIZE
from pydantic import ValidationError
from small_runs import KNOWN, assert_same, training_
from torch import Tensor, nn

from acq.core.evaluate import evaluating
from acq.core.outputs import Traits
from acq.core.pixels import denormalise
from acq.core.values import Condition, GeneratorBatch, Preprocessing
from acq.synthesis.augmentation import jitter
from acq.synthesis.losses import total
from acq.synthesis.pictures import pictures
from acq.synthesis.refinement import start
from acq.synthesis.strokes import strokes
from acq.training.context import Context
from acq.training.images import EXAMPLES, ImageLosses, ImageRefinement, ImageSettings
from acq.training.phase import StepResult

NONE = dict.fromkeys(ImageLosses.model_fields, 0.0)


def phase_(**settings: Any) -> ImageRefinement:
    phase = training_(images=settings).phases["images"]
    assert isinstance(phase, ImageRefinement)
    return phase


def finished(phase: ImageRefinement) -> list[StepResult]:
    return [phase.step(number, 1.0) for number in range(phase.steps)]


def is_made(context: Context) -> bool:
    return context.state()["dataset"] is not None


def other_state(rng: torch.Generator) -> torch.Generator:
    """A random state of its own that draws the same."""
    copied = torch.Generator()
    copied.set_state(rng.get_state())
    return copied


class Same(nn.Module):
    """A generator that makes the same image for every condition."""

    def forward(self, condition: Condition) -> Tensor:
        image = torch.randn(1, *SIZE, generator=torch.Generator().manual_seed(0))
        return image.repeat(len(condition.label), 1, 1, 1)


@pytest.mark.parametrize("name", ["classes", "statistics", "centre", "paired", "consistency", "smoothness"])
def test_images_descend_a_loss(name: str) -> None:
    """On a toy each loss falls when it alone has a weight."""
    found = finished(phase_(losses={**NONE, name: 1.0}, count=16, batch=16, steps=30))
    values = [result.losses[name].item() for result in found]
    assert sum(values[-5:]) < 0.95 * sum(values[:5])


def test_a_step_descends_the_losses_of_jittered_images() -> None:
    """A first step equals start, jitter, the teacher's output and the losses, put together by hand."""
    weights = {**NONE, "statistics": 1.0, "classes": 1.0, "centre": 2.0, "paired": 0.5}
    phase = phase_(losses=weights, batch=8)
    context, rng = phase.context, other_state(phase.context.rng)
    condition = context.conditions.draw(4, rng)
    with evaluating(context.generator):
        proposals = context.generator(condition)
    background = pictures(8, KNOWN.input_size, rng, context.drawn)
    batch = start(proposals, condition, KNOWN, background=background, scene=0.5, learning_rate=0.1)
    moved, asked = jitter(batch.images(KNOWN), condition, rng)
    output = context.teacher.read(moved, asked.label, moments=True)
    _, losses = total(
        GeneratorBatch(asked, moved, output, None, context.teacher.stored_moments, context.teacher.output, KNOWN),
        weights,
    )
    found = phase.step(0, 1.0).losses
    torch.testing.assert_close(dict(found), losses)
    assert torch.equal(context.rng.get_state(), rng.get_state())


@pytest.mark.parametrize("consistency", [1.0, 0.0])
def test_batch_statistics_are_computed_on_demand(monkeypatch: pytest.MonkeyPatch, consistency: float) -> None:
    """Every loss can have a weight, and without that of consistency the second forward pass is left out."""
    phase, asked = phase_(losses={**dict.fromkeys(NONE, 1.0), "consistency": consistency}), list[bool]()
    observe = phase.context.observe

    def observed(images: Tensor, condition: Condition, *, batch_statistics: bool) -> GeneratorBatch:
        asked.append(batch_statistics)
        return observe(images, condition, batch_statistics=batch_statistics)

    monkeypatch.setattr(phase.context, "observe", observed)
    losses = phase.step(0, 1.0).losses
    assert losses.keys() == {name for name in NONE if consistency or name != "consistency"}
    assert all(value.isfinite() for value in losses.values())
    assert asked == [bool(consistency)]


def test_different_scenes_lead_to_different_images() -> None:
    """One proposal for all stays one image without scenes, and becomes different images over them."""
    apart = []
    for scene in (0.0, 0.5):
        phase = phase_(scene=scene, count=16, batch=16, steps=10, losses={**NONE, "statistics": 1.0})
        phase.context._generator = Same()
        finished(phase)
        pixels = denormalise(phase.context.dataset.images, KNOWN)
        apart.append(torch.pdist(pixels.flatten(1)).min().item() / 768**0.5)
    assert apart[0] < 1e-3
    assert apart[1] > 0.05


@pytest.mark.parametrize(
    ("count", "batch", "steps"), [(24, 10, 3), (24, 24, 1), (16, 100, 2), (18, 8, 1), (24, 10, 0), (18, 8, 0)]
)
def test_the_dataset_has_as_many_images_as_set(count: int, batch: int, steps: int) -> None:
    """Whether or not batches divide the count, the dataset is there with the last step, without repeated images."""
    phase = phase_(count=count, batch=batch, steps=steps)
    for number in range(phase.steps):
        assert not is_made(phase.context)
        phase.step(number, 1.0)
    dataset = phase.context.dataset
    assert len(dataset) == len(dataset.images) == len(dataset.batch.logits) == len(dataset.centre) == count
    assert len(dataset.images.flatten(1).unique(dim=0)) == count
    assert dataset.oldest == 0
    assert phase.state() == {"current": None, "finished": [], "origin": None}


def test_images_are_refined_batch_by_batch() -> None:
    """Of 24 images ten, ten and four are refined in turn, and finished batches do not change."""
    phase, current, kept = phase_(steps=3), [], list[Tensor]()
    for number in range(phase.steps):
        phase.step(number, 1.0)
        preview = phase.preview(100)
        current.append(0 if preview is None else len(preview))
        kept += [images.clone() for images, _, _ in phase.state()["finished"][len(kept) :]]
    assert current == [10, 10, 0, 10, 10, 0, 4, 4, 0]
    assert torch.equal(phase.context.dataset.images[:20], torch.cat(kept))


def test_images_of_a_network_that_reads_start_from_drawings() -> None:
    """With the whole share of a scene and of strokes, the first images start as drawings of the random state."""
    phase = phase_(scene=1.0, strokes=1.0, count=16, batch=16, steps=1)
    rng = other_state(phase.context.rng)
    phase.context.conditions.draw(8, rng)
    finished(phase)
    assert phase.context.examples is not None
    start = denormalise(phase.context.examples.start, KNOWN)
    torch.testing.assert_close(start, strokes(16, KNOWN.input_size, rng)[:EXAMPLES].clamp(0.02, 0.98))


@pytest.mark.parametrize(("given", "reads", "share"), [("auto", True, 1.0), ("auto", False, 0.0), (0.25, True, 0.25)])
@pytest.mark.parametrize("asks", [True, False])
def test_the_network_decides_on_drawings(given: float | str, reads: bool, share: float, asks: bool) -> None:
    """Unless the share is given, it is that of networks that read, or 0."""
    traits = Traits(reads=reads, asks=asks, whole=asks, normalised=asks)
    assert ImageSettings(strokes=given).fitted(traits, generated=asks).strokes == share


def test_finished_images_are_pixels() -> None:
    """However large the learning rate, the dataset has normalised pixels in [0, 1]."""
    phase = phase_(learning_rate=5.0)
    finished(phase)
    pixels = denormalise(phase.context.dataset.images, KNOWN)
    assert pixels.shape[1:] == SIZE
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6


@pytest.mark.parametrize("scene", [0.0, 0.5])
def test_without_steps_images_are_as_generated(scene: float) -> None:
    """One step without losses makes the dataset of what the generator gives for the next conditions."""
    phase, other = phase_(steps=0, scene=scene, batch=8), phase_()
    (result,) = finished(phase)
    assert result == StepResult({})
    assert_same(phase.context.dataset, other.context.generated(24))
    assert torch.equal(phase.context.rng.get_state(), other.context.rng.get_state())
    assert phase.context.examples is None


def test_steps_change_what_was_generated() -> None:
    """Without a scene images start as generated, and a single step moves each pixel a little."""
    phase, other = phase_(steps=1, batch=24, scene=0.0), training_().context
    finished(phase)
    condition = other.conditions.draw(12, other.rng)
    with evaluating(other.generator):
        proposals = denormalise(other.generator(condition), KNOWN).clamp(0.02, 0.98)
    moved = (denormalise(phase.context.dataset.images, KNOWN) - proposals).abs()
    assert moved.mean() > 0.001
    assert moved.max() < 0.1


@pytest.mark.parametrize("steps", [0, 2])
def test_the_dataset_has_the_teacher_s_outputs(steps: int) -> None:
    """Logits and features of each image are what the teacher gives for it, without gradients."""
    phase = phase_(steps=steps)
    finished(phase)
    batch = phase.context.dataset.batch
    output = phase.context.teacher.read(batch.images)
    torch.testing.assert_close(batch.logits, output.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch.features, output.features, rtol=1e-4, atol=1e-5)
    assert not batch.images.requires_grad


def test_examples_show_the_way_of_the_first_images() -> None:
    """Proposal, start and finished image of the first images are kept with what was requested of them."""
    phase = phase_(count=32, batch=16)
    finished(phase)
    examples, dataset = phase.context.examples, phase.context.dataset
    assert examples is not None
    assert torch.equal(examples.finished, dataset.images[:EXAMPLES])
    assert torch.equal(examples.label, dataset.label[:EXAMPLES])
    assert torch.equal(examples.centre, dataset.centre[:EXAMPLES])
    assert len(examples.proposal) == len(examples.start) == EXAMPLES
    for one, other in ((examples.proposal, examples.start), (examples.start, examples.finished)):
        assert (one != other).flatten(1).any(1).all()


def test_only_pixels_are_trained() -> None:
    """Generator and teacher do not change, and the batch norms of the generator neither."""
    phase = phase_()
    before = [copy.deepcopy(part.state_dict()) for part in (phase.context.generator, phase.context.teacher)]
    finished(phase)
    assert_same([part.state_dict() for part in (phase.context.generator, phase.context.teacher)], before)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_state_is_a_snapshot_from_which_another_phase_continues(stop: int) -> None:
    """Taken within a batch or after it, a state does not change, and leads another run to the same dataset."""
    phase, other = phase_(), phase_()
    for number in range(stop):
        phase.step(number, 1.0)
    state, context = phase.state(), phase.context.state()
    before = copy.deepcopy(state)
    for number in range(stop, phase.steps):
        phase.step(number, 1.0)
    assert_same(state, before)
    other.restore(state)
    other.context.restore(context)
    for number in range(stop, other.steps):
        other.step(number, 1.0)
    assert_same(other.context.dataset, phase.context.dataset)
    assert_same(other.context.examples, phase.context.examples)
    assert_same(state, before)


@pytest.mark.parametrize(("size", "count", "batch"), [(32, 512, 256), (224, 208, 20)])
def test_automatic_numbers_depend_on_the_image_size(size: int, count: int, batch: int) -> None:
    """Large images are fewer, and are refined in smaller batches."""
    context = training_().context
    context.preprocessing = Preprocessing((3, size, size), (0.5,) * 3, (0.25,) * 3)
    phase = ImageRefinement(ImageSettings(), context)
    assert (phase.count, phase.batch) == (count, batch)
    assert phase.steps == 100 * -(-count // batch)
    given = ImageRefinement(ImageSettings(count=16, batch=4), context)
    assert (given.count, given.batch) == (16, 4)


def test_images_come_in_pairs() -> None:
    """Odd numbers of images and tiny batches are refused."""
    for name, value in (("count", 17), ("batch", 5), ("batch", 2)):
        with pytest.raises(ValidationError, match=name):
            ImageSettings.model_validate({name: value})
