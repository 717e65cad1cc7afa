from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import CLASSES
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from acq.core.values import Condition, TeacherOutput
from acq.synthesis.augmentation import augment
from acq.synthesis.condition import ConditionSampler
from acq.synthesis.dataset import DistillationBatch, SyntheticDataset, augmented, generate, teach

CONDITIONS = ConditionSampler(noise_dim=3, output=CLASSES, centre_std=0.2)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Painter(nn.Module):
    """A generator whose images have the values 0, 1, 2, ..., and that counts the images of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.drop = nn.Dropout(0.5)
        self.batches: list[int] = []

    def forward(self, condition: Condition) -> Tensor:
        assert not self.training
        assert not self.drop.training
        first, count = sum(self.batches), len(condition.label)
        self.batches.append(count)
        return self.scale * torch.arange(first, first + count).float().view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


class Reader(nn.Module):
    """A teacher whose logits are the brightness of an image, and that counts the images of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def read(self, images: Tensor) -> TeacherOutput:
        self.batches.append(len(images))
        logits = images.mean((1, 2, 3)).unsqueeze(1) * torch.ones(5)
        attention = torch.full((len(images), 2, 2), 0.25)
        return TeacherOutput(logits, images[:, :, :2, :2] + 1, attention, attention[:, 0], ())

    def teach(self, images: Tensor) -> DistillationBatch:
        return teach(images, self)  # type: ignore[arg-type]


def entries(count: int, first: int = 0) -> SyntheticDataset:
    """A dataset whose entries have the values ``first``, ``first`` + 1, ... in every column."""
    values = torch.arange(first, first + count).float()
    images = values.view(-1, 1, 1, 1).repeat(1, 3, 2, 2)
    batch = DistillationBatch(images, values.view(-1, 1).repeat(1, 5), values.view(-1, 1, 1, 1) + 0.5)
    return SyntheticDataset(batch, values.long(), values.view(-1, 1).repeat(1, 2))


def numbers(batch: DistillationBatch) -> list[int]:
    """The values of a batch's entries, which must be the same in every column."""
    values = batch.logits[:, 0]
    assert torch.equal(batch.images, values.view(-1, 1, 1, 1).expand_as(batch.images))
    assert torch.equal(batch.features.flatten(), values + 0.5)
    return values.int().tolist()


def all_numbers(dataset: SyntheticDataset) -> list[int]:
    found = numbers(dataset.batch)
    assert dataset.label.tolist() == found
    assert dataset.centre[:, 1].tolist() == found
    return found


@pytest.mark.parametrize("count", [1, 7, 8, 9, 30])
def test_as_many_images_are_generated_as_requested(count: int) -> None:
    """Images come with their conditions in batches of limited size, each once and without a gradient."""
    painter = Painter().train()
    images, condition = generate(painter, CONDITIONS, count, rng(), batch=8)
    assert images.shape == (count, 3, 4, 4)
    assert images[:, 0, 0, 0].unique().numel() == count
    assert [len(value) for value in vars(condition).values()] == [count] * 3
    assert max(painter.batches) <= 8
    assert not images.requires_grad


def test_generation_restores_the_modes_of_the_generator() -> None:
    """Images are made in eval mode, whatever the mode of each part was."""
    painter = Painter().train()
    painter.drop.eval()
    generate(painter, CONDITIONS, 4, rng())
    assert painter.training
    assert not painter.drop.training


def test_pairs_of_a_condition_are_generated_together() -> None:
    """A single batch has the conditions that the sampler draws from the same random state."""
    _, condition = generate(Painter(), CONDITIONS, 8, rng(3))
    drawn = CONDITIONS.draw(4, rng(3))
    assert all(torch.equal(value, getattr(drawn, name)) for name, value in vars(condition).items())


@pytest.mark.parametrize("count", [1, 128, 129])
def test_the_teacher_reads_each_image_once(count: int) -> None:
    """Images are kept as they are, read in batches of limited size, and outputs have no gradient."""
    images, reader = torch.rand(count, 3, 4, 4).requires_grad_(), Reader()
    batch = reader.teach(images)
    assert batch.images is images
    assert sum(reader.batches) == count
    assert max(reader.batches) <= 128
    output = reader.read(images)
    torch.testing.assert_close(batch.logits, output.logits.detach())
    torch.testing.assert_close(batch.features, output.features.detach())
    assert not batch.logits.requires_grad
    assert not batch.features.requires_grad


@given(count=st.integers(1, 30), seed=st.integers(0, 50))
def test_a_sample_has_distinct_entries(count: int, seed: int) -> None:
    """As many entries as requested, or all, are drawn without repetition, and equal random states draw alike."""
    dataset = entries(12)
    drawn = numbers(dataset.sample(count, rng(seed)))
    assert len(drawn) == len(set(drawn)) == min(count, 12)
    assert drawn == numbers(dataset.sample(count, rng(seed)))


def test_a_sample_is_a_copy() -> None:
    """Changing a sample does not change the dataset."""
    dataset = entries(4)
    dataset.sample(4, rng()).images.zero_()
    assert all_numbers(dataset) == [0, 1, 2, 3]


def test_every_entry_is_drawn_alike() -> None:
    """Over many samples no entry is favoured."""
    dataset, source = entries(10), rng()
    drawn = torch.tensor([numbers(dataset.sample(3, source)) for _ in range(1000)])
    counts = torch.bincount(drawn.flatten())
    assert counts.min() > 240
    assert counts.max() < 360


def test_conditions_of_a_part_have_no_noise() -> None:
    """A slice of the dataset gives its labels and centres, and noise of no dimension."""
    dataset = entries(6)
    condition = dataset.conditions(slice(2, 5))
    assert condition.label.tolist() == [2, 3, 4]
    assert condition.centre[:, 0].tolist() == [2, 3, 4]
    assert condition.noise.shape == (3, 0)
    assert len(dataset) == len(dataset.images) == 6


def test_renewal_replaces_the_oldest() -> None:
    """Entries are replaced in the order in which they came, and the dataset itself does not change."""
    first = entries(5)
    second = first.renewed(entries(2, 10))
    assert all_numbers(second) == [10, 11, 2, 3, 4]
    third = second.renewed(entries(2, 20)).renewed(entries(3, 30))
    assert all_numbers(third) == [31, 32, 20, 21, 30]
    assert third.oldest == 2
    assert all_numbers(first) == [0, 1, 2, 3, 4]


def test_too_many_new_images_leave_the_last() -> None:
    """A renewal by more images than fit keeps the newest of them."""
    dataset = replace(entries(3), oldest=1).renewed(entries(5, 10))
    assert sorted(all_numbers(dataset)) == [12, 13, 14]
    assert dataset.oldest == 1


@given(sizes=st.lists(st.integers(0, 9), max_size=12))
def test_a_dataset_holds_the_newest(sizes: list[int]) -> None:
    """After any renewals it has the last images that were made, and knows the oldest of them."""
    dataset, made = entries(6), 6
    for size in sizes:
        dataset, made = dataset.renewed(entries(size, made)), made + size
    found = all_numbers(dataset)
    assert sorted(found) == list(range(made - 6, made))
    assert found[dataset.oldest] == made - 6


def random_batch(count: int = 8) -> DistillationBatch:
    return Reader().teach(torch.rand(count, 3, 16, 16, generator=rng(1)))


@given(share=st.floats(0, 1), seed=st.integers(0, 50))
def test_a_share_is_augmented_and_read_again(share: float, seed: int) -> None:
    """The first images are replaced by augmented ones with the teacher's outputs for these; the others stay."""
    whole, reader, count = random_batch(), Reader(), round(8 * share)
    found = augmented(whole, share, rng(seed), reader.teach)
    assert reader.batches == [count] * (count > 0)
    for name, values in vars(found).items():
        assert values.shape == getattr(whole, name).shape
        assert torch.equal(values[count:], getattr(whole, name)[count:])
    if count:
        assert torch.equal(found.images[:count], augment(whole.images[:count], rng(seed)))
    output = reader.read(found.images)
    torch.testing.assert_close(found.logits, output.logits)
    torch.testing.assert_close(found.features, output.features)


@given(share=st.floats(0.1, 1), seed=st.integers(0, 50))
def test_augmented_images_come_from_their_own_share(share: float, seed: int) -> None:
    """Images that are not augmented leave no trace in those that are."""
    whole, count = random_batch(), round(8 * share)
    found = augmented(whole, share, rng(seed), Reader().teach).images[:count]
    blank = torch.cat((whole.images[:count], torch.zeros_like(whole.images[count:])))
    again = augmented(replace(whole, images=blank), share, rng(seed), Reader().teach).images[:count]
    assert torch.equal(again, found)


def test_augmented_images_are_other_images() -> None:
    """Hardly an image stays as it was, and another random state gives others."""
    whole = random_batch()
    first, second = (augmented(whole, 1.0, rng(seed), Reader().teach).images for seed in (0, 1))
    assert (first != whole.images).flatten(1).any(1).sum() >= 7
    assert (first != second).flatten(1).any(1).sum() >= 7


def test_without_a_share_nothing_happens() -> None:
    """The batch itself is returned, nothing is read and no random number is drawn."""
    whole, reader, source = random_batch(), Reader(), rng()
    before = source.get_state()
    assert augmented(whole, 0.0, source, reader.teach) is whole
    assert reader.batches == []
    assert torch.equal(source.get_state(), before)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_augmentation_leaves_the_given_batch_alone(share: float) -> None:
    """No value of the given batch changes."""
    whole = random_batch()
    before = [value.clone() for value in vars(whole).values()]
    augmented(whole, share, rng(), Reader().teach)
    assert all(torch.equal(value, old) for value, old in zip(vars(whole).values(), before, strict=True))
