from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from helpers import SIZE, Head, Residual, conv, images, network, traced
from torch import Tensor, nn
from torch.nn import functional as F

from acq.errors import RequestError
from acq.network.attention import centre_of, channel_energy, class_activation
from acq.network.teacher import Teacher
from acq.network.trace import trace

NAMES = ["residual", "shuffle", "squeeze-excite"]


class Nested(nn.Module):
    """Modules in modules, functional rectifiers, and a head that is given."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Sequential(conv(3, 8, stride=2), nn.ReLU()), nn.ModuleDict({"a": Residual(True)})["a"]
        )
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
    """However it is written, features are what is pooled and the map is that of the head's weights."""
    model = Nested(POOLED[head]()).eval()
    teacher, x, label = Teacher(trace(model, SIZE)), images(4), torch.tensor([4, 0, 1, 1])
    features = model.body(x)
    weight = next(part.weight for part in model.head.modules() if isinstance(part, nn.Linear))
    reading = teacher.read(x, label)
    torch.testing.assert_close(reading.features, features)
    torch.testing.assert_close(reading.attention, class_activation(features, weight, label))
    torch.testing.assert_close(reading.centre, centre_of(reading.attention))
    torch.testing.assert_close(reading.logits, model(x))


@pytest.mark.parametrize("head", OTHERS)
def test_channel_energy_where_the_head_is_another(head: str) -> None:
    """Two layers, a maximum, or whatever else stands before the scores: the map needs no head."""
    model = Nested(OTHERS[head]()).eval()
    teacher, x = Teacher(trace(model, SIZE)), images(4)
    assert teacher.structure.head is None
    reading = teacher.read(x, torch.tensor([4, 0, 1, 1]))
    features = model.body(x) if head != "mean of channels" else model.head.thin(model.body(x))
    torch.testing.assert_close(reading.features, features)
    torch.testing.assert_close(reading.attention, channel_energy(features))


def test_the_class_without_a_label_is_the_predicted_one() -> None:
    """A reading without labels looks at what the network itself would answer."""
    teacher, x = Teacher(traced("residual")), images(6)
    reading = teacher.read(x)
    assert torch.equal(reading.attention, teacher.read(x, reading.logits.argmax(1)).attention)


@pytest.mark.parametrize("name", [*NAMES, "pre-activation", "all convolutional"])
def test_moments_are_those_that_a_hook_sees(name: str) -> None:
    """One mean and biased variance a BatchNorm2d, in order of execution, equal to ``torch.var_mean``."""
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
    """They stand in the order of a reading's moments."""
    norms = [part for part in network(name).modules() if isinstance(part, nn.BatchNorm2d)]
    stored = Teacher(traced(name)).stored
    for moments, norm in zip(stored, norms, strict=True):
        assert torch.equal(moments.mean, norm.running_mean)
        assert torch.equal(moments.var, norm.running_var)


@pytest.mark.parametrize("name", [*NAMES, "pre-activation"])
def test_batch_statistics_are_those_of_train_mode(name: str) -> None:
    """Logits equal the module's in train mode with its dropout off, and no buffer of the teacher changes."""
    model, teacher, x = network(name).train(), Teacher(traced(name)), images(6)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.eval()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    reading = teacher.read(x, batch_statistics=True, moments=True)
    with torch.no_grad():
        torch.testing.assert_close(reading.logits, model(x), rtol=1e-4, atol=1e-5)
    assert len(reading.moments) == len(teacher.stored_moments)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    torch.testing.assert_close(teacher.read(x).logits, teacher(x))


def test_batch_statistics_of_white_features_are_the_running_ones() -> None:
    """A batch whose moments are the stored ones reads the same in both ways."""
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
    """A reading without them has none, and is otherwise the same."""
    teacher, x = Teacher(traced("residual")), images(3)
    plain, full = teacher.read(x), teacher.read(x, moments=True)
    assert plain.moments == ()
    for name in ("logits", "features", "attention", "centre"):
        torch.testing.assert_close(getattr(plain, name), getattr(full, name))


@pytest.mark.parametrize("name", ["residual", "all convolutional"])
@pytest.mark.parametrize("batch_statistics", [False, True])
def test_what_is_read_leads_back_to_the_images(name: str, batch_statistics: bool) -> None:
    """Logits, centre and moments give images a gradient that is finite and not zero, and the teacher none."""
    teacher = Teacher(traced(name))
    for read in (
        lambda reading: reading.logits.square().sum(),
        lambda reading: reading.centre[:, 0].sum(),
        lambda reading: reading.moments[-1].var.sum(),
    ):
        x = images(3).requires_grad_()
        read(teacher.read(x, torch.tensor([0, 1, 2]), batch_statistics=batch_statistics, moments=True)).backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert x.grad.any()
    assert all(value.grad is None for value in teacher.parameters())


def test_descent_on_the_centre_moves_the_attention() -> None:
    """Forty steps on the images alone bring the centre of attention most of the way to where it is asked."""
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


def test_readings_do_not_linger() -> None:
    """Reading other images between two readings changes nothing, bit for bit."""
    teacher, x = Teacher(traced("shuffle")), images(3)
    first = teacher.read(x, moments=True)
    teacher.read(images(5, seed=9), batch_statistics=True, moments=True)
    second = teacher.read(x, moments=True)
    assert torch.equal(first.attention, second.attention)
    assert all(torch.equal(a.var, b.var) for a, b in zip(first.moments, second.moments, strict=True))


def test_classes_are_those_of_the_output() -> None:
    """The number of classes is the width of the scores."""
    assert Teacher(traced("residual")).classes == 5


def without_norms() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Head(8))


def without_statistics() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(), Head(8))


def without_space() -> nn.Module:
    """Every feature map has one cell."""
    return nn.Sequential(nn.Conv2d(3, 8, 16), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5))


@pytest.mark.parametrize(
    ("make", "fact"),
    [
        (without_norms, "no BatchNorm2d"),
        (without_statistics, "no BatchNorm2d|no running statistics"),
        (lambda: network("two linears"), "no BatchNorm2d"),
        (without_space, "no spatial features"),
    ],
)
def test_what_a_teacher_needs_is_named(make: Callable[[], nn.Module], fact: str) -> None:
    """A network without batch normalization over images, or without feature maps, is refused in a line."""
    with pytest.raises(RequestError, match=fact) as caught:
        Teacher(trace(make(), SIZE))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batch_statistics", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision_reads_nearly_the_same(name: str, batch_statistics: bool) -> None:
    """In 32 bits whatever the network's products are in, and with gradients that point the same way."""
    teacher, found = Teacher(traced(name)), []
    for mixed in (False, True):
        x = images(16).requires_grad_()
        reading = teacher.read(x, batch_statistics=batch_statistics, moments=True, mixed=mixed)
        values = [reading.logits, reading.features, reading.centre, *(m.var for m in reading.moments)]
        assert {value.dtype for value in values} == {torch.float32}
        torch.manual_seed(0)  # a sum of squares would be what batch statistics make constant
        weighed = [(value * torch.randn_like(value)).sum() for value in values]
        gradients = [torch.autograd.grad(value, x, retain_graph=True)[0] for value in weighed]
        found.append([*values, *gradients])
    for full, mixed in zip(*(map(torch.flatten, values) for values in found), strict=True):
        assert torch.cosine_similarity(full, mixed, dim=0) > 0.99
        assert (mixed.norm() / full.norm()).item() == pytest.approx(1, abs=0.03)
    assert not torch.equal(found[0][0], found[1][0])
