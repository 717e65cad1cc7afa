from __future__ import annotations

import pytest
import torch
from helpers import CLASSES
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from acq.core.outputs import Output

LABELS, ONE = Output("multilabel", 5), Output("multilabel", 1)
ALL = [CLASSES, LABELS, ONE]


def logits_of(output: Output, count: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(count, output.size, generator=torch.Generator().manual_seed(seed))


def test_classes_keep_the_plain_formulas() -> None:
    """Argmax, cross entropy, centring and counting of classes are those of torch, bit for bit."""
    one, other = logits_of(CLASSES), logits_of(CLASSES, seed=1)
    asked = torch.arange(12) % 5
    assert CLASSES.answers == 5
    assert torch.equal(CLASSES.answered(one), one.argmax(1))
    assert torch.equal(CLASSES.came_true(one, asked), one.argmax(1) == asked)
    assert torch.equal(CLASSES.same(one, other), (one.argmax(1) == other.argmax(1)).float())
    assert torch.equal(CLASSES.right(one, asked), (one.argmax(1) == asked).float())
    assert torch.equal(CLASSES.centred(one), one - one.mean(1, keepdim=True))
    assert torch.equal(F.nll_loss(CLASSES.log_probabilities(one), asked), F.cross_entropy(one, asked))
    assert CLASSES.majority(one) == 100 * int(torch.bincount(one.argmax(1)).max()) / 12


@pytest.mark.parametrize("output", [LABELS, ONE])
def test_a_label_is_asked_for_yes_or_no(output: Output) -> None:
    """Answer k is yes to label k, and K + k is no; the loss is binary cross entropy of the label that is asked for."""
    logits, size = logits_of(output), output.size
    asked = torch.arange(12) % (2 * size)
    label, yes = asked % size, (asked < size).float()
    chosen = logits[torch.arange(12), label]
    assert output.answers == 2 * size
    expected = F.binary_cross_entropy_with_logits(chosen, yes)
    torch.testing.assert_close(F.nll_loss(output.log_probabilities(logits), asked), expected)
    assert torch.equal(output.came_true(logits, asked), (chosen > 0) == yes.bool())


@pytest.mark.parametrize("output", ALL)
@given(seed=st.integers(0, 99))
def test_the_strongest_answer_comes_true(output: Output, seed: int) -> None:
    """What an image answers of itself has the largest score, and would have come true had it been asked for."""
    logits = logits_of(output, seed=seed)
    answers = output.answered(logits)
    assert output.came_true(logits, answers).all()
    torch.testing.assert_close(output.log_probabilities(logits).argmax(1), answers)


@pytest.mark.parametrize("output", ALL)
@given(seed=st.integers(0, 99))
def test_agreement_is_symmetric_and_whole_with_itself(output: Output, seed: int) -> None:
    """Logits agree with themselves in full, and no answer that is the same for all agrees more than the majority."""
    one, other = logits_of(output, seed=seed), logits_of(output, seed=seed + 1000)
    assert (output.same(one, one) == 1).all()
    assert torch.equal(output.same(one, other), output.same(other, one))
    constant = output.scores(logits_of(output, 1, seed + 2000))[:, : output.size].expand_as(one)
    assert 100 * output.same(one, constant).mean().item() <= output.majority(one) + 1e-4


def test_labels_are_compared_one_by_one() -> None:
    """Agreement and accuracy are the share of labels; a number added to all logits changes them."""
    logits = torch.tensor([[2.0, -1.0, 0.5, -0.1, 3.0]])
    truth = torch.tensor([[1, 0, 0, 0, 1]])
    assert LABELS.right(logits, truth).item() == pytest.approx(0.8)
    assert LABELS.same(logits, -logits).item() == 0
    assert LABELS.same(logits, logits + 0.7).item() == pytest.approx(0.8)
    assert torch.equal(LABELS.centred(logits), logits)
    assert ONE.right(torch.tensor([[1.0], [-1.0]]), torch.tensor([1, 1])).tolist() == [1, 0]


def test_no_has_the_negated_row_of_the_head() -> None:
    """The weight of a score is the row of the logits for yes, and its negative for no."""
    weight = torch.randn(5, 3)
    features = torch.randn(4, 3)
    torch.testing.assert_close(features @ LABELS.rows(weight).T, LABELS.scores(features @ weight.T))
    assert CLASSES.rows(weight) is weight


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 1, 1)])
def test_logits_are_flat(shape: tuple[int, ...]) -> None:
    """Trailing axes of one are dropped, of a single image too, and values [N] become [N, 1]."""
    assert CLASSES.flat(torch.zeros(shape)).shape == (4, 5)
    assert CLASSES.flat(torch.zeros(5)).shape == (1, 5)
    assert ONE.flat(torch.zeros(4)).shape == (4, 1)
