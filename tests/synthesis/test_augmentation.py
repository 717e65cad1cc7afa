from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from acq.core.values import Condition
from acq.network.attention import cell_middles
from acq.synthesis.augmentation import Augmentation, augment, jitter


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def condition(count: int, centre: tuple[float, float] = (0.0, 0.0)) -> Condition:
    return Condition(torch.randn(count, 4), torch.arange(count), torch.tensor([centre]).repeat(count, 1))


def moved(image: Tensor, down: int, across: int) -> list[Tensor]:
    """An image [C, H, W] moved by up to so much, edges reflected, mirrored and not: every way there is."""
    height, width = image.shape[1:]
    return [
        F.pad(way.unsqueeze(0), (across, across, down, down), mode="reflect")[0, :, i : i + height, j : j + width]
        for way in (image, image.flip(2))
        for i in range(2 * down + 1)
        for j in range(2 * across + 1)
    ]


@given(
    count=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    height=st.integers(2, 20),
    width=st.integers(2, 20),
    seed=st.integers(0, 99),
)
def test_augmented_images_keep_shape_and_range(count: int, channels: int, height: int, width: int, seed: int) -> None:
    """Augmented images have the shape of the given ones and lie in their range, and the given ones do not change."""
    images = torch.randn(count, channels, height, width, generator=rng(seed))
    before = images.clone()
    found = augment(images, rng(seed))
    assert found.shape == images.shape
    assert found.min() >= images.min() - 1e-6
    assert found.max() <= images.max() + 1e-6
    assert torch.equal(images, before)


@pytest.mark.parametrize(("size", "shifts"), [((8, 8), (1, 1)), ((16, 9), (2, 1)), ((7, 8), (0, 1))])
def test_an_image_alone_is_moved_and_mirrored(size: tuple[int, int], shifts: tuple[int, int]) -> None:
    """A single image is moved by up to an eighth and mirrored half of the time, and every way occurs."""
    image = torch.rand(3, *size)
    ways = torch.stack(moved(image, *shifts))
    source, seen = rng(), torch.zeros(len(ways))
    for _ in range(400):
        same = (augment(image.unsqueeze(0), source) == ways).flatten(1).all(1)
        assert same.sum() == 1
        seen += same
    assert (seen > 0).all()
    assert 160 < seen[: len(ways) // 2].sum() < 240


def test_images_are_blended_and_pasted_from_the_two_before() -> None:
    """At most half of a blend is the previous image, and a box of up to three quarters comes from the one before."""
    count, size, source = 8, 16, rng()
    images = torch.eye(count).view(count, count, 1, 1).expand(-1, -1, size, size)  # a channel of its own each
    shares, boxes = [], []
    for _ in range(25):
        for i, share in enumerate(augment(images, source)):
            torch.testing.assert_close(share.sum(0), torch.ones(size, size))
            own = share[i] > 0
            assert own.any()
            around, box = share[:, own], share[:, ~own]
            shares.append(around[i - 1].max())
            assert (around[i] >= 0.5 - 1e-6).all()
            torch.testing.assert_close(around[i] + around[i - 1], torch.ones(around.shape[1]))
            assert (box[i - 2] >= 0.5 - 1e-6).all()
            torch.testing.assert_close(box[i - 2] + box[i - 3], torch.ones(box.shape[1]))
            rows, columns = (~own).any(1), (~own).any(0)
            assert torch.equal(~own, rows.view(-1, 1) & columns)  # a box, and one:
            for side in (rows, columns):
                assert side.sum() <= 0.75 * size
                assert side.int().diff().clamp_min(0).sum() <= 1
            boxes.append((~own).float().mean())
    blended, pasted = torch.stack(shares), torch.stack(boxes)
    assert 0.42 < (blended > 0).float().mean() < 0.58
    assert 0.4 < blended.max() <= 0.5
    assert 0.35 < (pasted > 0).float().mean() < 0.55
    assert pasted.max() > 0.3


def test_parts_of_the_augmentation_can_be_switched_off() -> None:
    """Without shifts, mirrors, blends and boxes, images stay as they are."""
    images = torch.rand(4, 3, 8, 8)
    still = Augmentation(shift=100, mirrored=0.0, blended=0.0, pasted=0.0)
    assert torch.equal(augment(images, rng(), still), images)


def test_one_seed_one_augmentation() -> None:
    """Equal random states change images alike, whatever the global seed, and other states do not."""
    images = torch.rand(4, 3, 8, 8)
    first, (shifted, asked) = augment(images, rng(5)), jitter(images, condition(4), rng(5))
    torch.manual_seed(99)
    assert torch.equal(augment(images, rng(5)), first)
    assert not torch.equal(augment(images, rng(6)), first)
    again = jitter(images, condition(4), rng(5))
    assert torch.equal(again[0], shifted)
    assert torch.equal(again[1].centre, asked.centre)
    others = [jitter(images, condition(4), rng(seed))[0] for seed in range(6, 12)]
    assert not all(torch.equal(other, shifted) for other in others)


@given(data=st.data(), height=st.integers(8, 50), width=st.integers(8, 50), seed=st.integers(0, 99))
def test_the_centre_follows_the_image(data: st.DataObject, height: int, width: int, seed: int) -> None:
    """A bright spot that jitter moves or mirrors is where the new condition says, and its arguments stay."""
    row, column = (
        data.draw(st.integers(5, size - 6) if size > 16 else st.integers(2, size - 3)) for size in (height, width)
    )
    x, y = cell_middles(width), cell_middles(height)
    images = torch.zeros(2, 3, height, width)
    images[:, :, row, column] = 1
    asked = condition(2, (float(x[column]), float(y[row])))
    before, centre = images.clone(), asked.centre.clone()
    found, answered = jitter(images, asked, rng(seed))
    spot = found[0, 0].nonzero()
    assert len(spot) == 1
    at = torch.stack((x[spot[0, 1]], y[spot[0, 0]]))
    torch.testing.assert_close(answered.centre, at.expand(2, 2), rtol=0, atol=1e-5)
    assert torch.equal(found[0], found[1])
    assert answered.noise is asked.noise
    assert answered.label is asked.label
    assert torch.equal(images, before)
    assert torch.equal(asked.centre, centre)


@pytest.mark.parametrize(("size", "shifts"), [((8, 8), (1, 1)), ((16, 33), (1, 2))])
def test_jitter_is_at_most_a_sixteenth(size: tuple[int, int], shifts: tuple[int, int]) -> None:
    """Every move of up to a sixteenth of the image, mirrored or not, occurs, and no other."""
    images = torch.rand(2, 3, *size)
    ways = torch.stack(moved(images[0], *shifts))
    source, seen = rng(), torch.zeros(len(ways))
    for _ in range(300):
        found, _ = jitter(images, condition(2), source)
        same = (found[0] == ways).flatten(1).all(1)
        assert same.sum() == 1
        seen += same
    assert (seen > 0).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_changed_images_are_channels_last(layout: torch.memory_format) -> None:
    """Whatever the layout of the given images, changed ones have the one that convolutions run fastest in."""
    images = torch.rand(4, 3, 8, 12).contiguous(memory_format=layout)
    for seed in range(8):
        assert augment(images, rng(seed)).is_contiguous(memory_format=torch.channels_last)
        assert jitter(images, condition(4), rng(seed))[0].is_contiguous(memory_format=torch.channels_last)


def test_jitter_is_differentiable() -> None:
    """A gradient at the moved spot reaches the pixel that it came from, and no other."""
    images = torch.zeros(2, 3, 16, 16)
    images[:, :, 6, 9] = 1
    images.requires_grad_()
    for seed in range(8):
        found, _ = jitter(images, condition(2), rng(seed))
        (gradient,) = torch.autograd.grad(found[found > 0.5].sum(), images)
        assert torch.equal(gradient, images.detach())
