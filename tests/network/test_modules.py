from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import SIZE, Chain, conv, images
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from acq.errors import RequestError
from acq.network.modules import as_module, initialise, switch_to_eval
from acq.network.names import name_of
from acq.network.trace import trace


def network() -> Chain:
    torch.manual_seed(0)
    return Chain(nn.ReLU(), conv(8, 8), nn.ReLU()).eval()


def program(model: nn.Module) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    return torch.export.export(model, (images(2),), dynamic_shapes=({0: batch},))


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile()
    return model


def compiled_inside(model: nn.Module) -> nn.Module:
    model.stem = torch.compile(model.stem)
    model.middle = nn.DataParallel(model.middle)
    return model


class Wrapper(nn.Module):
    """Passes on whatever it is called with."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


WRAPPED: dict[str, Callable[[nn.Module], Any]] = {
    "data parallel": nn.DataParallel,
    "averaged": AveragedModel,
    "compiled": torch.compile,
    "compiled and data parallel": lambda model: torch.compile(nn.DataParallel(model)),
    "compiled in place": compiled_in_place,
    "compiled inside": compiled_inside,
    "program": program,
    "module of a program": lambda model: program(model).module(),
    "fx": torch.fx.symbolic_trace,
    "channels last": lambda model: model.to(memory_format=torch.channels_last),
    "synchronised": nn.SyncBatchNorm.convert_sync_batchnorm,
    "any arguments": Wrapper,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile itself
@pytest.mark.parametrize("kind", WRAPPED)
def test_a_wrapped_network_is_the_network(kind: str) -> None:
    """Wrappers, compiled modules and programs give the scores of the plain network, and its layers."""
    model, x = network(), images(3)
    with torch.no_grad():
        wanted = model(x)
    graph = trace(WRAPPED[kind](model), SIZE)
    torch.testing.assert_close(graph(x), wanted)
    prefix = "inner." if kind == "any arguments" else ""
    found = {name_of(node) for node in graph.graph.nodes if node.op == "get_attr"}
    assert found == {prefix + name for name, _ in network().named_parameters()} | {
        prefix + name for name, _ in network().named_buffers() if "num_batches" not in name
    }


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_become_float32(kind: torch.dtype) -> None:
    """The graph has float32 and says so once; the module keeps its type and its values."""
    model = network().to(kind)
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match=f"weights of {kind}; they become float32") as said:
        graph = trace(model, SIZE)
    assert len(said) == 1
    x = images(2)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model.float()(x))
    model.to(kind)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.dtype != kind for value in graph.state_dict().values())


def test_buffers_of_another_type_stay_as_they_are() -> None:
    """A number in double precision beside weights of float32 is meant so."""
    model = network()
    model.register_buffer("factor", torch.tensor(0.1, dtype=torch.float64))
    model.stem.register_forward_hook(lambda module, inputs, output: output * model.factor)
    graph = trace(model, SIZE)
    assert graph.get_buffer("factor").dtype == torch.float64


def test_tensors_that_a_module_sets_itself_stay_plain() -> None:
    """An attribute that forward assigns, as the old weight norm does, is no tensor of torch.export afterwards."""
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Conv2d(8, 8, 1))
    model = Chain(layer).eval()
    weight = layer.weight
    trace(model, SIZE)
    assert layer.weight is weight


@pytest.mark.parametrize("made", [torch.jit.script, lambda model: torch.jit.trace(model, images(1))])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused(made: Callable[[nn.Module], nn.Module]) -> None:
    """A TorchScript program is refused in one line with the way out."""
    with pytest.raises(RequestError, match=r"TorchScript program.*state_dict\(\) as --checkpoint") as caught:
        trace(made(network()), SIZE)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_parts_of_torchscript_are_traced_or_named() -> None:
    """A traced part is computed like any other; a scripted one, which torch.export does not take, is named."""
    model, x = network(), images(3)
    with torch.no_grad():
        wanted = model(x)
    model.stem = torch.jit.trace(model.stem, images(2))
    torch.testing.assert_close(trace(model, SIZE)(x), wanted)
    model = network()
    model.middle = torch.jit.script(model.middle)
    with pytest.raises(RequestError, match="part 'middle' of the network is a TorchScript program"):
        trace(model, SIZE)


class Called(nn.Module):
    """Takes its images by name, beside a flag, or within a dictionary."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = network(), kind

    def forward(self, x: Any, flag: bool = False) -> Tensor:
        return self.inner(x["image"] if self.kind == "dictionary" else x)


class Named(Called):
    def forward(self, *, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.inner(x)


@pytest.mark.parametrize(
    ("model", "fact"),
    [
        (Named("name"), "does not take images alone: .*; wrap it"),
        (Called("dictionary"), r"does not take images of 3x16x16: .*test_modules.py, line \d+\)"),
        (torch.export.export(network(), (images(4),)), r"one number of images .*dynamic_shapes="),
    ],
)
def test_other_inputs_are_refused_with_the_way_out(model: nn.Module, fact: str) -> None:
    """A forward that takes something else is not blamed on the size of the images alone."""
    with pytest.raises(RequestError, match=fact) as caught:
        trace(model, SIZE)
    assert "\n" not in str(caught.value)


class Counting(nn.Module):
    """Counts its calls in a buffer, as some people's statistics do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x)


def test_buffers_that_forward_changes_stay() -> None:
    """The graph changes no buffer, and gives the scores of the module."""
    model = Counting()
    graph = trace(model, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(graph(images(2)), model.inner(images(2)))
    assert not [node for node in graph.graph.nodes if "calls" in str(node.target)]


def test_other_values_pass() -> None:
    """A value that is no module is the caller's to refuse."""
    assert as_module(3) == 3


class Nothing(nn.Module):
    """Its ``train`` returns nothing and keeps the first norm frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)
        self.inner.stem.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.mark.parametrize("module", [Nothing(), network().train(), program(network()).module()])
def test_eval_mode_needs_no_help_of_the_module(module: nn.Module) -> None:
    """Every part is in eval mode, whatever the module's own methods do."""
    switch_to_eval(module)
    assert not any(part.training for part in module.modules())


def test_lazy_layers_get_their_weights() -> None:
    """One pass of images gives lazy layers shapes, and changes nothing else of a network."""
    model = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(5))
    initialise(model, SIZE)
    assert [tuple(value.shape) for value in model.parameters()][:2] == [(8, 3, 3, 3), (8,)]
    assert model.training
    assert trace(model, SIZE)(images(2)).shape == (2, 5)


def test_lazy_layers_of_another_size_are_refused() -> None:
    """A size that does not fit is named, as it is for other networks."""
    with pytest.raises(RequestError, match="does not take images of 3x16x16"):
        initialise(nn.Sequential(nn.LazyConv2d(8, 30)), SIZE)
