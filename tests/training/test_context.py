from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import CLASSES, images
from small_runs import assert_same, training_

from acq.core.processes import Processes
from acq.core.values import Condition
from acq.synthesis.condition import ConditionSampler
from acq.synthesis.dataset import Examples, augmented, generate, teach
from acq.training.context import Context
from acq.training.selection import Selection, StudentQuality


def context(**settings: Any) -> Context:
    return training_(**settings).context


def condition(pairs: int = 3) -> Condition:
    return ConditionSampler(noise_dim=4, output=CLASSES, centre_std=0.2).draw(pairs, torch.Generator().manual_seed(1))


def test_what_no_phase_has_made_is_missed() -> None:
    """The dataset and the selection are refused before a phase has made them."""
    made = context()
    with pytest.raises(RuntimeError, match="no synthetic images yet"):
        _ = made.dataset
    with pytest.raises(RuntimeError, match="no student is selected yet"):
        _ = made.selection


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_imagined_images_are_the_generator_s_as_the_teacher_reads_them(batch_statistics: bool) -> None:
    """Images, outputs with both statistics and stored moments belong together and lead back to the generator."""
    made, asked = context(), condition()
    batch = made.imagine(asked, batch_statistics=batch_statistics)
    assert torch.equal(batch.images, context().generator(asked))
    teacher = made.teacher
    assert_same(batch.eval_output, teacher.read(batch.images, asked.label, moments=True))
    assert (batch.train_output is not None) == batch_statistics
    if batch.train_output is not None:
        expected = teacher.read(batch.images, asked.label, batch_statistics=True)
        assert_same(batch.train_output, expected)
    assert batch.condition is asked
    assert len(batch.stored_moments) == len(batch.eval_output.moments) == 3
    batch.eval_output.centre[:, 0].sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in made.generator.parameters())


def test_observed_images_are_read_alike() -> None:
    """Images that come from elsewhere are read like those of the generator, with gradients."""
    made, asked, x = context(), condition(2), images(4).requires_grad_()
    batch = made.observe(x, asked, batch_statistics=True)
    assert_same(batch.eval_output, made.teacher.read(x, asked.label, moments=True))
    assert batch.images is x
    (gradient,) = torch.autograd.grad(batch.eval_output.logits.sum(), x)
    assert gradient.any()


def test_generated_images_are_taught() -> None:
    """A new dataset has the generator's images in eval mode, their conditions, and the teacher's outputs for them."""
    made, other = context(), context()
    dataset = made.generated(10)
    x, asked = generate(other.generator, other.conditions, 10, other.rng)
    assert_same(dataset.batch, teach(x, other.teacher))
    assert torch.equal(dataset.label, asked.label)
    assert torch.equal(dataset.centre, asked.centre)
    assert torch.equal(made.rng.get_state(), other.rng.get_state())
    assert not dataset.images.requires_grad


def test_a_batch_is_augmented_with_the_context_s_random_state() -> None:
    """Augmented images and the teacher's outputs are those of ``acq.synthesis.dataset``."""
    made, other = context(), context()
    batch = made.teach(images(6))
    expected = augmented(batch, 0.5, other.rng, lambda x: teach(x, other.teacher))
    assert_same(made.augmented(batch, 0.5), expected)


def test_images_too_few_to_share_are_read_by_each_process() -> None:
    """With fewer pairs than processes the teacher is asked without a message, which would wait for nobody."""
    alone, shared = context(), context(images={"batch": 8}, processes=Processes(3, 4))
    assert_same(shared.teach(images(3)), alone.teach(images(3)))


def test_the_student_s_output_has_logits_and_features() -> None:
    """Both come from one pass, with gradients, and features have the teacher's shape."""
    made = context()
    for quantizer in (
        *dict(made.student.activations()).values(),
        *(q.weight_quantizer for _, q in made.student.layers()),
    ):
        quantizer.enabled = False
    x = images(3)
    logits, features = made.student_output(x)
    output = made.teacher.read(x)
    torch.testing.assert_close(logits, output.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features, output.features, rtol=1e-4, atol=1e-5)
    assert logits.requires_grad
    assert features.requires_grad


def test_a_step_uses_a_part_of_each_group_s_rate() -> None:
    """The factor scales the rates of one step, and each group keeps its own."""
    values = [torch.zeros(2, requires_grad=True) for _ in range(2)]
    groups = [{"params": [value], "lr": rate} for value, rate in zip(values, (1.0, 0.5), strict=True)]
    optimizer = torch.optim.SGD(groups, lr=9.0)
    context().descend(optimizer, torch.stack(values).sum(), 0.1)
    assert [value.tolist() for value in values] == [pytest.approx([-0.1] * 2), pytest.approx([-0.05] * 2)]
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.5]


def test_gradients_of_a_step_do_not_add_up() -> None:
    """Gradients of earlier steps are dropped."""
    value = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([value], lr=1.0)
    made = context()
    for _ in range(2):
        made.descend(optimizer, 2 * value.sum(), 1.0)
    assert value.item() == -4


def full() -> Context:
    """A context in which everything is there."""
    made = context()
    made.dataset = made.generated(8)
    x = made.dataset.images[:2]
    made.examples = Examples(x, x + 1, x + 2, torch.tensor([0, 1]), torch.zeros(2, 2))
    made.candidates = {"calibrated": copy.deepcopy(made.student.state_dict())}
    worst = StudentQuality(1.5, 20.0, 0.7)
    made.selection = Selection({"calibrated": worst}, "calibrated", worst, 12.5, {"logits": 1.0})
    return made


def changed(made: Context) -> None:
    """Change everything in place, as training does."""
    with torch.no_grad():
        for value in (*made.generator.parameters(), *made.student.parameters()):
            value.add_(1)
    torch.randn(3, generator=made.rng)
    made.dataset = made.dataset.renewed(made.generated(3))
    made.candidates["trained"] = copy.deepcopy(made.student.state_dict())
    made.examples = None
    made.selection = replace(made.selection, selected="trained")


def test_a_state_is_a_snapshot() -> None:
    """Changes of the context do not reach a state that was taken before."""
    made = full()
    state = made.state()
    before = copy.deepcopy(state)
    changed(made)
    assert_same(state, before)


def test_a_context_is_restored_whole() -> None:
    """A new context that is restored equals the old one, draws the same, and leaves the state alone."""
    made, other = full(), context()
    state = made.state()
    before = copy.deepcopy(state)
    other.restore(state)
    assert_same(other.state(), before)
    assert other.selection == made.selection
    assert_same(other.generated(4), made.generated(4))
    changed(other)
    assert_same(state, before)


def test_an_empty_context_is_restored_empty() -> None:
    """What is not there yet is not there after going back either."""
    made = full()
    made.restore(context().state())
    assert made.candidates == {}
    assert made.examples is None
    with pytest.raises(RuntimeError, match="no synthetic images yet"):
        _ = made.dataset


def test_mixed_precision_is_close_and_repeats() -> None:
    """Products in bfloat16 give other images and outputs in 32 bits, which are near and the same each time."""
    asked = condition()
    full_, mixed = (
        context(precision=precision).imagine(asked, batch_statistics=True) for precision in ("full", "mixed")
    )
    for name in ("images", "eval_output", "train_output"):
        one, other = getattr(full_, name), getattr(mixed, name)
        pairs = [(one, other)] if name == "images" else [(one.logits, other.logits), (one.features, other.features)]
        for exact, rough in pairs:
            assert rough.dtype == torch.float32
            assert 0 < (rough - exact).abs().mean() < 0.1 * exact.std()
    assert_same(context(precision="mixed").imagine(asked, batch_statistics=True), mixed)
