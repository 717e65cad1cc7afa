from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from acq.core.evaluate import Comparison, Measured, accuracy, compared, eval_mode, evaluating
from acq.core.outputs import Output
from acq.errors import RequestError

THREE = Output.of("class", 3)


class Mixed(nn.Module):
    """Scores through a batch norm in train mode, a dropout in train mode and a linear layer in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.linear = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)
        self.linear.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.drop(self.norm(x)))


def scores(choices: list[int]) -> Tensor:
    return torch.eye(3)[choices]


def test_accuracy_is_the_share_of_right_guesses_in_percent() -> None:
    """Three of four right is 75, however the images are batched."""
    images, labels = scores([0, 1, 2, 2]), torch.tensor([0, 1, 2, 0])
    whole = accuracy(nn.Identity(), [(images, labels)], THREE)
    parts = accuracy(nn.Identity(), zip(images.split(3), labels.split(3), strict=True), THREE)
    assert whole == parts == Measured(75)


def test_two_networks_are_compared_image_by_image() -> None:
    """The first is right on three of four. The second mixes up two classes: it loses two images and gains one."""
    batches = [(scores([0, 1]), torch.tensor([0, 1])), (scores([2, 2]), torch.tensor([2, 1]))]
    found = compared(nn.Identity(), lambda rows: rows[:, [0, 2, 1]], batches, THREE)
    assert found == Comparison(before=Measured(75.0), after=Measured(50.0), lost=2, gained=1)


@pytest.mark.parametrize(("classes", "top5"), [(10, None), (11, 75.0)])
def test_from_11_classes_on_five_guesses_count_too(classes: int, top5: float | None) -> None:
    """The right class is first, fifth, sixth and second."""
    rows = torch.arange(float(classes)).expand(4, -1)
    labels = classes - torch.tensor([1, 5, 6, 2])
    batches = zip(rows.split(3), labels.split(3), strict=True)
    assert accuracy(nn.Identity(), batches, Output.of("class", classes)) == Measured(25.0, top5)


def test_images_with_several_answers_are_not_right_or_wrong() -> None:
    """Both accuracies are there, and no counts of images."""
    labels = torch.tensor([[1, 0, 1], [0, 0, 1]])
    rows = 2.0 * labels - 1
    found = compared(nn.Identity(), torch.neg, [(rows, labels)], Output.of("multilabel", 3))
    assert found == Comparison(before=Measured(100.0), after=Measured(0.0), lost=None, gained=None)


def test_evaluation_leaves_the_module_as_it_was() -> None:
    """Modes and buffers are restored, and the network is read in eval mode without gradients."""
    network = Mixed()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    seen: list[tuple[bool, bool]] = []
    network.norm.register_forward_hook(lambda module, _, y: seen.append((module.training, y.requires_grad)))
    accuracy(network, [(torch.randn(5, 4), torch.zeros(5, dtype=torch.long))], THREE)
    assert seen == [(False, False)]
    assert [part.training for part in network.modules()] == [True, True, True, False]
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_eval_mode_keeps_gradients_and_evaluating_does_not() -> None:
    """Both contexts evaluate every part, and only ``evaluating`` switches gradients off."""
    network = Mixed()
    for context, has_gradient in ((eval_mode, True), (evaluating, False)):
        with context(network):
            assert not any(part.training for part in network.modules())
            assert network(torch.randn(2, 4)).requires_grad == has_gradient
        assert [part.training for part in network.modules()] == [True, True, True, False]
    with evaluating(lambda images: images):
        assert not torch.is_grad_enabled()


def test_modes_are_restored_when_the_network_fails() -> None:
    """An exception in the network does not leave it in another mode."""
    network = Mixed()
    with pytest.raises(RuntimeError):
        accuracy(network, [(torch.randn(5, 9), torch.zeros(5))], THREE)
    assert network.training
    assert not network.linear.training


def test_nothing_to_evaluate_is_a_wrong_request() -> None:
    """No image gives no figure."""
    with pytest.raises(RequestError, match="no images"):
        accuracy(nn.Identity(), [], THREE)
    with pytest.raises(RequestError, match="no images"):
        compared(nn.Identity(), nn.Identity(), [], THREE)


def test_labels_that_say_nothing_are_a_wrong_request() -> None:
    """Cells without a known class give no figure."""
    output = Output.of("map", 3, 2, 2)
    with pytest.raises(RequestError, match="no label says"):
        accuracy(nn.Identity(), [(torch.randn(2, 12), torch.full((2, 2, 2), 255))], output)
