from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from helpers import SIZE, student_of, traced
from torch import Tensor, nn

from acq.analysis.conditioning import fresh_steps, review
from acq.core.values import Condition, GeneratorBatch, Preprocessing, TeacherOutput
from acq.network.attention import centre_of
from acq.network.teacher import Teacher
from acq.synthesis.generators import CanvasGenerator


def attention_at(cells: Tensor) -> Tensor:
    """Maps [N, 8, 8] with all mass in the cells (column, row) [N, 2]."""
    attention = torch.zeros(len(cells), 8, 8)
    attention[torch.arange(len(cells)), cells[:, 1], cells[:, 0]] = 1
    return attention


def step(count: int = 32, seed: int = 0) -> GeneratorBatch:
    """A step whose images do exactly as they are told: attention where it was asked, the class that was asked."""
    rng = torch.Generator().manual_seed(seed)
    half = count // 2
    cells = torch.randint(8, (half, 2), generator=rng).repeat(2, 1)
    label = (torch.arange(half) % 4).repeat(2)
    attention = attention_at(cells)
    logits = 10 * nn.functional.one_hot(label, 4).float()
    features = torch.ones(count, 2, 8, 8)
    reading = TeacherOutput(logits, features, attention, centre_of(attention), ())
    condition = Condition(torch.randn(count, 3, generator=rng), label, reading.centre)
    return GeneratorBatch(condition, torch.randn(count, 3, 4, 4, generator=rng), reading, reading, ())


def eval_output(made: GeneratorBatch, **changes: Tensor) -> GeneratorBatch:
    return replace(made, eval_output=replace(made.eval_output, **changes))


def fresh(count: int = 16, seed: int = 0, spread: float = 0.2, batch: int = 8) -> Iterator[GeneratorBatch]:
    torch.manual_seed(0)
    generator = CanvasGenerator(Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3), 5, noise_dim=4, width=8)
    rng = torch.Generator().manual_seed(seed)
    teacher = Teacher(traced("residual"))
    return fresh_steps(generator, teacher, count, noise_dim=4, spread=spread, rng=rng, batch=batch)


def test_full_control_is_told_as_such() -> None:
    """Centres and classes that are met correlate fully, maps that agree are alike, equal pairs are not apart."""
    control = review(iter([step()])).control
    assert control.correlation == pytest.approx(1)
    assert control.label_agreement == 1
    assert control.eval_train_similarity == pytest.approx(1)
    assert control.pair_distance == 0


def test_correlation_is_that_of_the_worse_axis() -> None:
    """Following on one axis alone is no control; doing the opposite counts against it."""
    made = step()
    centre = made.condition.centre
    mirrored = eval_output(made, centre=centre * torch.tensor([1.0, -1.0]))
    assert review(iter([mirrored])).control.correlation == pytest.approx(-1)
    still = eval_output(made, centre=centre * torch.tensor([1.0, 0.0]))
    assert review(iter([still])).control.correlation == 0


def test_correlation_is_pearson_s_over_all_steps() -> None:
    """Equals ``torch.corrcoef`` of the centres of every step together."""
    steps = [step(seed=seed) for seed in range(3)]
    noisy = [eval_output(made, centre=made.condition.centre + torch.randn(32, 2)) for made in steps]
    requested = torch.cat([made.condition.centre for made in noisy])
    realised = torch.cat([made.eval_output.centre for made in noisy])
    expected = min(torch.corrcoef(torch.stack((requested[:, i], realised[:, i])))[0, 1].item() for i in range(2))
    assert review(iter(noisy)).control.correlation == pytest.approx(expected, abs=1e-5)


def test_spread_is_within_classes() -> None:
    """Four classes at four places, each held by all of its images, spread by nothing."""
    made = step()
    places = torch.tensor([[0.5, 0.5], [-0.5, 0.5], [0.5, -0.5], [-0.5, -0.5]])
    assert review(iter([eval_output(made, centre=places[made.condition.label])])).control.spread == pytest.approx(0)
    scattered = eval_output(made, centre=0.1 * torch.randn(32, 2))
    expected = torch.stack([scattered.eval_output.centre[made.condition.label == k].std(0).mean() for k in range(4)])
    assert review(iter([scattered])).control.spread == pytest.approx(expected.mean().item())


def test_a_class_with_one_image_has_no_spread() -> None:
    """It is left out of the mean, and with nothing but such classes the spread is zero."""
    made = step(8)
    label = torch.arange(8)
    lonely = replace(made, condition=replace(made.condition, label=label))
    assert review(iter([lonely])).control.spread == 0


def test_labels_that_are_missed_count() -> None:
    """Three of four images of another class than asked: a quarter agrees."""
    made = step()
    logits = made.eval_output.logits.clone()
    logits[:24] = logits[:24].roll(1, 1)
    assert review(iter([eval_output(made, logits=logits)])).control.label_agreement == pytest.approx(0.25)


def test_maps_that_differ_are_less_alike() -> None:
    """Attention in other cells with batch statistics has a cosine of zero."""
    made = step()
    assert made.train_output is not None
    other = replace(made.train_output, attention=made.eval_output.attention.flip(2).roll(1, 1))
    assert review(iter([replace(made, train_output=other)])).control.eval_train_similarity == pytest.approx(0)


def test_pairs_are_apart_as_their_features_are() -> None:
    """Opposite pooled features are at a distance of two, orthogonal ones at one."""
    made = step(4)
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for other, distance in ((second, 1.0), (-first, 2.0)):
        features = torch.stack((first, first, other, other)).view(4, 2, 1, 1).expand(4, 2, 8, 8)
        assert review(iter([eval_output(made, features=features)])).control.pair_distance == pytest.approx(distance)


class Agrees(nn.Module):
    """A student that answers a given class, in train mode as in eval mode another."""

    def __init__(self, answers: Tensor) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, images: Tensor) -> Tensor:
        answers = self.answers if not self.training else self.answers * 0
        return nn.functional.one_hot(answers, 4).float()


def test_agreement_is_with_the_teacher() -> None:
    """In percent of images, with the class that the teacher found and not the one asked for."""
    made = step()
    found = (made.condition.label + 1) % 4
    logits = nn.functional.one_hot(found, 4).float()
    answers = found.clone()
    answers[:8] = (answers[:8] + 1) % 4
    student = Agrees(answers).train()
    seen = review(iter([eval_output(made, logits=logits)]), student)
    assert seen.agreement == pytest.approx(75)
    assert student.training
    assert review(iter([made])).agreement is None


def test_samples_are_the_first_step_s() -> None:
    """Images, what was asked of them, and what was found."""
    steps = [step(seed=seed) for seed in range(2)]
    samples = review(iter(steps)).samples
    assert torch.equal(samples.images, steps[0].images)
    assert torch.equal(samples.found, steps[0].condition.label)
    assert torch.equal(samples.centre, steps[0].eval_output.centre)


def test_a_review_needs_a_step() -> None:
    """Nothing seen is an error, not a figure."""
    with pytest.raises(ValueError, match="at least one step"):
        review(iter([]))


@pytest.mark.parametrize(("count", "steps"), [(1, 1), (8, 1), (9, 2), (16, 2)])
def test_fresh_steps_are_at_least_as_many_images(count: int, steps: int) -> None:
    """Whole batches of pairs, read with both statistics, without gradients."""
    made = list(fresh(count))
    assert [len(one.images) for one in made] == [8] * steps
    for one in made:
        assert one.train_output is not None
        assert not one.images.requires_grad
        assert torch.equal(one.condition.centre[:4], one.condition.centre[4:])
        assert not torch.equal(one.train_output.logits, one.eval_output.logits)


def test_one_seed_one_review() -> None:
    """Two reviews of equal networks with equal seeds are equal, and another seed's is not."""
    first, second, other = (review(fresh(seed=seed), student_of("residual")) for seed in (1, 1, 2))
    assert first.control == second.control
    assert first.agreement == second.agreement
    assert torch.equal(first.samples.images, second.samples.images)
    assert first.control != other.control


def test_a_condition_without_spread_has_no_correlation() -> None:
    """Centres that all ask for the middle cannot be followed: zero, and not a NaN."""
    assert review(fresh(spread=0.0)).control.correlation == 0
