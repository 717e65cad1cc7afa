from __future__ import annotations

import pytest
import torch
from helpers import CLASSES
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from acq.core.pixels import denormalise
from acq.core.values import Condition, Preprocessing
from acq.core.whole_batch_norm import over_whole_batches
from acq.errors import RequestError
from acq.synthesis.condition import ConditionSampler
from acq.synthesis.generators import GAIN, GENERATORS, bump, codes_of, generator, make_generator, window

SIZES = [(3, 33, 47), (3, 8, 8), (1, 28, 28), (3, 16, 16), (4, 9, 64)]


def preprocessing(size: tuple[int, int, int]) -> Preprocessing:
    channels = size[0]
    return Preprocessing(
        size, tuple(0.3 + 0.1 * i for i in range(channels)), tuple(0.2 + 0.1 * i for i in range(channels))
    )


def made(kind: str, size: tuple[int, int, int] = (3, 16, 16), seed: int = 0, rows: Tensor | None = None) -> nn.Module:
    return make_generator(kind, preprocessing(size), 5, rows=rows, noise_dim=6, width=8, seed=seed)


def drawn(pairs: int = 3, seed: int = 0) -> Condition:
    sampler = ConditionSampler(noise_dim=6, output=CLASSES, centre_std=0.2)
    return sampler.draw(pairs, torch.Generator().manual_seed(seed))


def pixels(images: Tensor) -> Tensor:
    return denormalise(images, preprocessing(tuple(images.shape[1:])))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("size", SIZES)
def test_images_have_the_size_of_the_network(kind: str, size: tuple[int, int, int]) -> None:
    """Images have the network's size, odd or small, with any number of channels, and pixels in [0, 1]."""
    network = made(kind, size)
    for training in (True, False):
        images = network.train(training)(drawn())
        assert images.shape == (6, *size)
        assert images.dtype == torch.float32
        found = pixels(images)
        assert found.min() >= -1e-6
        assert found.max() <= 1 + 1e-6


@pytest.mark.parametrize("kind", GENERATORS)
def test_large_images_are_made(kind: str) -> None:
    """A generator makes images of 224 x 224 pixels."""
    with torch.no_grad():
        assert made(kind, (3, 224, 224))(drawn(1)).shape == (2, 3, 224, 224)


@pytest.mark.parametrize("kind", GENERATORS)
def test_equal_seeds_make_equal_generators(kind: str) -> None:
    """Equal seeds give equal images bit for bit, and another seed gives others."""
    first, second, other = (made(kind, seed=seed)(drawn()) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_equal_generators_do_not_touch_the_global_seed() -> None:
    """Weights come from the seed alone, and what is drawn afterwards does not depend on them."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = made("canvas").state_dict()
    assert torch.equal(torch.rand(3), expected)
    second = made("canvas").state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_unknown_generators_are_refused() -> None:
    """The message gives the nearest known name."""
    with pytest.raises(RequestError, match=r"'canvs' is not known \(did you mean 'canvas'\?\)"):
        made("canvs")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_have_at_least_32_bits(dtype: torch.dtype) -> None:
    """A generator in double precision makes such images, and one with fewer bits makes float32."""
    network, condition = made("canvas").to(dtype), drawn()
    images = network(Condition(condition.noise.to(dtype), condition.label, condition.centre.to(dtype)))
    assert images.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("kind", GENERATORS)
def test_every_part_of_the_condition_matters(kind: str) -> None:
    """Other noise, another label or another centre makes other images."""
    network, condition = made(kind).eval(), drawn()
    before = network(condition)
    for changed in (
        Condition(condition.noise + 1, condition.label, condition.centre),
        Condition(condition.noise, (condition.label + 1) % 5, condition.centre),
        Condition(condition.noise, condition.label, condition.centre + 0.1),
    ):
        assert not torch.allclose(network(changed), before)


@pytest.mark.parametrize("kind", GENERATORS)
def test_gradients_reach_the_centre_and_every_weight(kind: str) -> None:
    """The position can be learned, and no parameter is idle."""
    network, condition = made(kind, (3, 33, 47)), drawn()
    centre = condition.centre.clone().requires_grad_()
    images = network(Condition(condition.noise, torch.tensor([0, 1, 2, 3, 4, 0]), centre))
    (images * torch.rand(images.shape)).sum().backward()
    assert centre.grad is not None
    assert centre.grad.isfinite().all()
    assert (centre.grad != 0).all()
    idle = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert idle == []


@pytest.mark.parametrize("kind", GENERATORS)
def test_an_image_does_not_depend_on_its_batch(kind: str) -> None:
    """In eval mode an image depends on its own condition only."""
    network, condition = made(kind).eval(), drawn()
    alone = Condition(condition.noise[2:3], condition.label[2:3], condition.centre[2:3])
    torch.testing.assert_close(network(alone), network(condition)[2:3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", GENERATORS)
def test_several_processes_can_share_the_norms(kind: str) -> None:
    """Each batch norm is called with features alone, so those over whole batches can take its place."""
    network, condition = made(kind).eval(), drawn()
    before = network(condition)
    over_whole_batches(network)
    assert not any(type(module) is nn.BatchNorm2d for module in network.modules())
    assert torch.equal(network(condition), before)


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_generator_learns_a_toy(kind: str) -> None:
    """Sixty steps bring images most of the way to fixed targets."""
    network, condition = made(kind), drawn(2)
    wanted = torch.rand(4, 3, 16, 16).repeat_interleave(1, 0) * 0.1 + condition.label.view(-1, 1, 1, 1) / 10
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    errors = []
    for _ in range(60):
        error = (pixels(network(condition)) - wanted).square().mean()
        errors.append(error.item())
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert errors[-1] < 0.2 * errors[0]


@pytest.mark.parametrize(("right", "down"), [(0, 0), (1, 0), (0, 2), (-2, 1), (2, -2)])
def test_a_window_moves_content_by_the_gain(right: int, down: int) -> None:
    """A centre moves the content by ``GAIN`` times itself."""
    canvas = torch.rand(1, 2, 10, 12)
    height, width = 6, 8
    middle = canvas[:, :, 2:8, 2:10]
    centre = torch.tensor([[2 * right / (GAIN * width), 2 * down / (GAIN * height)]])
    moved = window(canvas, centre, height, width)
    torch.testing.assert_close(window(canvas, torch.zeros(1, 2), height, width), middle, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved, canvas[:, :, 2 - down : 8 - down, 2 - right : 10 - right], rtol=1e-4, atol=1e-5)


def test_a_window_moves_by_parts_of_a_cell() -> None:
    """A move by half a cell gives the mean of two neighbours, and each image moves by its own centre."""
    canvas = torch.rand(2, 1, 8, 8)
    moved = window(canvas, torch.tensor([[0.0, 0.0], [1 / (4 * GAIN), 0.0]]), 4, 4)
    torch.testing.assert_close(moved[0], canvas[0, :, 2:6, 2:6], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved[1], (canvas[1, :, 2:6, 2:6] + canvas[1, :, 2:6, 1:5]) / 2, rtol=1e-4, atol=1e-5)


@given(x=st.floats(-1, 1), y=st.floats(-1, 1))
def test_a_window_shows_nothing_new(x: float, y: float) -> None:
    """Wherever the window is cut, its values lie between the least and greatest of the canvas."""
    canvas = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(0)) + 1
    seen = window(canvas, torch.tensor([[x, y]]), 4, 4)
    assert seen.isfinite().all()
    assert canvas.min() - 1e-5 <= seen.min()
    assert seen.max() <= canvas.max() + 1e-5


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 16)])
def test_a_bump_peaks_at_its_centre(height: int, width: int) -> None:
    """The greatest cell holds the centre, and values fall with distance on both sides."""
    column, row = 3, 1
    x, y = (2 * column + 1) / width - 1, (2 * row + 1) / height - 1
    map_ = bump(torch.tensor([[x, y]]), height, width)[0, 0]
    assert map_.argmax() == row * width + column
    torch.testing.assert_close(map_.max(), torch.tensor(1.0))
    assert (map_[row].diff()[:column] > 0).all()
    assert (map_[row].diff()[column:] < 0).all()


def test_a_new_generator_is_a_class_with_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decorator registers a class, and ``make_generator`` builds it by name."""
    monkeypatch.setattr("acq.synthesis.generators.GENERATORS", dict(GENERATORS))

    @generator("other")
    class Other(nn.Module):
        def __init__(self, preprocessing: Preprocessing, answers: int, **others: object) -> None:
            super().__init__()
            self.values = preprocessing.input_size, answers, others

    built = made("other")
    assert isinstance(built, Other)
    assert built.values == ((3, 16, 16), 5, {"rows": None, "noise_dim": 6, "width": 8})


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("side", [16, 32])
def test_images_lie_channels_last(kind: str, side: int) -> None:
    """In both modes images have the layout in which convolutions copy nothing."""
    network = made(kind, (3, side, side))
    for model in (network.train(), network.eval()):
        assert model(drawn()).is_contiguous(memory_format=torch.channels_last)


def test_codes_are_as_far_apart_as_the_rows_of_their_answers() -> None:
    """Short codes keep the distances of standardised rows, up to one factor; their mean square is 1."""
    rows = torch.randn(7, 20, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 20)
    codes = codes_of(rows)
    assert codes.shape == (7, 7)
    torch.testing.assert_close(codes.square().mean(), torch.tensor(1.0))
    centred = rows - rows.mean(0)
    standardised = centred / centred.square().mean(0).sqrt()
    ratio = torch.pdist(codes) / torch.pdist(standardised)
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-4, atol=0)


def test_short_codes_keep_the_largest_components() -> None:
    """Components come in order of their size, and a short code has the first ones."""
    rows = torch.randn(9, 30, generator=torch.Generator().manual_seed(0))
    whole, short = codes_of(rows), codes_of(rows, 3)
    assert (whole.square().mean(0).diff() <= 1e-6).all()
    torch.testing.assert_close(short / short.norm(), whole[:, :3] / whole[:, :3].norm())


def test_the_label_reaches_the_norms_of_a_conditional_generator() -> None:
    """Without the canvas of noise and label another label still makes another image. At first it changes little."""
    network, condition = made("conditional").eval(), drawn()
    before = network(condition)
    network.start.weight.data.zero_()
    plain = network(Condition(torch.zeros_like(condition.noise), condition.label, condition.centre))
    other = network(Condition(torch.zeros_like(condition.noise), (condition.label + 1) % 5, condition.centre))
    changed = (other - plain).abs().mean()
    assert 0 < changed < (before - plain).abs().mean()


def test_rows_without_differences_give_finite_codes() -> None:
    """A network whose last layer has not been trained may have equal rows, or columns of zeros."""
    assert codes_of(torch.ones(5, 8)).isfinite().all()
    assert codes_of(torch.eye(5, 8)).isfinite().all()


def test_a_conditional_generator_begins_with_what_the_network_knows() -> None:
    """Equal rows make equal images under equal noise; without rows codes are random."""
    rows = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    rows[3] = rows[1]
    network, condition = made("conditional", rows=rows).eval(), drawn()

    def shown(label: int) -> Tensor:
        images: Tensor = network(Condition(condition.noise, torch.full_like(condition.label, label), condition.centre))
        return images

    assert torch.equal(shown(1), shown(3))
    assert not torch.allclose(shown(1), shown(2))
    assert made("conditional").embedding.weight.shape == (5, 6)
