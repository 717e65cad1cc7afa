from __future__ import annotations

import math

import pytest
import torch
from helpers import CLASSES
from torch import Tensor

from acq.core.outputs import Answer, Output, mutual_information
from acq.core.scores import Scores

PARTS = (Scores("class", (5,)), Scores("map", (3, 2, 2)), Scores("values", (4,)), Scores("multilabel", (2,)))
SEVERAL, VALUES = Output(PARTS), Output.of("values", 4)


def rows_of(output: Output, count: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, output.numbers, generator=torch.Generator().manual_seed(seed))


def split(rows: Tensor) -> tuple[Tensor, ...]:
    return torch.split(rows, [part.numbers for part in PARTS], 1)


def test_an_output_of_one_tensor_is_its_scores() -> None:
    """Every formula is that of the scores, bit for bit."""
    (scores,), one, other = CLASSES.parts, rows_of(CLASSES), rows_of(CLASSES, seed=1)
    asked = torch.arange(6) % 5
    assert CLASSES.whole is scores
    assert torch.equal(CLASSES.mismatch(one, asked), scores.mismatch(one, asked))
    assert torch.equal(CLASSES.apart(one, other), scores.apart(one, other))
    assert torch.equal(CLASSES.divergence(one, other), scores.divergence(one, other))
    assert torch.equal(CLASSES.centred(one), scores.centred(one))
    assert torch.equal(CLASSES.same(one, other), scores.same(one, other))
    assert torch.equal(CLASSES.came_true(one, asked), scores.came_true(one, asked))
    assert CLASSES.accuracy is not None
    assert (CLASSES.majority(one), CLASSES.accuracy.key, str(CLASSES)) == (scores.majority(one), "top1", "5 classes")


def test_several_tensors_add_their_losses_and_agree_as_the_least() -> None:
    """Each tensor has its own columns of a row, and its own answers of those that are asked."""
    one, other = rows_of(SEVERAL), rows_of(SEVERAL, seed=1)
    pairs = list(zip(PARTS, split(one), split(other), strict=True))
    torch.testing.assert_close(SEVERAL.apart(one, other), torch.stack([part.apart(a, b) for part, a, b in pairs]).sum())
    expected = torch.stack([part.divergence(a, b) for part, a, b in pairs]).sum()
    torch.testing.assert_close(SEVERAL.divergence(one, other), expected)
    torch.testing.assert_close(SEVERAL.same(one, other), torch.stack([p.same(a, b) for p, a, b in pairs]).amin(0))
    assert SEVERAL.majority(one) == min(part.majority(a) for part, a, _ in pairs)
    assert SEVERAL.centred(one).shape == one.shape
    asked = SEVERAL.drawn(3, SEVERAL.usual(one), torch.Generator().manual_seed(0))
    assert asked.shape == (6, 1 + 4 + 0 + 1)
    wanted = [PARTS[0].mismatch(split(one)[0], asked[:, 0]), PARTS[1].mismatch(split(one)[1], asked[:, 1:5])]
    wanted.append(PARTS[3].mismatch(split(one)[3], asked[:, 5]))
    torch.testing.assert_close(SEVERAL.mismatch(one, asked), torch.stack(wanted).sum())
    assert SEVERAL.came_true(one, asked).shape == asked.shape
    assert (SEVERAL.whole, SEVERAL.accuracy) == (None, None)


def test_what_comes_true_of_several_is_what_each_says() -> None:
    """Answers that images give of themselves have come true."""
    rows = rows_of(SEVERAL)
    own = [
        part.answered(part_rows).reshape(6, -1)
        for part, part_rows in zip(PARTS, split(rows), strict=True)
        if part.asked
    ]
    assert SEVERAL.came_true(rows, torch.cat(own, 1)).all()


def test_values_ask_for_nothing() -> None:
    """There is no class loss, and nothing that could come true."""
    rows = rows_of(VALUES)
    asked = VALUES.drawn(3, VALUES.usual(rows), torch.Generator())
    assert asked.shape == (6, 0)
    assert VALUES.mismatch(rows, asked) == 0
    assert VALUES.came_true(rows, asked).shape == (6, 0)
    assert not VALUES.asks
    assert SEVERAL.asks


@pytest.mark.parametrize("output", [CLASSES, SEVERAL, VALUES])
def test_rows_hold_all_tensors(output: Output) -> None:
    """Tensors of any shape become one row per image and end as they would by themselves."""
    tensors = [torch.rand(3, *part.shape) for part in output.parts]
    rows = output.flat(tensors)
    assert torch.equal(rows, torch.cat([tensor.flatten(1) for tensor in tensors], 1))
    ended = output.before(rows, ["sigmoid"] * len(tensors))
    torch.testing.assert_close(ended, torch.logit(rows))


def test_the_usual_answer_is_the_commonest_of_each_place() -> None:
    """It is the mode over images."""
    output = Output.of("sequence", 2, 3)
    rows = torch.eye(3)[torch.tensor([[0, 1], [0, 2], [1, 2]])].flatten(1)
    assert output.usual(rows).tolist() == [0, 2]


def test_an_answer_says_what_counts() -> None:
    """The text names the tensors that decide, where there are others."""
    structure = {"dict": [["cells", "tensor"], ["box", "tensor"], ["other", "tensor"]]}
    output = Output((Scores("map", (3, 2, 2)), Scores("values", (4,))))
    answer = Answer(structure, ("cells", "box"), ("a", "b"), output)
    assert (
        str(answer)
        == "3 classes per cell of 2x2 and 4 values in cells and box, which decide; returned: cells, box, other"
    )
    assert answer.figures() == {
        "kind": "map,values",
        "meaning": str(output),
        "size": 3,
        "counted": "cells,box",
        "returned": "cells, box, other",
    }


def test_sure_and_even_answers_tell_the_most() -> None:
    """Of sure answers that are evenly spread over A classes an answer tells log(A); of equal ones it tells nothing."""
    sure = 100 * torch.eye(5).repeat(2, 1)
    assert CLASSES.information(sure) == pytest.approx(math.log(5))
    assert CLASSES.information(sure[:1].expand(6, -1)) == pytest.approx(0, abs=1e-9)
    assert CLASSES.information(torch.zeros(6, 5)) == pytest.approx(0, abs=1e-9)


def test_information_is_the_divergence_from_the_mean() -> None:
    """It equals the mean KL divergence of each place's probabilities from the mean ones."""
    scores = Scores("sequence", (3, 4))
    rows = rows_of(Output((scores,)))
    p = rows.reshape(-1, 4).double().softmax(1)
    expected = (p * (p / p.mean(0)).log()).sum(1).mean()
    assert mutual_information(scores.log_probabilities(rows)) == pytest.approx(expected.item(), rel=1e-6)


def test_labels_add_their_information_and_values_have_none() -> None:
    """Each label tells what its yes and no tell, and several tensors tell the sum of theirs."""
    labels = Output.of("multilabel", 2)
    rows = rows_of(labels)
    alone = [Output.of("multilabel", 1).information(rows[:, [label]]) for label in range(2)]
    assert labels.information(rows) == pytest.approx(sum(alone))
    assert VALUES.information(rows_of(VALUES)) == 0
    whole = rows_of(SEVERAL)
    parts = [Output((part,)).information(own) for part, own in zip(PARTS, split(whole), strict=True)]
    assert SEVERAL.information(whole) == pytest.approx(sum(parts))
