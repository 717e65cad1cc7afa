from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from acq.core.processes import Processes
from acq.core.values import Condition, TeacherOutput
from acq.synthesis.augmentation import augment
from acq.synthesis.dataset import DistillationBatch, SyntheticDataset, augmented, read, synthesise


class Painter(nn.Module):
    """A generator whose images count up, one more each time, and tell the mode that they were made in."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.drop = nn.Dropout(0.5)
        self.made = 0

    def forward(self, condition: Condition) -> Tensor:
        assert not self.training
        assert not self.drop.training
        count = len(condition.label)
        first, self.made = self.made, self.made + count
        return self.scale * torch.arange(first, self.made).float().view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


class Reader(nn.Module):
    """A teacher that says of an image how bright it is, and keeps the sizes of its batches."""

    classes = 5

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def read(self, images: Tensor) -> TeacherOutput:
        self.batches.append(len(images))
        bright = images.mean((1, 2, 3))
        attention = torch.full((len(images), 2, 2), 0.25)
        return TeacherOutput(
            bright.unsqueeze(1) * torch.ones(5), images[:, :, :2, :2] + 1, attention, attention[:, 0], ()
        )


def lesson(count: int, first: int = 0) -> DistillationBatch:
    """Entries that count up."""
    values = torch.arange(first, first + count).float()
    return DistillationBatch(
        values.view(-1, 1, 1, 1).repeat(1, 3, 2, 2), values.view(-1, 1).repeat(1, 5), values.view(-1, 1, 1, 1) + 0.5
    )


def numbers(found: DistillationBatch) -> list[int]:
    """Which entries a lesson has; they must belong together."""
    values = found.logits[:, 0]
    assert torch.equal(found.images, values.view(-1, 1, 1, 1).expand_as(found.images))
    assert torch.equal(found.features.flatten(), values + 0.5)
    return values.int().tolist()


def make(count: int, batch: int = 8, seed: int = 0) -> tuple[DistillationBatch, Reader]:
    reader = Reader()
    rng = torch.Generator().manual_seed(seed)
    made = synthesise(Painter().train(), reader, count, noise_dim=3, spread=0.2, rng=rng, batch=batch)  # type: ignore[arg-type]
    return made, reader


@pytest.mark.parametrize("count", [1, 7, 8, 9, 30])
def test_as_many_images_are_made_as_asked_for(count: int) -> None:
    """At most a batch at a time, each image once, with what the teacher said of it and no gradient."""
    made, reader = make(count)
    assert made.images.shape == (count, 3, 4, 4)
    assert made.logits.shape == (count, 5)
    assert made.features.shape == (count, 3, 2, 2)
    assert max(reader.batches) <= 8
    assert len(made.images[:, 0, 0, 0].unique()) == count
    assert torch.equal(made.logits[:, 0], made.images.mean((1, 2, 3)))
    assert torch.equal(made.features, made.images[:, :, :2, :2] + 1)
    assert not made.images.requires_grad


def test_the_generator_gets_its_modes_back() -> None:
    """Images are made in eval mode, whatever mode each part was in."""
    painter = Painter().train()
    painter.drop.eval()
    rng = torch.Generator().manual_seed(0)
    synthesise(painter, Reader(), 4, noise_dim=3, spread=0.2, rng=rng)  # type: ignore[arg-type]
    assert painter.training
    assert not painter.drop.training


@given(count=st.integers(1, 30), seed=st.integers(0, 50))
def test_a_sample_is_of_distinct_entries(count: int, seed: int) -> None:
    """As many as asked for or all there are, none twice, each whole; equal generators draw alike."""
    pool = SyntheticDataset(lesson(12))
    drawn = numbers(pool.sample(count, torch.Generator().manual_seed(seed)))
    assert len(drawn) == len(set(drawn)) == min(count, 12)
    assert drawn == numbers(pool.sample(count, torch.Generator().manual_seed(seed)))


def test_a_sample_is_a_copy() -> None:
    """Changing it does not change the pool."""
    pool = SyntheticDataset(lesson(4))
    pool.sample(4, torch.Generator()).images.zero_()
    assert numbers(pool.lesson) == [0, 1, 2, 3]


def test_every_entry_is_drawn_alike() -> None:
    """Over many samples no entry is favoured."""
    pool, rng = SyntheticDataset(lesson(10)), torch.Generator().manual_seed(0)
    drawn = torch.tensor([numbers(pool.sample(3, rng)) for _ in range(1000)])
    counts = torch.bincount(drawn.flatten())
    assert counts.min() > 240
    assert counts.max() < 360


def test_renewal_replaces_the_oldest() -> None:
    """Entries go in the order in which they came, around the end of the pool."""
    pool = SyntheticDataset(lesson(5))
    pool = pool.renewed(lesson(2, 10))
    assert numbers(pool.lesson) == [10, 11, 2, 3, 4]
    pool = pool.renewed(lesson(2, 20))
    assert numbers(pool.lesson) == [10, 11, 20, 21, 4]
    pool = pool.renewed(lesson(3, 30))
    assert numbers(pool.lesson) == [31, 32, 20, 21, 30]
    assert pool.oldest == 2


def test_more_than_a_pool_keeps_the_last() -> None:
    """A renewal by more images than fit leaves the newest of them."""
    pool = SyntheticDataset(lesson(3), oldest=1).renewed(lesson(5, 10))
    assert sorted(numbers(pool.lesson)) == [12, 13, 14]
    assert pool.oldest == 1


@given(sizes=st.lists(st.integers(0, 9), max_size=12))
def test_a_pool_holds_the_newest(sizes: list[int]) -> None:
    """After any renewals it has its size, holds the images made last, and knows which of them is oldest."""
    pool, made = SyntheticDataset(lesson(6)), 6
    for size in sizes:
        pool, made = pool.renewed(lesson(size, made)), made + size
    found = numbers(pool.lesson)
    assert sorted(found) == list(range(made - 6, made))
    assert found[pool.oldest] == made - 6


def pictures(count: int = 8) -> DistillationBatch:
    """Random images with what ``Reader`` says of them."""
    images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    reading = Reader().read(images)
    return DistillationBatch(images, reading.logits, reading.features)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 30])
def test_reading_changes_no_image(count: int) -> None:
    """Images are handed on as they are, read once each, a batch at a time, without gradient."""
    images, reader = torch.rand(count, 3, 16, 16).requires_grad_(), Reader()
    found = read(images, reader, batch=8)  # type: ignore[arg-type]
    assert found.images is images
    assert sum(reader.batches) == count
    assert max(reader.batches) <= 8
    reading = reader.read(images)
    torch.testing.assert_close(found.logits, reading.logits)
    torch.testing.assert_close(found.features, reading.features)
    assert not found.logits.requires_grad
    assert not found.features.requires_grad


@given(share=st.floats(0, 1), seed=st.integers(0, 50))
def test_a_share_is_seen_anew_and_read_anew(share: float, seed: int) -> None:
    """So many images are views of one another, with the teacher's word on what is seen; the rest is untouched."""
    whole, reader, count = pictures(), Reader(), round(8 * share)
    found = augmented(whole, reader, share, torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
    assert reader.batches == [count] * (count > 0)
    for name in ("images", "logits", "features"):
        assert getattr(found, name).shape == getattr(whole, name).shape
        assert torch.equal(getattr(found, name)[count:], getattr(whole, name)[count:])
    if count:
        assert torch.equal(found.images[:count], augment(whole.images[:count], torch.Generator().manual_seed(seed)))
    reading = reader.read(found.images)
    torch.testing.assert_close(found.logits, reading.logits)
    torch.testing.assert_close(found.features, reading.features)


@given(share=st.floats(0.1, 1), seed=st.integers(0, 50))
def test_what_is_seen_comes_from_the_share(share: float, seed: int) -> None:
    """Views have no value beyond those of the images that they are of, and do not know the rest."""
    whole, count = pictures(), round(8 * share)
    found = augmented(whole, Reader(), share, torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
    own, seen = whole.images[:count], found.images[:count]
    assert (own.amin((0, 2, 3)) - 1e-6 <= seen.amin((0, 2, 3))).all()
    assert (seen.amax((0, 2, 3)) <= own.amax((0, 2, 3)) + 1e-6).all()
    other = DistillationBatch(torch.cat((own, torch.zeros_like(whole.images[count:]))), whole.logits, whole.features)
    again = augmented(other, Reader(), share, torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
    assert torch.equal(again.images[:count], seen)


def test_views_are_other_images() -> None:
    """Where all are seen anew hardly one is as it was, and another draw sees others."""
    whole = pictures()
    first, second = (
        augmented(whole, Reader(), 1.0, torch.Generator().manual_seed(seed)).images  # type: ignore[arg-type]
        for seed in (0, 1)
    )
    assert (first != whole.images).flatten(1).any(1).sum() >= 7
    assert (first != second).flatten(1).any(1).sum() >= 7


def test_without_a_share_the_teacher_is_not_asked() -> None:
    """Nothing is seen, read or drawn."""
    whole, reader, rng = pictures(), Reader(), torch.Generator().manual_seed(0)
    before = rng.get_state()
    assert augmented(whole, reader, 0.0, rng) is whole  # type: ignore[arg-type]
    assert reader.batches == []
    assert torch.equal(rng.get_state(), before)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_looking_changes_no_entry(share: float) -> None:
    """The lesson of which views were made is as it was."""
    whole = pictures()
    before = [value.clone() for value in vars(whole).values()]
    augmented(whole, Reader(), share, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    assert all(torch.equal(value, old) for value, old in zip(vars(whole).values(), before, strict=True))


def test_too_few_images_for_a_team_are_read_by_each_of_it() -> None:
    """Without a message, which here could go nowhere: nobody has rows of none."""
    whole = lesson(3).images
    by_team, alone = (read(whole, Reader(), team=team) for team in (Processes(3, 4), Processes()))  # type: ignore[arg-type]
    assert torch.equal(by_team.logits, alone.logits)
    assert torch.equal(by_team.features, alone.features)
