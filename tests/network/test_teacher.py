from __future__ import annotations

import copy

import pytest
import torch
from answers import answering
from helpers import CLASSES, SIZE, Head, conv, images, network, traced
from torch import Tensor, nn
from torch.nn import functional as F

from acq.network.attention import centre_of, channel_energy, class_activation
from acq.network.constants import constant
from acq.network.teacher import Teacher
from acq.network.trace import trace

NAMES = ["residual", "shuffle", "squeeze-excite"]


class Nested(nn.Module):
    """Modules in modules, and a head that is given."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 8, stride=2), nn.ModuleDict({"a": nn.ReLU(inplace=True)})["a"])
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class PoolAndView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(F.avg_pool2d(x, x.shape[2]).view(x.shape[0], -1)))


class ChannelMean(nn.Module):
    """A pool over channels whose cells happen to be as many as channels."""

    def __init__(self) -> None:
        super().__init__()
        self.thin, self.fc = nn.MaxPool2d((4, 2)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.thin(x).mean(1).flatten(1))


POOLED = {
    "adaptive pool": lambda: Head(8),
    "sequential": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5, bias=False)),
    "mean": Mean,
    "pool and view": PoolAndView,
}
OTHERS = {
    "mean of channels": ChannelMean,
    "two linears": lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5)
    ),
    "two linears alone": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 5)),
    "greatest": lambda: nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    "flat": lambda: nn.Sequential(nn.Flatten(), nn.Linear(8 * 8 * 8, 5)),
    "convolution": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 5, 1), nn.Flatten()),
    "rectified": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.ReLU6(), nn.Linear(8, 5)),
}


def seen_by_hooks(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The input of every BatchNorm2d of a copy of the model in eval mode, in order of execution."""
    found: list[Tensor] = []
    model = copy.deepcopy(model).eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].detach().clone()))
    model(x)
    return found


@pytest.mark.parametrize("head", POOLED)
def test_class_activation_where_the_head_is_pool_and_linear(head: str) -> None:
    """However the head is written, features are what it pools, and the map comes from its weights."""
    model = Nested(POOLED[head]()).eval()
    teacher, x, label = Teacher(trace(model, SIZE)), images(4), torch.tensor([4, 0, 1, 1])
    features = model.body(x)
    weight = next(part.weight for part in model.head.modules() if isinstance(part, nn.Linear))
    output = teacher.read(x, label)
    torch.testing.assert_close(output.features, features)
    torch.testing.assert_close(output.attention, class_activation(features, weight, label))
    torch.testing.assert_close(output.centre, centre_of(output.attention))
    torch.testing.assert_close(output.logits, model(x))


@pytest.mark.parametrize("head", OTHERS)
def test_channel_energy_where_the_head_is_another(head: str) -> None:
    """Where anything but a mean and one layer stands before the scores, the map needs no head."""
    model = Nested(OTHERS[head]()).eval()
    teacher, x = Teacher(trace(model, SIZE)), images(4)
    assert teacher.structure.head is None
    output = teacher.read(x, torch.tensor([4, 0, 1, 1]))
    features = model.body(x) if head != "mean of channels" else model.head.thin(model.body(x))
    torch.testing.assert_close(output.features, features)
    torch.testing.assert_close(output.attention, channel_energy(features))


def test_the_class_without_a_label_is_the_predicted_one() -> None:
    """Without labels the map is that of the class that the network predicts."""
    teacher, x = Teacher(traced("residual")), images(6)
    output = teacher.read(x)
    assert torch.equal(output.attention, teacher.read(x, output.logits.argmax(1)).attention)


@pytest.mark.parametrize("name", [*NAMES, "pre-activation", "all convolutional"])
def test_moments_are_those_that_a_hook_sees(name: str) -> None:
    """Each batch norm's mean and biased variance equal ``torch.var_mean`` of its input, in order of execution."""
    model, teacher, x = network(name), Teacher(traced(name)), images(6)
    found = teacher.read(x, moments=True).moments
    inputs = seen_by_hooks(model, x)
    assert len(found) == len(inputs) == len(teacher.stored_moments)
    for moments, value in zip(found, inputs, strict=True):
        var, mean = torch.var_mean(value, (0, 2, 3), correction=0)
        torch.testing.assert_close(moments.mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(moments.var, var, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_stored_moments_are_the_running_statistics(name: str) -> None:
    """Stored moments are the buffers of the batch norms, in the order of an output's moments."""
    norms = [part for part in network(name).modules() if isinstance(part, nn.BatchNorm2d)]
    stored = Teacher(traced(name)).stored_moments
    for moments, norm in zip(stored, norms, strict=True):
        assert torch.equal(moments.mean, norm.running_mean)
        assert torch.equal(moments.var, norm.running_var)


@pytest.mark.parametrize("name", [*NAMES, "pre-activation"])
def test_batch_statistics_are_those_of_train_mode(name: str) -> None:
    """Logits equal the module's in train mode without dropout, and no buffer of the teacher changes."""
    model, teacher, x = network(name).train(), Teacher(traced(name)), images(6)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.eval()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    output = teacher.read(x, batch_statistics=True, moments=True)
    with torch.no_grad():
        torch.testing.assert_close(output.logits, model(x), rtol=1e-4, atol=1e-5)
    assert len(output.moments) == len(teacher.stored_moments)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    torch.testing.assert_close(teacher.read(x).logits, teacher(x))


def test_batch_statistics_of_white_features_are_the_running_ones() -> None:
    """A batch whose moments are the stored ones gives the same output with either statistics."""
    model = network("all convolutional")
    x = images(8)
    norm = model.stem[1]  # type: ignore[index, union-attr]
    with torch.no_grad():
        var, mean = torch.var_mean(model.stem[0](x), (0, 2, 3), correction=0)  # type: ignore[index, operator, union-attr]
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
    teacher = Teacher(trace(model, SIZE))
    evaluated, trained = teacher.read(x), teacher.read(x, batch_statistics=True)
    torch.testing.assert_close(evaluated.logits, trained.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(evaluated.attention, trained.attention, rtol=1e-4, atol=1e-6)


def test_moments_are_made_only_when_asked_for() -> None:
    """Measuring moments changes nothing else of the output."""
    teacher, x = Teacher(traced("residual")), images(3)
    plain, full = teacher.read(x), teacher.read(x, moments=True)
    assert plain.moments == ()
    for name in ("logits", "features", "attention", "centre"):
        torch.testing.assert_close(getattr(plain, name), getattr(full, name))


@pytest.mark.parametrize("name", ["residual", "all convolutional"])
@pytest.mark.parametrize("batch_statistics", [False, True])
def test_gradients_reach_the_images(name: str, batch_statistics: bool) -> None:
    """Logits, centre and moments give the images a finite gradient that is not zero, and the teacher none."""
    teacher = Teacher(traced(name))
    for read in (
        lambda output: output.logits.square().sum(),
        lambda output: output.centre[:, 0].sum(),
        lambda output: output.moments[-1].var.sum(),
    ):
        x = images(3).requires_grad_()
        read(teacher.read(x, torch.tensor([0, 1, 2]), batch_statistics=batch_statistics, moments=True)).backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert x.grad.any()
    assert all(value.grad is None for value in teacher.parameters())


def test_descent_on_the_centre_moves_the_attention() -> None:
    """Forty steps on the images alone bring the centre of attention most of the way to the requested one."""
    teacher, label, wanted = Teacher(traced("residual")), torch.tensor([0, 1]), torch.tensor([[0.3, 0.0], [0.0, -0.3]])
    x = (0.1 * images(2)).requires_grad_()
    optimizer = torch.optim.Adam([x], 0.05)
    distances = []
    for _ in range(40):
        distance = (teacher.read(x, label).centre - wanted).square().sum()
        distances.append(distance.item())
        optimizer.zero_grad()
        distance.backward()
        optimizer.step()
    assert distances[-1] < 0.2 * distances[0]


def test_outputs_are_independent() -> None:
    """Reading other images in between changes no output, bit for bit."""
    teacher, x = Teacher(traced("shuffle")), images(3)
    first = teacher.read(x, moments=True)
    teacher.read(images(5, seed=9), batch_statistics=True, moments=True)
    second = teacher.read(x, moments=True)
    assert torch.equal(first.attention, second.attention)
    assert all(torch.equal(a.var, b.var) for a, b in zip(first.moments, second.moments, strict=True))


def test_a_teacher_knows_its_classes_and_features() -> None:
    """The number of classes is the width of the logits, and features have a public name."""
    teacher = Teacher(traced("residual"))
    assert (teacher.output, teacher.features) == (CLASSES, "middle.2.relu_2")


@pytest.mark.parametrize("batch_statistics", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision_is_close(name: str, batch_statistics: bool) -> None:
    """Products in bfloat16 give outputs in 32 bits, and gradients that point the same way."""
    teacher, found = Teacher(traced(name)), []
    for mixed in (False, True):
        x = images(16).requires_grad_()
        output = teacher.read(x, batch_statistics=batch_statistics, moments=True, mixed=mixed)
        values = [output.logits, output.features, output.centre, *(m.var for m in output.moments)]
        assert {value.dtype for value in values} == {torch.float32}
        torch.manual_seed(0)  # a sum of squares would be what batch statistics make constant
        weighed = [(value * torch.randn_like(value)).sum() for value in values]
        gradients = [torch.autograd.grad(value, x, retain_graph=True)[0] for value in weighed]
        found.append([*values, *gradients])
    for full, mixed in zip(*(map(torch.flatten, values) for values in found), strict=True):
        assert torch.cosine_similarity(full, mixed, dim=0) > 0.99
        assert (mixed.norm() / full.norm()).item() == pytest.approx(1, abs=0.03)
    assert not torch.equal(found[0][0], found[1][0])


def test_attention_for_no_is_that_of_the_negated_row() -> None:
    """Asked for no to a label, the teacher looks where the evidence against it is."""
    teacher, x = Teacher(trace(answering("sigmoid"), SIZE)), images(3)
    weight = constant(teacher.graph, teacher.structure.head)
    assert weight is not None
    label = torch.tensor([0, 2, 4])
    with torch.no_grad():
        yes, no = teacher.read(x, label), teacher.read(x, label + 5)
    torch.testing.assert_close(yes.attention, class_activation(yes.features, weight, label))
    torch.testing.assert_close(no.attention, class_activation(no.features, -weight, label))
    assert not torch.allclose(yes.attention, no.attention)


def test_rows_of_answers_are_those_of_the_last_layer() -> None:
    """A convolution has them too. No to a label has the negated row of yes. Where the layer is not known, none are."""
    single = Teacher(trace(nn.Sequential(nn.Conv2d(3, 5, 2, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()), SIZE))
    weight = constant(single.graph, single.structure.last_weight)
    assert weight is not None
    rows = single.answer_rows()
    assert rows is not None
    assert torch.equal(rows, weight.flatten(1))
    labels = Teacher(trace(answering("sigmoid"), SIZE)).answer_rows()
    assert labels is not None
    yes, no = labels.chunk(2)
    assert torch.equal(yes, -no)
    assert Teacher(trace(nn.Sequential(nn.Flatten(), nn.Linear(48, 4), nn.ReLU()), (3, 4, 4))).answer_rows() is None
