from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from acq.core.scores import KINDS, Scores

CLASSES, LABELS, ONE = Scores("class", (5,)), Scores("multilabel", (5,)), Scores("multilabel", (1,))
MAP, CELLS, STEPS, VALUES = (
    Scores("map", (5, 3, 4)), Scores("map", (1, 3, 4)), Scores("sequence", (7, 5)), Scores("values", (2, 3)),
)  # fmt: skip
DECIDING = [CLASSES, LABELS, ONE, MAP, CELLS, STEPS]
ALL = [*DECIDING, VALUES]


def rng_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows_of(scores: Scores, count: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(count, scores.numbers, generator=rng_of(seed))


def asked_of(scores: Scores, count: int = 12, seed: int = 0) -> Tensor:
    shape = (count, scores.asked) if scores.places else (count,)
    return torch.randint(scores.answers, shape, generator=rng_of(seed))


def test_classes_keep_the_plain_formulas() -> None:
    """Argmax, cross entropy, centring and counting of classes are those of torch, bit for bit."""
    one, other = rows_of(CLASSES), rows_of(CLASSES, seed=1)
    asked = torch.arange(12) % 5
    assert CLASSES.answers == 5
    assert torch.equal(CLASSES.answered(one), one.argmax(1))
    assert torch.equal(CLASSES.came_true(one, asked), one.argmax(1) == asked)
    assert torch.equal(CLASSES.same(one, other), (one.argmax(1) == other.argmax(1)).float())
    assert CLASSES.measured(CLASSES.tally(one, asked)) == 100 * (one.argmax(1) == asked).double().mean().item()
    assert torch.equal(CLASSES.centred(one), one - one.mean(1, keepdim=True))
    assert torch.equal(CLASSES.mismatch(one, asked), F.cross_entropy(one, asked))
    assert CLASSES.majority(one) == 100 * int(torch.bincount(one.argmax(1)).max()) / 12


@pytest.mark.parametrize("scores", [MAP, STEPS])
def test_a_place_decides_like_a_whole_image(scores: Scores) -> None:
    """Each formula of a map or a sequence is that of classes over all places, as if each was an image."""
    one, other, asked = rows_of(scores), rows_of(scores, seed=1), asked_of(scores)
    flat, apart = (scores.by_place(rows).transpose(1, 2).reshape(-1, 5) for rows in (one, other))
    torch.testing.assert_close(scores.mismatch(one, asked), CLASSES.mismatch(flat, asked.flatten()))
    torch.testing.assert_close(scores.divergence(one, other), CLASSES.divergence(flat, apart))
    torch.testing.assert_close(scores.apart(one, other), CLASSES.apart(flat, apart))
    torch.testing.assert_close(scores.same(one, other).mean(), CLASSES.same(flat, apart).mean())
    assert torch.equal(scores.answered(one).flatten(), CLASSES.answered(flat))
    assert torch.equal(scores.came_true(one, asked).flatten(), CLASSES.came_true(flat, asked.flatten()))
    assert scores.majority(one) == CLASSES.majority(flat)


def test_a_cell_says_yes_or_no_like_an_image() -> None:
    """A map of one score per cell is one label per place."""
    one, other, asked = rows_of(CELLS), rows_of(CELLS, seed=1), asked_of(CELLS)
    flat, apart = one.reshape(-1, 1), other.reshape(-1, 1)
    torch.testing.assert_close(CELLS.mismatch(one, asked), ONE.mismatch(flat, asked.flatten()))
    torch.testing.assert_close(CELLS.divergence(one, other), ONE.divergence(flat, apart))
    torch.testing.assert_close(CELLS.same(one, other).mean(), ONE.same(flat, apart).mean())
    assert CELLS.majority(one) == pytest.approx(ONE.majority(flat))


@pytest.mark.parametrize("scores", [LABELS, ONE])
def test_a_label_is_asked_for_yes_or_no(scores: Scores) -> None:
    """Answer k is yes to label k, and K + k is no; the loss is binary cross entropy of the label that is asked for."""
    rows, size = rows_of(scores), scores.size
    asked = torch.arange(12) % (2 * size)
    label, yes = asked % size, (asked < size).float()
    chosen = rows[torch.arange(12), label]
    assert scores.answers == 2 * size
    torch.testing.assert_close(scores.mismatch(rows, asked), F.binary_cross_entropy_with_logits(chosen, yes))
    assert torch.equal(scores.came_true(rows, asked), (chosen > 0) == yes.bool())


@pytest.mark.parametrize("scores", DECIDING)
@given(seed=st.integers(0, 99))
def test_the_strongest_answer_comes_true(scores: Scores, seed: int) -> None:
    """What an image answers of itself has the largest score, and would have come true had it been asked for."""
    rows = rows_of(scores, seed=seed)
    answers = scores.answered(rows)
    assert scores.came_true(rows, answers).all()
    torch.testing.assert_close(scores.log_probabilities(rows).argmax(1), answers)


@pytest.mark.parametrize("scores", ALL)
@given(seed=st.integers(0, 99))
def test_agreement_is_symmetric_and_whole_with_itself(scores: Scores, seed: int) -> None:
    """Scores agree with themselves in full; one answer for all agrees at most as often as the majority says."""
    one, other = rows_of(scores, seed=seed), rows_of(scores, seed=seed + 1000)
    torch.testing.assert_close(scores.same(one, one), torch.ones(12))
    torch.testing.assert_close(scores.same(one, other), scores.same(other, one))
    if scores is VALUES:
        return
    answer = torch.randn(1, scores.size, *[1] * (2 if scores.kind == "map" else 0), generator=rng_of(seed + 2000))
    constant = answer.expand(12, scores.size, *scores.places) if scores.kind == "map" else answer.expand(12, -1)
    constant = constant[:, None].expand(-1, *scores.places, -1) if scores.kind == "sequence" else constant
    assert 100 * scores.same(one, constant.flatten(1)).mean().item() <= scores.majority(one) + 1e-4


@given(seed=st.integers(0, 99))
def test_values_agree_by_their_cosine(seed: int) -> None:
    """No direction agrees more with all images than that of their mean, and losses are relative errors."""
    one, other = rows_of(VALUES, seed=seed), rows_of(VALUES, seed=seed + 1)
    torch.testing.assert_close(VALUES.same(one, 3 * one), torch.ones(12))
    unit = F.normalize(one)
    assert VALUES.majority(unit) >= 100 * VALUES.same(unit, other[:1]).mean().item() - 1e-4
    expected = (one - other).norm() ** 2 / other.norm() ** 2
    torch.testing.assert_close(VALUES.apart(one, other), expected)
    torch.testing.assert_close(VALUES.divergence(one, other), expected)
    assert VALUES.asked == 0


def test_labels_are_compared_one_by_one() -> None:
    """Agreement and accuracy are the share of labels; a number added to all scores changes them."""
    rows = torch.tensor([[2.0, -1.0, 0.5, -0.1, 3.0]])
    truth = torch.tensor([[1, 0, 0, 0, 1]])
    assert LABELS.measured(LABELS.tally(rows, truth)) == pytest.approx(80)
    assert LABELS.same(rows, -rows).item() == 0
    assert LABELS.same(rows, rows + 0.7).item() == pytest.approx(0.8)
    assert torch.equal(LABELS.centred(rows), rows)
    assert ONE.measured(ONE.tally(torch.tensor([[1.0], [-1.0]]), torch.tensor([1, 1]))) == 50


def test_no_has_the_negated_row_of_the_head() -> None:
    """The weight of a score is the row of the scores for yes, and its negative for no."""
    weight, features = torch.randn(5, 3), torch.randn(4, 3)
    torch.testing.assert_close(features @ LABELS.head(weight).T, LABELS.evidence(features @ weight.T))
    assert CLASSES.head(weight) is weight


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 1, 1)])
def test_rows_are_flat(shape: tuple[int, ...]) -> None:
    """Trailing axes of one are dropped, of a single image too, and values [N] become [N, 1]."""
    assert CLASSES.flat(torch.zeros(shape)).shape == (4, 5)
    assert CLASSES.flat(torch.zeros(5)).shape == (1, 5)
    assert ONE.flat(torch.zeros(4)).shape == (4, 1)


def iou(found: Tensor, truth: Tensor, classes: int) -> float:
    """Mean intersection over union of the classes that occur, in percent."""
    known, shares = truth != 255, []
    for k in range(classes):
        one, other = (found == k) & known, (truth == k) & known
        if (one | other).any():
            shares.append(((one & other).sum() / (one | other).sum()).item())
    return 100 * sum(shares) / len(shares)


@given(seed=st.integers(0, 99))
def test_a_map_is_measured_by_intersection_over_union(seed: int) -> None:
    """Batches add up to the mean over classes of all images; cells of class 255 are left out."""
    rows, truth = rows_of(MAP, seed=seed), torch.randint(5, (12, 3, 4), generator=rng_of(seed))
    truth[:, 0, 0] = 255
    whole = MAP.tally(rows, truth)
    parts = MAP.tally(rows[:5], truth[:5]) + MAP.tally(rows[5:], truth[5:])
    assert torch.equal(whole, parts)
    found = rows.reshape(12, 5, 3, 4).argmax(1)
    assert MAP.measured(whole) == pytest.approx(iou(found, truth, 5), rel=1e-5)
    cells = (truth > 2).long().masked_fill(truth == 255, 255)
    yes = rows_of(CELLS, seed=seed)
    found = (yes.reshape(12, 3, 4) > 0).long()
    assert CELLS.measured(CELLS.tally(yes, cells)) == pytest.approx(iou(found, cells, 2), rel=1e-5)


def test_scores_are_resized_to_larger_masks() -> None:
    """A mask of twice the sides is compared with scores that are interpolated."""
    rows = torch.zeros(1, *MAP.shape)
    rows[:, 3] = 1
    truth = torch.full((1, 6, 8), 3)
    assert MAP.measured(MAP.tally(rows.flatten(1), truth)) == 100


@pytest.mark.parametrize(("shape", "larger"), [((5, 3), (6,)), ((5, 2, 3, 4), (4, 6, 8))])
def test_scores_of_other_places_are_resized_too(shape: tuple[int, ...], larger: tuple[int, ...]) -> None:
    """Maps of one axis, and of three."""
    scores, rows = Scores("map", shape), torch.zeros(1, *shape)
    rows[:, 3] = 1
    assert scores.measured(scores.tally(rows.flatten(1), torch.full((1, *larger), 3))) == 100


def test_class_255_counts_where_there_are_more() -> None:
    """Then -1 leaves a step out."""
    scores = Scores("sequence", (4, 300))
    rows = F.one_hot(torch.tensor([[255, 255, 7, 8]]), 300).float().flatten(1)
    assert scores.measured(scores.tally(rows, torch.tensor([[255, 3, -1, 8]]))) == pytest.approx(100 * 2 / 3)


def test_steps_without_a_known_class_are_left_out() -> None:
    """A sequence is measured by its known steps."""
    rows = F.one_hot(torch.tensor([[0, 1, 2, 3, 4, 0, 1]]), 5).float().flatten(1)
    truth = torch.tensor([[0, 1, 2, 0, 0, 255, 255]])
    assert STEPS.measured(STEPS.tally(rows, truth)) == pytest.approx(60)


@pytest.mark.parametrize("scores", DECIDING)
@given(seed=st.integers(0, 99), pairs=st.integers(1, 8))
def test_what_is_asked_comes_in_pairs(scores: Scores, seed: int, pairs: int) -> None:
    """Both halves are equal, each number is an answer, and the same state draws the same."""
    usual = torch.zeros(scores.asked, dtype=torch.long)
    asked = scores.drawn(pairs, usual, rng_of(seed))
    assert torch.equal(asked, scores.drawn(pairs, usual, rng_of(seed)))
    assert torch.equal(asked[:pairs], asked[pairs:])
    assert asked.shape[1:] == ((scores.asked,) if scores.places else ())
    assert asked.min() >= 0
    assert asked.max() < scores.answers
    if not scores.places:
        assert torch.bincount(asked, minlength=scores.answers).max() <= 2 * math.ceil(pairs / scores.answers)


@given(seed=st.integers(0, 99))
def test_a_block_of_a_map_has_another_answer(seed: int) -> None:
    """The cells that are not asked for the usual answer are one rectangle of one class, at most half of each side."""
    scores = Scores("map", (5, 8, 10))
    for cells in scores.drawn(3, torch.full((80,), 4), rng_of(seed)).reshape(-1, 8, 10):
        rows, columns = (cells != 4).nonzero(as_tuple=True)
        if len(rows):
            block = cells[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert len(block.unique()) == 1
            assert block.shape[0] <= 4
            assert block.shape[1] <= 5


def test_a_third_of_the_steps_changes() -> None:
    """The others are asked for what scenes get most."""
    scores = Scores("sequence", (50, 1000))
    asked = scores.drawn(40, torch.full((50,), 7), rng_of(0))
    assert 0.28 < (asked != 7).float().mean() < 0.38


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("class", (1,)), ("class", (5, 1)), ("class", ()), ("multilabel", (0,)), ("multilabel", (2, 2)), ("map", (5,)),
        ("map", (5, 0)), ("sequence", (5,)), ("sequence", (5, 1)), ("values", (0,)), ("values", (-1, 3)), ("map", ()),
    ],
)  # fmt: skip
def test_shapes_fit_their_kind(kind: Any, shape: tuple[int, ...]) -> None:
    """Other shapes have no meaning, such as one class alone."""
    with pytest.raises(ValueError, match=f"none of kind {kind}"):
        Scores(kind, shape)


def test_scores_are_named_in_words() -> None:
    """A summary and a report show these."""
    assert [str(scores) for scores in ALL] == [
        "5 classes", "5 labels, yes or no each", "one yes-or-no answer", "5 classes per cell of 3x4",
        "one yes-or-no answer per cell of 3x4", "5 classes per step of 7", "6 values",
    ]  # fmt: skip
    assert [LABELS.named(2), LABELS.named(7), ONE.named(1), MAP.named(4)] == [
        "label 2: yes",
        "label 2: no",
        "no",
        "class 4",
    ]
    assert {scores.kind for scores in ALL} == set(KINDS)
