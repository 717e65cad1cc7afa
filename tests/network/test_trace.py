from __future__ import annotations

import copy

import pytest
import torch
from helpers import SIZE, Chain, conv, images, network, traced
from torch import Tensor, nn
from torch.nn import functional as F

from acq.errors import RequestError
from acq.network.constants import constant, shape_of
from acq.network.names import name_of
from acq.network.trace import is_depthwise, trace, weights_hash


class Contiguous(nn.Module):
    """The channel shuffle as it is usually written: a copy, and a view that relies on it."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w)  # [N, C, H, W] -> [N, 2, C / 2, H, W]
        return x.transpose(1, 2).contiguous().view(n, -1, h, w)


class Flat(nn.Module):
    """Takes images of one size only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = conv(3, 8), nn.Linear(8 * 16 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.stem(x)).flatten(1))


class Undecided(nn.Module):
    """Another path for bright images."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) if x.sum() > 0 else x


class Halves(nn.Module):
    """Only two images at a time."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, 1, *x.shape[1:]).flatten(0, 1)


class Stubborn(nn.Module):
    """Its own ``eval`` returns nothing, as some people's do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Chain(nn.ReLU())

    def eval(self) -> None:  # type: ignore[override]
        self.train(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Squeezed(nn.Module):
    """``squeeze()`` without an axis behind the head."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.stem, self.scores, self.again = conv(3, 8), nn.Conv2d(8, 5, 1), again

    def forward(self, x: Tensor) -> Tensor:
        scores = self.scores(F.adaptive_avg_pool2d(self.stem(x), 1)).squeeze()
        return scores.squeeze() if self.again else scores


class Talkative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        print("forward")
        return x


class Kept(nn.Module):
    """A buffer that is in no state dict, and a constant made on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Chain(nn.ReLU())
        self.register_buffer("shift", torch.tensor(0.25), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + self.shift) * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])


def mixed() -> nn.Module:
    """A network whose parts are in different modes and that is partly frozen and hooked."""
    model = Chain(nn.ReLU(), nn.Dropout(0.5), conv(8, 8), nn.ReLU(inplace=True))
    model.train()
    model.stem.eval()
    model.middle[2][1].eval()
    model.head.fc.weight.requires_grad_(False)
    model.stem[0].register_forward_hook(lambda module, inputs, output: None)
    model.stem[1].register_forward_pre_hook(lambda module, inputs: None)
    return model


def test_the_module_is_left_exactly_as_it_was() -> None:
    """A trace changes no mode, hook, gradient, buffer or weight of the module."""
    model = mixed()
    before = copy.deepcopy(model)
    trace(model, SIZE)
    for (name, part), (_, old) in zip(model.named_modules(), before.named_modules(), strict=True):
        assert part.training == old.training, name
        assert len(part._forward_hooks) == len(old._forward_hooks), name
        assert len(part._forward_pre_hooks) == len(old._forward_pre_hooks), name
        assert type(part) is type(old)
        assert part.__dict__.keys() == old.__dict__.keys()
    for (name, value), (_, old) in zip(model.named_parameters(), before.named_parameters(), strict=True):
        assert value.requires_grad == old.requires_grad, name
        assert value.grad is None
    for (name, value), (_, old) in zip(model.state_dict().items(), before.state_dict().items(), strict=True):
        assert torch.equal(value, old), name
    assert model.stem[1].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("part", "fact"), [(Undecided(), "depends on the values"), (nn.Linear(3, 3), "does not take images")]
)
def test_a_failed_trace_leaves_the_module_as_it_was(part: nn.Module, fact: str) -> None:
    """Modes are restored whether the forward pass or the export fails."""
    model = Chain(part).train()
    model.stem.eval()
    with pytest.raises(RequestError, match=fact):
        trace(model, SIZE)
    assert [child.training for child in model.children()] == [False, True, True]
    assert model.training


@pytest.mark.parametrize("name", ["residual in place", "shuffle", "pre-activation", "unknown operator", "two linears"])
def test_the_graph_is_the_network(name: str) -> None:
    """For batches of one image and of seven, the graph's logits are those of the module in eval mode."""
    model, graph = network(name), traced(name)
    for count in (1, 7):
        with torch.no_grad():
            torch.testing.assert_close(graph(images(count)), model(images(count)), rtol=1e-5, atol=1e-6)


def test_the_usual_channel_shuffle_is_traced() -> None:
    """``contiguous().view(...)`` needs no copy in the graph and keeps its values."""
    model = Chain(nn.ReLU(), Contiguous(), conv(8, 8)).eval()
    graph = trace(model, SIZE)
    x = images(3)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x))
    operators = {str(node.target) for node in graph.graph.nodes}
    assert not operators & {"aten.clone.default", "aten.view.default", "aten.contiguous.default"}


def test_dropout_and_in_place_operators_are_gone() -> None:
    """The graph neither drops values at random nor changes its input."""
    graph = trace(mixed(), SIZE)
    operators = [str(node.target) for node in graph.graph.nodes]
    assert not any("dropout" in name or name.startswith("aten.relu_") for name in operators)
    assert operators.count("aten.batch_norm.default") == 2
    x = images(4)
    kept = x.clone()
    assert torch.equal(graph(x), graph(x))
    assert torch.equal(x, kept)


def test_the_graph_owns_its_weights() -> None:
    """Changing the module later does not change the graph, whose weights take no gradients."""
    model = network("residual")
    graph, x = trace(model, SIZE), images(2)
    before = graph(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(graph(x), before)
    assert not any(parameter.requires_grad for parameter in graph.parameters())


def test_shapes_have_a_free_batch() -> None:
    """``shape_of`` gives -1 for the batch, and () for a value that is not a tensor."""
    nodes = list(traced("residual").graph.nodes)
    image = next(node for node in nodes if node.op == "placeholder")
    assert shape_of(image) == (-1, *SIZE)
    assert shape_of(nodes[-1].args[0][0]) == (-1, 5)
    assert shape_of(nodes[-1]) == ()


def test_constants_are_found_by_their_node() -> None:
    """``constant`` gives the weight behind a ``get_attr`` node, and None for any other node."""
    graph = traced("residual")
    linear = next(node for node in graph.graph.nodes if str(node.target) == "aten.linear.default")
    weight = constant(graph, linear.args[1])
    assert weight is not None
    assert torch.equal(weight, network("residual").head.fc.weight)  # type: ignore[union-attr, arg-type]
    assert constant(graph, linear) is None
    assert constant(graph, 3) is None


def test_buffers_outside_the_state_dict_and_constants_are_kept() -> None:
    """The graph has buffers and constants that a state dict does not list."""
    model = Kept().eval()
    graph, x = trace(model, SIZE), images(2)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x))


@pytest.mark.parametrize("again", [False, True])
def test_squeezing_keeps_the_batch_axis(again: bool) -> None:
    """A single image has scores [1, K], where the module's own ``squeeze()`` also removes its batch axis."""
    model = Squeezed(again).eval()
    graph, x = trace(model, SIZE), images(3)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x))
    assert graph(x[:1]).shape == (1, 5)


class Centred(nn.Module):
    """Subtracts what all images of a batch have in common."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean((0, 2, 3), keepdim=True)


@pytest.mark.parametrize("part", [Centred(), nn.Softmax(0)])
def test_networks_whose_answers_depend_on_the_batch_are_refused(part: nn.Module) -> None:
    """An answer that other images of the batch change has no place in a file for one image."""
    with pytest.raises(RequestError, match="depends on the other images of its batch"):
        trace(Chain(nn.ReLU(), part), SIZE)


def test_an_unusual_eval_method_is_no_obstacle() -> None:
    """A network whose ``eval`` returns nothing is traced like any other."""
    model = Stubborn()
    assert trace(model, SIZE)(images(2)).shape == (2, 5)
    assert model.training


def test_what_a_network_prints_stays_off_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    """Text that a network prints goes to standard error, so JSON on standard output stays whole."""
    trace(Chain(Talkative()), SIZE)
    said = capsys.readouterr()
    assert said.out == ""
    assert "forward" in said.err


@pytest.mark.parametrize(
    ("model", "size", "fact"),
    [
        (Flat(), (3, 20, 20), "does not take images of 3x20x20: .*--input-size"),
        (Chain(), (1, 16, 16), "does not take images of 1x16x16: .*--input-size"),
        (nn.Flatten(), (3, 0, 0), r"returns a tensor \[N, 0\], not scores with a row"),
        (Chain(Undecided()), SIZE, r"depends on the values of its images \(.*test_trace.py, line \d+\)"),
        (Chain(Halves()), SIZE, r"number of its images as a plain number \(.*test_trace.py, line \d+\)"),
    ],
)
def test_networks_that_cannot_be_traced_are_refused(model: nn.Module, size: tuple[int, int, int], fact: str) -> None:
    """Wrong sizes, no scores and paths that depend on data are refused."""
    with pytest.raises(RequestError, match=fact):
        trace(model, size)


def test_the_hash_is_that_of_the_weights() -> None:
    """Equal networks have equal hashes, and another value, name or type gives another hash."""
    model = network("residual")
    first = weights_hash(model)
    assert first == weights_hash(network("residual"))
    assert first != weights_hash(network("residual", seed=1))
    assert first != weights_hash(copy.deepcopy(model).double())
    assert first != weights_hash(nn.Sequential(model))
    with torch.no_grad():
        model.get_buffer("stem.1.running_mean")[3] += 1e-6
    assert first != weights_hash(model)


def test_two_traces_agree() -> None:
    """Two traces of equal networks have equal code, weights and public names."""
    first, second = traced("shuffle"), trace(network("shuffle"), SIZE)
    assert first.code == second.code
    assert weights_hash(first) == weights_hash(second)
    assert [name_of(node) for node in first.graph.nodes] == [name_of(node) for node in second.graph.nodes]


@pytest.mark.parametrize(
    ("name", "depthwise"), [("relu6", True), ("shuffle", False), ("residual", False), ("bottleneck", False)]
)
def test_depthwise_convolutions_are_seen(name: str, depthwise: bool) -> None:
    """A convolution with one group per channel makes a network depthwise."""
    assert is_depthwise(traced(name)) == depthwise


def test_groups_alone_are_not_depthwise() -> None:
    """Convolutions with two channels per group, or with one channel in all, are not depthwise."""
    for inputs, groups in ((8, 4), (1, 1)):
        model = nn.Sequential(nn.Conv2d(inputs, 8, 3, groups=groups), nn.Flatten(), nn.LazyLinear(3))
        model(torch.zeros(1, inputs, 8, 8))
        assert not is_depthwise(trace(model, (inputs, 8, 8)))
