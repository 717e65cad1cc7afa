from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import SIZE, network
from torch import nn

from acq import zoo
from acq.analysis.normalisation import Fit, check_normalisation, doubt, fits, moments_distance
from acq.core.normalisations import Normalisation, usual_normalisations
from acq.core.pixels import normalise
from acq.core.values import Moments, Preprocessing
from acq.network.teacher import Teacher
from acq.network.trace import trace
from acq.synthesis.scenes import scenes

USUAL = usual_normalisations(3)


def trained_with(right: Normalisation) -> Teacher:
    """A network whose batch norms have seen other scenes under a normalisation."""
    known = Preprocessing(SIZE, right.mean, right.std)
    model = network("residual")
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None
            part.reset_running_stats()
    model.train()
    model(normalise(scenes(64, SIZE, torch.Generator().manual_seed(7)), known))
    return Teacher(trace(model.eval(), SIZE))


@pytest.mark.parametrize("right", USUAL, ids=lambda right: right.name)
def test_the_right_normalisation_fits_best_and_wrong_ones_are_doubted(right: Normalisation) -> None:
    """Whatever is given, the warning has the values of training; the right ones give none."""
    teacher = trained_with(right)
    for given in USUAL:
        found = fits(teacher, Preprocessing(SIZE, given.mean, given.std))
        assert min(found[1:], key=lambda fit: fit.distance).normalisation == right
        text = doubt(found)
        if given == right:
            assert text is None
        else:
            assert text is not None
            assert str(right) in text
            assert "order of the channels is not checked" in text


def test_the_first_moments_are_those_of_a_whole_pass() -> None:
    """Only what the first batch norm needs is computed, with the same result."""
    teacher, images = Teacher(trace(network("resnet"), SIZE)), torch.randn(4, *SIZE)
    found, whole = teacher.first_moments(images), teacher.read(images, moments=True).moments[0]
    torch.testing.assert_close((found.mean, found.var), (whole.mean, whole.var))


def test_distances_do_not_depend_on_units() -> None:
    """Equal moments are at distance 0; too large and too small, and all units, count alike."""
    one, other = Moments(torch.zeros(2), torch.ones(2)), Moments(torch.ones(2), 4 * torch.ones(2))
    assert moments_distance(one, one) == pytest.approx(0, abs=1e-6)
    apart = moments_distance(one, other)
    assert apart == pytest.approx(moments_distance(other, one), rel=1e-2)
    scaled = [Moments(100 * m.mean, 10_000 * m.var) for m in (one, other)]
    assert moments_distance(*scaled) == pytest.approx(apart, rel=1e-4)


@pytest.mark.parametrize(("given", "best", "doubted"), [(0.1, 0.04, True), (0.1, 0.06, False), (0.03, 0.001, False)])
def test_a_warning_needs_a_clear_difference(given: float, best: float, doubted: bool) -> None:
    """Another normalisation must be twice as close, and the given one far."""
    found = [Fit(USUAL[0], given), Fit(USUAL[1], best), Fit(USUAL[2], 0.5)]
    assert (doubt(found) is not None) == doubted


@pytest.mark.filterwarnings("error:the normalisation may be wrong")
def test_the_bundled_network_is_checked() -> None:
    """It expects ImageNet's values; with those from 0 to 1 the command warns, with its own it does not."""
    known = zoo.resolve("resnet20-cifar10")
    teacher = Teacher(trace(known.model, known.preprocessing.input_size))
    check_normalisation(teacher, known.preprocessing, given=True)
    wrong = replace(known.preprocessing, mean=(0.0,) * 3, std=(1.0,) * 3)
    with pytest.warns(UserWarning, match=r"may be wrong.*--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"):
        check_normalisation(teacher, wrong, given=True)
