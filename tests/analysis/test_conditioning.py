from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from helpers import CLASSES, SIZE, student_of, traced
from torch import Tensor, nn
from torch.nn import functional as F

from acq.analysis.conditioning import (
    Conditioning,
    GeneratorQuality,
    correlation,
    dataset_conditioning,
    generator_quality,
    spread,
    spread_per_class,
)
from acq.core.outputs import Output
from acq.core.values import Condition, Preprocessing, TeacherOutput
from acq.network.attention import centre_of
from acq.network.teacher import Teacher
from acq.synthesis.condition import ConditionSampler
from acq.synthesis.dataset import DistillationBatch, SyntheticDataset
from acq.synthesis.generators import make_generator

COUNT = 160  # more than one batch
LABEL = torch.arange(COUNT) % 4


def attention_at(cells: Tensor) -> Tensor:
    """Maps [N, 8, 8] with all mass in the cells (column, row) [N, 2]."""
    attention = torch.zeros(len(cells), 8, 8)
    attention[torch.arange(len(cells)), cells[:, 1], cells[:, 0]] = 1
    return attention


def numbered(count: int) -> Tensor:
    """Images whose values are their numbers."""
    return torch.arange(count).float().view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


def numbers(images: Tensor) -> Tensor:
    return images[:, 0, 0, 0].long()


class Obedient:
    """A teacher that sees in each numbered image the requested class at the requested place, unless told otherwise."""

    output, structure = CLASSES, SimpleNamespace(normalised=True)

    def __init__(self, **changes: Tensor) -> None:
        cells = torch.randint(8, (COUNT, 2), generator=torch.Generator().manual_seed(0))
        self.attention = attention_at(cells)
        self.other_attention = changes.get("other_attention", self.attention)
        self.requested = centre_of(self.attention)
        self.realised = changes.get("realised", self.requested)
        self.classes = changes.get("classes", LABEL)
        self.features = changes.get("features", torch.ones(COUNT, 2, 8, 8))

    def read(self, images: Tensor, label: Tensor | None = None, *, batch_statistics: bool = False) -> TeacherOutput:
        at = numbers(images)
        attention = self.other_attention if batch_statistics else self.attention
        logits = F.one_hot(self.classes[at], 5).float()
        return TeacherOutput(logits, self.features[at], attention[at], self.realised[at], ())

    def conditioning(self, label: Tensor = LABEL) -> Conditioning:
        batch = DistillationBatch(numbered(COUNT), torch.zeros(COUNT, 5), torch.zeros(COUNT, 1))
        return dataset_conditioning(self, SyntheticDataset(batch, label, self.requested))[0]  # type: ignore[arg-type]


def quality(seed: int = 0, centre_std: float = 0.2) -> GeneratorQuality:
    """Of an untrained generator on a real teacher and student."""
    known = Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3)
    generator = make_generator("canvas", known, 5, noise_dim=4, width=8, seed=0)
    teacher, rng = Teacher(traced("residual")), torch.Generator().manual_seed(seed)
    return generator_quality(
        generator, teacher, student_of("residual"), ConditionSampler(4, Output.of("class", 5), centre_std), 70, rng
    )


def test_images_that_follow_their_conditions_have_full_marks() -> None:
    """Met centres correlate fully, met classes agree, and equal maps are similar."""
    found = Obedient().conditioning()
    assert found.correlation == pytest.approx(1)
    assert found.label_agreement == 1
    assert found.eval_train_similarity == pytest.approx(1)


@pytest.mark.parametrize(("factor", "expected"), [((1.0, -1.0), -1), ((1.0, 0.0), 0)])
def test_correlation_is_that_of_the_worse_axis(factor: tuple[float, float], expected: float) -> None:
    """A centre that is mirrored or constant on one axis counts, however well the other one follows."""
    realised = Obedient().requested * torch.tensor(factor)
    assert Obedient(realised=realised).conditioning().correlation == pytest.approx(expected, abs=1e-6)


def test_correlation_is_pearson_s() -> None:
    """Each column's value equals ``torch.corrcoef``, and a dataset is measured over all of its batches."""
    requested = Obedient().requested
    realised = requested + torch.randn(COUNT, 2)
    expected = torch.stack([torch.corrcoef(torch.stack((requested[:, i], realised[:, i])))[0, 1] for i in range(2)])
    torch.testing.assert_close(correlation(requested, realised), expected)
    found = Obedient(realised=realised).conditioning()
    assert found.correlation == pytest.approx(expected.min().item(), abs=1e-5)


def test_spread_is_within_classes() -> None:
    """Classes at places of their own have no spread; scattered images have the mean of their classes' deviations."""
    places = torch.tensor([[0.5, 0.5], [-0.5, 0.5], [0.5, -0.5], [-0.5, -0.5]])
    assert Obedient(realised=places[LABEL]).conditioning().spread == pytest.approx(0)
    scattered = 0.1 * torch.randn(COUNT, 2)
    expected = {k: scattered[k == LABEL].std(0).mean().item() for k in range(4)}
    assert spread_per_class(scattered, LABEL) == pytest.approx(expected)
    assert spread(scattered, LABEL) == pytest.approx(sum(expected.values()) / 4)


def test_a_class_with_one_image_has_no_spread() -> None:
    """Such a class is left out, and with nothing but such classes the spread is zero."""
    centre = torch.randn(3, 2)
    assert spread_per_class(centre, torch.tensor([0, 1, 0])).keys() == {0}
    assert spread(centre, torch.arange(3)) == 0


def test_missed_labels_count() -> None:
    """Where the teacher sees another class in three of four images, a quarter agrees."""
    classes = torch.where(torch.arange(COUNT) < COUNT // 4, LABEL, (LABEL + 1) % 4)
    assert Obedient(classes=classes).conditioning().label_agreement == pytest.approx(0.25)


def test_other_maps_with_batch_statistics_are_less_similar() -> None:
    """Attention in other cells has a cosine of zero."""
    other = Obedient().attention.flip(2).roll(1, 1)
    assert Obedient(other_attention=other).conditioning().eval_train_similarity == pytest.approx(0)


def test_centres_of_a_dataset_are_those_of_its_images() -> None:
    """Labels, requested and realised centres come in the order of the dataset."""
    teacher = Obedient(realised=torch.randn(COUNT, 2))
    batch = DistillationBatch(numbered(COUNT), torch.zeros(COUNT, 5), torch.zeros(COUNT, 1))
    _, centres = dataset_conditioning(teacher, SyntheticDataset(batch, LABEL, teacher.requested))  # type: ignore[arg-type]
    assert torch.equal(centres.label, LABEL)
    assert torch.equal(centres.requested, teacher.requested)
    assert torch.equal(centres.realised, teacher.realised)


class Numbering(nn.Module):
    """A generator of numbered images that counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, condition: Condition) -> Tensor:
        assert not self.training
        first = sum(self.batches)
        self.batches.append(len(condition.label))
        return numbered(first + len(condition.label))[first:]


class Answering(nn.Module):
    """A student that answers by the number of an image, and in train mode always the same."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def logits(self, images: Tensor) -> Tensor:
        answers = self.answer(numbers(images))
        return F.one_hot(answers * 0 if self.training else answers, 5).float()


def measured(teacher: Obedient, answer: Callable[[Tensor], Tensor], count: int = 128) -> GeneratorQuality:
    conditions, rng = ConditionSampler(3, Output.of("class", 4), 0.2), torch.Generator().manual_seed(0)
    return generator_quality(Numbering(), teacher, Answering(answer), conditions, count, rng)  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "batches"), [(1, 1), (64, 1), (65, 2)])
def test_a_generator_is_measured_on_at_least_as_many_images(count: int, batches: int) -> None:
    """Whole batches of pairs are made in eval mode, and modes are restored."""
    generator, student = Numbering().train(), Answering(lambda at: LABEL[at]).train()
    conditions, rng = ConditionSampler(3, Output.of("class", 4), 0.2), torch.Generator().manual_seed(0)
    generator_quality(generator, Obedient(), student, conditions, count, rng)  # type: ignore[arg-type]
    assert generator.batches == [64] * batches
    assert generator.training
    assert student.training


def test_agreement_is_between_student_and_teacher() -> None:
    """It is the percentage of images with the class that the teacher sees, not the one that was requested."""
    found = measured(Obedient(classes=(LABEL + 1) % 4), lambda at: torch.where(at < 32, LABEL[at], (LABEL[at] + 1) % 4))
    assert found.agreement == pytest.approx(75)


def test_pair_distance_is_between_images_of_one_condition() -> None:
    """Pairs with opposite pooled features are at a distance of two, whatever other pairs have."""
    sign = torch.where(torch.arange(COUNT) % 64 < 32, 1.0, -1.0)
    features = (sign * torch.rand(COUNT)).view(-1, 1, 1, 1).expand(-1, 2, 8, 8).clone()
    features[32:64] = -features[:32]
    features[96:128] = -features[64:96]
    assert measured(Obedient(features=features), lambda at: LABEL[at]).pair_distance == pytest.approx(2)
    assert measured(Obedient(), lambda at: LABEL[at]).pair_distance == 0


def test_one_seed_one_quality() -> None:
    """Equal random states give equal figures, and another state gives others."""
    first = quality(seed=1)
    assert quality(seed=1) == first
    assert quality(seed=2).conditioning != first.conditioning


def test_centres_that_all_ask_for_the_middle_have_no_correlation() -> None:
    """A deviation of zero gives a correlation of zero and not NaN."""
    assert quality(centre_std=0.0).conditioning.correlation == 0
