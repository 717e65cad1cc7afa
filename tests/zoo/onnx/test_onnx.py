from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import SIZE, network
from onnx import TensorProto, helper, numpy_helper
from onnx_files import exported, model_of
from torch import Tensor, nn

from acq.errors import Note, RequestError
from acq.network.trace import trace
from acq.zoo import onnx as zoo_onnx
from acq.zoo import resolve
from acq.zoo.onnx import HalfWarning


class Encoder(nn.Module):
    """A class token and torch's own attention, whose rows have the batch inside."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(0)))
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True, activation="gelu")
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.block(torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1))[:, 0])


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "shuffle": lambda: network("shuffle"),
    "squeeze-excite": lambda: network("squeeze-excite"),
    "encoder": lambda: Encoder().eval(),
}
WAYS = list(itertools.product([True, False], repeat=3))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("dynamo", "folded", "free"), WAYS)
def test_what_torch_exports_comes_back(name: str, dynamo: bool, folded: bool, free: bool, tmp_path: Path) -> None:
    """Both exporters, with norms folded and kept, for one image and for any: the trace has the module's values."""
    module = NETWORKS[name]()
    file = exported(module, tmp_path / "a.onnx", SIZE, dynamo=dynamo, folded=folded, free=free)
    found = resolve(str(file), mean=(0.5,) * 3, std=(0.25,) * 3)
    graph = trace(found.model, found.preprocessing.input_size)
    images = torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (ours,), theirs = graph(images), module(images)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert found.preprocessing.input_size == SIZE


def test_layers_have_the_names_of_the_network(tmp_path: Path) -> None:
    """From the names of weights where they are kept, otherwise from those of nodes; so do the trace's operators."""
    module = network("relu6")
    wanted = {name for name, part in module.named_modules() if isinstance(part, nn.Conv2d | nn.Linear | nn.BatchNorm2d)}
    file = exported(module, tmp_path / "a.onnx", SIZE, dynamo=False, folded=False, free=True)
    graph = trace(resolve(str(file)).model, SIZE)
    names = {node.meta["name"] for node in graph.graph.nodes}
    assert wanted <= names
    file = exported(module, tmp_path / "b.onnx", SIZE, dynamo=False, folded=True, free=True)
    names = {node.meta["name"] for node in trace(resolve(str(file)).model, SIZE).graph.nodes}
    assert {name for name in wanted if "1" not in name.rpartition(".")[2]} <= names


WEIGHT = np.random.default_rng(0).standard_normal((5, 3, 16, 16)).astype(np.float32)


def simple(opset: int = 20, shape: tuple[int | str, ...] = ("n", *SIZE)) -> onnx.ModelProto:
    """One convolution over the whole image, and a flatten."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Flatten", ["a"], ["y"])]
    return model_of(nodes, shape, {"w": WEIGHT}, opset=opset)


def external(model: onnx.ModelProto, location: str, **more: int) -> None:
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=str(value)))


def saved(model: onnx.ModelProto, folder: Path) -> str:
    (folder / "a.onnx").write_bytes(model.SerializeToString())
    return str(folder / "a.onnx")


@pytest.mark.parametrize("opset", range(9, 26))
def test_opsets_are_read(opset: int, tmp_path: Path) -> None:
    assert resolve(saved(simple(opset), tmp_path)).preprocessing.input_size == SIZE


def test_weights_in_a_file_beside_it_are_read(tmp_path: Path) -> None:
    model = simple()
    (tmp_path / "a.data").write_bytes(b"1234" + WEIGHT.tobytes())
    external(model, "a.data", offset=4, length=WEIGHT.nbytes)
    found = resolve(saved(model, tmp_path)).model
    assert np.array_equal(next(found.parameters()).numpy(), WEIGHT)


@pytest.mark.parametrize(
    ("location", "offset", "length", "words"),
    [
        ("../a.data", 0, None, "only files in the folder"),
        ("/etc/passwd", 0, None, "only files in the folder"),
        ("..", 0, None, "only files in the folder"),
        ("", 0, None, "only files in the folder"),
        ("none.data", 0, None, "which is not beside it"),
        ("link.data", 0, None, "which is not beside it"),
        ("a.data", 8, None, "is too short"),
        ("a.data", -1, None, "does not say which bytes"),
        ("a.data", 0, 8, "does not say which bytes"),
        ("a.data", 0, 1 << 40, "does not say which bytes"),
    ],
)
def test_other_files_are_read_from_the_same_folder_within_their_length(
    location: str, offset: int, length: int | None, words: str, tmp_path: Path
) -> None:
    model = simple()
    (tmp_path / "a.data").write_bytes(WEIGHT.tobytes())
    (tmp_path / "link.data").symlink_to("/etc/passwd")
    external(model, location, offset=offset, **({} if length is None else {"length": length}))
    with pytest.raises(RequestError, match=words):
        resolve(saved(model, tmp_path))


def test_constants_in_nodes_and_initializers_that_are_inputs_are_read(tmp_path: Path) -> None:
    model = simple()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, WEIGHT.shape))
    assert resolve(saved(model, tmp_path)).preprocessing.input_size == SIZE
    del model.graph.initializer[:], model.graph.input[1:]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(WEIGHT)))
    assert resolve(saved(model, tmp_path)).preprocessing.input_size == SIZE


def test_weights_in_16_bits_become_32(tmp_path: Path) -> None:
    """A warning says so."""
    model = model_of(
        list(simple().graph.node), ("n", *SIZE), {"w": WEIGHT.astype(np.float16)}, kind=TensorProto.FLOAT16
    )
    with pytest.warns(HalfWarning, match="float16; they become float32"):
        found = resolve(saved(model, tmp_path))
    assert found.form is not None
    assert (found.form.kind, found.form.outputs) == ("float16", {"y": "float16"})
    assert next(found.model.parameters()).dtype == torch.float32


def test_weights_of_64_bits_are_compared_as_32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constants in nodes count as initializers do, and only 16 bits allow a larger difference."""
    model = simple()
    del model.graph.initializer[:]
    wide = numpy_helper.from_array(WEIGHT.astype(np.float64))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["wide"], value=wide))
    model.graph.node.insert(1, helper.make_node("Cast", ["wide"], ["w"], to=TensorProto.FLOAT))
    seen: list[bool] = []
    compare = zoo_onnx.require_equal
    monkeypatch.setattr(zoo_onnx, "require_equal", lambda *given, half: seen.append(half) or compare(*given, half=half))
    with pytest.warns(HalfWarning, match="double; they become float32"):
        resolve(saved(model, tmp_path))
    assert seen == [False]


@pytest.mark.parametrize("turns", [True, False])
def test_channels_may_come_last(turns: bool, tmp_path: Path) -> None:
    """They do where the graph turns its input first, or by their number; a turn leaves nothing in the network."""
    order = [] if not turns else [helper.make_node("Transpose", ["x"], ["b"], perm=[0, 3, 1, 2])]
    if turns:
        model = model_of(
            [*order, helper.make_node("Conv", ["b", "w"], ["a"]), helper.make_node("Flatten", ["a"], ["y"])],
            ("n", *SIZE[1:], 3), {"w": WEIGHT},
        )  # fmt: skip
    else:
        model = model_of(
            [helper.make_node("Flatten", ["x"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["y"])],
            ("n", *SIZE[1:], 3), {"w": WEIGHT.reshape(5, -1).T},
        )  # fmt: skip
    found = resolve(saved(model, tmp_path))
    assert found.form is not None
    assert (found.form.layout, found.preprocessing.input_size) == ("NHWC", SIZE)
    targets = [str(node.target) for node in trace(found.model, SIZE).graph.nodes]
    assert ("aten.permute.default" in targets) is not turns


def test_a_size_that_the_file_leaves_free_is_given(tmp_path: Path) -> None:
    file = saved(simple(shape=("n", 3, "h", "w")), tmp_path)
    with pytest.warns(Note, match="any height or width, and the student's file takes 16x16 alone"):
        assert resolve(file, input_size=SIZE).preprocessing.input_size == SIZE
    with pytest.raises(RequestError, match=r"images of any size \(3,\?,\?\); give --input-size"):
        resolve(file)
    with pytest.raises(RequestError, match="--input-size is 1,16,16, but the file takes 3"):
        resolve(file, input_size=(1, 16, 16))


def test_a_size_is_free_where_channels_come_last(tmp_path: Path) -> None:
    """A last side of 3 pixels is the channels, also where height and width are free."""
    model = model_of(
        [
            helper.make_node("Sub", ["x", "mean"], ["a"]),
            helper.make_node("Transpose", ["a"], ["b"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["b", "w"], ["c"]), helper.make_node("GlobalAveragePool", ["c"], ["d"]),
            helper.make_node("Flatten", ["d"], ["y"]),
        ],
        ("n", "h", "w_", 3), {"w": WEIGHT, "mean": np.full(3, 0.5, np.float32)},
    )  # fmt: skip
    with pytest.warns(Note, match="takes 16x16 alone"):
        found = resolve(saved(model, tmp_path), input_size=SIZE)
    assert found.form is not None
    assert (found.form.layout, found.preprocessing.input_size) == ("NHWC", SIZE)


def test_a_graph_is_cut_at_named_values(tmp_path: Path) -> None:
    """Operators behind them may be any; the file's own outputs and indices cut nothing."""
    model = simple()
    model.graph.node.append(helper.make_node("NonZero", ["y"], ["z"]))
    model.graph.output[0].name = "z"
    file = saved(model, tmp_path)
    with pytest.raises(RequestError, match=r"NonZero \(node 'z'\) is no operator .*--outputs 'y'"):
        resolve(file)
    found = resolve(file, outputs=["y"])
    assert list(found.model(torch.zeros(2, *SIZE))) == ["y"]
    assert found.tail is not None
    rest = onnx.load_model_from_string(found.tail)
    assert [value.name for value in (*rest.graph.input, *rest.graph.output)] == ["y", "z"]
    with pytest.raises(RequestError, match=r"computes no 'yy' .did you mean 'y'"):
        resolve(file, outputs=["yy"])
    assert resolve(saved(simple(), tmp_path), outputs=["0"]).tail is None


def test_a_cut_that_leaves_other_values_behind_is_refused(tmp_path: Path) -> None:
    """The rest could not be put back."""
    model = simple()
    model.graph.node.append(helper.make_node("Mul", ["y", "y2"], ["z"]))
    model.graph.node.insert(2, helper.make_node("Flatten", ["a"], ["y2"]))
    model.graph.output[0].name = "z"
    with pytest.raises(RequestError, match=r"also takes 'y2'; name what it takes as --outputs too"):
        resolve(saved(model, tmp_path), outputs=["y"])
    assert resolve(saved(model, tmp_path), outputs=["y", "y2"]).tail is not None


def test_another_head_behind_the_cut_is_named(tmp_path: Path) -> None:
    """Not the values inside the network that it comes from. The advice can be followed."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Reshape", ["b", "boxes_shape"], ["boxes"]),
        helper.make_node("Sigmoid", ["a"], ["c"]),
        helper.make_node("Reshape", ["c", "scores_shape"], ["scores"]),
        helper.make_node("NonMaxSuppression", ["boxes", "scores"], ["y"]),
    ]
    weights = np.random.default_rng(0).standard_normal((8, 3, 16, 16)).astype(np.float32)
    shapes = {"boxes_shape": np.array([0, 2, 4]), "scores_shape": np.array([0, 4, 2])}
    file = saved(model_of(nodes, ("n", *SIZE), {"w": weights, **shapes}), tmp_path)
    with pytest.raises(RequestError, match=r"NonMaxSuppression .*--outputs 'boxes'"):
        resolve(file)
    with pytest.raises(RequestError, match=r"also takes 'scores'; name what it takes"):
        resolve(file, outputs=["boxes"])
    assert resolve(file, outputs=["boxes", "scores"]).tail is not None


def branching(condition: str, *before: onnx.NodeProto) -> onnx.ModelProto:
    """A file whose last node is control flow over ``a``."""
    made = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    branches = {
        name: helper.make_graph([helper.make_node(kind, ["a"], ["b"])], name, [], [made])
        for name, kind in (("then_branch", "Relu"), ("else_branch", "Neg"))
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        *before,
        helper.make_node("If", [condition], ["b"], name="fork", **branches),
        helper.make_node("Flatten", ["b"], ["y"]),
    ]
    return model_of(nodes, ("n", *SIZE), {"w": WEIGHT, "yes": np.array(True)})


@pytest.mark.parametrize(
    ("condition", "before"),
    [
        ("yes", ()),
        ("long", (helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Greater", ["s", "s"], ["long"]))),
    ],
)
def test_the_way_out_of_control_flow_names_what_images_decide(
    condition: str, before: tuple[onnx.NodeProto, ...], tmp_path: Path
) -> None:
    """And no condition, which is a constant or a size. The advice can be followed."""
    file = saved(branching(condition, *before), tmp_path)
    with pytest.raises(RequestError, match=r"If \(node 'fork'\) is control flow.*; cut .*--outputs 'a'$"):
        resolve(file)
    assert resolve(file, outputs=["a"]).model is not None


def test_an_operator_of_another_domain_that_reads_the_images_cannot_be_cut_off(tmp_path: Path) -> None:
    """So the message does not name the images."""
    model = simple()
    model.graph.node[0].domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(RequestError, match="nothing before it can be named as --outputs, so export"):
        resolve(saved(model, tmp_path))


def test_a_domain_without_operators_hinders_no_cut(tmp_path: Path) -> None:
    """Tools leave such entries behind."""
    model = simple()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert resolve(saved(model, tmp_path)).tail is None
    tail = resolve(saved(model, tmp_path), outputs=["a"]).tail
    assert tail is not None
    assert [entry.domain for entry in onnx.load_model_from_string(tail).opset_import] == [""]


def test_constants_of_graphs_inside_nodes_are_in_no_other_file(tmp_path: Path) -> None:
    """One from the same folder comes into the file; one from elsewhere is refused before an engine opens it."""
    model = branching("yes")
    inner = model.graph.node[1].attribute[0].g
    inner.node[0].CopyFrom(helper.make_node("Add", ["a", "t"], ["b"]))
    values = np.arange(5, dtype=np.float32)[None, :, None, None]
    inner.initializer.append(numpy_helper.from_array(values, "t"))
    (tensor,) = inner.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.append(onnx.StringStringEntryProto(key="location", value="t.bin"))
    (tmp_path / "t.bin").write_bytes(values.tobytes())
    tail = resolve(saved(model, tmp_path), outputs=["a"]).tail
    assert tail is not None
    assert values.tobytes() in tail
    tensor.external_data[0].value = "../t.bin"
    with pytest.raises(RequestError, match="only files in the folder"):
        resolve(saved(model, tmp_path), outputs=["a"])


def test_too_much_metadata_is_left_out_with_a_warning(tmp_path: Path) -> None:
    """It would go into a run folder."""
    model = simple()
    helper.set_model_props(model, {"names": "x" * (1 << 20)})
    with pytest.warns(UserWarning, match="the file has 1,048,581 characters of metadata, too many"):
        form = resolve(saved(model, tmp_path)).form
    assert form is not None
    assert form.metadata == {}


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    """One line each, with the way out."""
    (tmp_path / "a.onnx").write_bytes(b"nonsense")
    with pytest.raises(RequestError, match=r"is no ONNX file|has no graph"):
        resolve(str(tmp_path / "a.onnx"))
    with pytest.raises(RequestError, match=r"there is no file .*none\.onnx"):
        resolve(str(tmp_path / "none.onnx"))
    with pytest.raises(RequestError, match="has its own weights"):
        resolve(saved(simple(), tmp_path), checkpoint=tmp_path / "weights.pth")
    two = simple()
    two.graph.input.append(helper.make_tensor_value_info("ids", TensorProto.FLOAT, [1]))
    with pytest.raises(RequestError, match="takes 2 inputs"):
        resolve(saved(two, tmp_path))
    with pytest.raises(RequestError, match="has 2 axes"):
        resolve(saved(simple(shape=("n", 3)), tmp_path))
    with pytest.raises(RequestError, match="version 99 of the ONNX operators"):
        resolve(saved(simple(opset=99), tmp_path))


def test_a_file_that_is_read_wrongly_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each import is compared with the runtime, however it came about."""
    from acq.zoo.onnx import registry

    wrong = registry.Operator(lambda _, x: x.flatten(1) + 0.1, (), False)
    monkeypatch.setitem(registry.OPERATORS, "Flatten", wrong)
    with pytest.raises(RequestError, match=r"differs by .* from that of ONNX Runtime"):
        resolve(saved(simple(), tmp_path))


@pytest.mark.parametrize("ending", ["Sigmoid", "Softmax", "HardSigmoid"])
@pytest.mark.parametrize("moved", [False, True])
def test_scores_are_compared_before_an_end_that_saturates(
    ending: str, moved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind it wrong scores look like right ones, whatever moves the values afterwards."""
    from acq.zoo.onnx import registry

    nodes = [
        helper.make_node("Flatten", ["x"], ["a"]), helper.make_node("Add", ["a", "far"], ["b"]),
        helper.make_node(ending, ["b"], ["c"]),
        helper.make_node("Unsqueeze", ["c", "axes"], ["y"]) if moved else helper.make_node("Identity", ["c"], ["y"]),
    ]  # fmt: skip
    far = np.zeros(3 * SIZE[1] * SIZE[2], np.float32)
    far[0 if ending == "Softmax" else slice(None)] = 300
    model = model_of(nodes, ("n", *SIZE), {"far": far, "axes": np.array([2])})
    assert resolve(saved(model, tmp_path)).preprocessing.input_size == SIZE
    wrong = registry.Operator(lambda _, x: 2 * x.flatten(1), (), False)
    monkeypatch.setitem(registry.OPERATORS, "Flatten", wrong)
    with pytest.raises(RequestError, match=r"the value 'b' differs by"):
        resolve(saved(model, tmp_path))
