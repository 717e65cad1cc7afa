"""Changed run folders and drawn networks: ``python tests/fuzz_students.py folders|networks COUNT SEED FOLDER``.

Operators of torch and the translation to ONNX are native code, so this runs in its own process. ``FOLDER/case`` says
which case was the last one. It prints one JSON object: how many cases were refused, loaded or exported.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from helpers import SIZE, images, student_from, student_of
from torch import Tensor, nn
from torch.nn import functional as F

from acq.core.values import Preprocessing
from acq.errors import RequestError
from acq.export.engine import Engine
from acq.export.graph import onnx_model
from acq.network.operators import VOCABULARY
from acq.network.trace import trace
from acq.quantization.integers import convert_to_integers
from acq.quantization.student import Student
from acq.runs import student_file
from acq.runs.names import QUANTIZATION

_MEMORY = 20 << 30
KNOWN = Preprocessing(SIZE, (0.5,) * 3, (0.2,) * 3)
NETWORKS = ("residual", "shuffle", "unknown operator", "squeeze-excite")
NUMBERS = (0, -1, 1, 2, 3, 7, 100, 2**31, -(2**31), 2**62, -(2**63), 0.5, float("1e38"), True, None, "x", [], [1, 2])
CORE = [
    f"aten.{name.removeprefix('aten::') if '.' in name else name.removeprefix('aten::') + '.default'}"
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("aten::")
]
OPERATORS = sorted(VOCABULARY)
POINTWISE = [
    f"aten.{name}.default"
    for name in (
        "abs", "acos", "asinh", "atan", "bitwise_not", "ceil", "clone", "cos", "elu", "erf", "exp", "expm1", "gelu",
        "hardtanh", "isinf", "isnan", "leaky_relu", "log", "log1p", "logical_not", "neg", "reciprocal", "relu", "round",
        "rsqrt", "sigmoid", "sign", "sin", "sqrt", "tan", "tanh", "trunc", "hardswish", "silu",
    )
]  # fmt: skip

Change = Callable[[dict[str, Any], random.Random], None]


def operator(document: dict[str, Any], rng: random.Random) -> None:
    """Another operator, of the planner or any of torch."""
    node = rng.choice([node for node in document["nodes"] if node["op"] == "call_function"])
    node["target"] = rng.choice(rng.choice((OPERATORS, CORE)))


def pointwise(document: dict[str, Any], rng: random.Random) -> None:
    """Another operator that keeps the shape, with its input alone."""
    nodes = [node for node in document["nodes"] if node["op"] == "call_function" and len(node["args"]) == 1]
    if nodes:
        node = rng.choice(nodes)
        node["target"], node["kwargs"] = rng.choice(POINTWISE), {}


def argument(document: dict[str, Any], rng: random.Random) -> None:
    """Another argument, or one more."""
    node = rng.choice(document["nodes"])
    if node["args"] and rng.random() < 0.7:
        node["args"][rng.randrange(len(node["args"]))] = rng.choice(NUMBERS)
    else:
        node["args"].append(rng.choice(NUMBERS))


def connection(document: dict[str, Any], rng: random.Random) -> None:
    """Another input, which may come later."""
    node, other = rng.choice(document["nodes"]), rng.choice(document["nodes"])
    if node["args"]:
        node["args"][0] = {"node": other["name"]}


def shape(document: dict[str, Any], rng: random.Random) -> None:
    """Another declared shape."""
    sizes = rng.choice(document["nodes"])["shape"]
    if sizes:
        sizes[rng.randrange(len(sizes))] = rng.choice((0, -1, 1, 5, 2**40))


def layer(document: dict[str, Any], rng: random.Random) -> None:
    """Another width, shape or geometry of a layer, or a quantizer of another width."""
    found = rng.choice(list(document["layers"].values()))
    place = rng.randrange(3)
    if place == 0:
        found["bits"] = rng.randint(0, 9)
    elif place == 1:
        found["shape"][rng.randrange(len(found["shape"]))] = rng.choice((0, 1, 4, 10**12))
    elif found["geometry"] is not None:
        found["geometry"][rng.choice(("stride", "padding", "dilation", "groups"))] = rng.choice(NUMBERS)


def removal(document: dict[str, Any], rng: random.Random) -> None:
    """One node less, or two that change places."""
    nodes = document["nodes"]
    if rng.random() < 0.5:
        del nodes[rng.randrange(len(nodes))]
    else:
        rng.shuffle(nodes)


CHANGES: tuple[Change, ...] = (
    operator, operator, pointwise, pointwise, argument, argument, connection, shape, layer, removal,
)  # fmt: skip


def folders(count: int, rng: random.Random, folder: Path) -> Counter[str]:
    """Load changed run folders; those that load are saved again and exported."""
    whole = []
    for name in NETWORKS:
        place = folder / name
        student = student_of(name)
        convert_to_integers(student)
        student.preprocessing = KNOWN
        student_file.save(student, place, {})
        assert loaded_and_exported(place, folder) == "exported"
        whole.append((place, json.loads((place / QUANTIZATION).read_text())))
    found: Counter[str] = Counter()
    for _ in range(count):
        place, document = rng.choice(whole)
        changed = json.loads(json.dumps(document))
        for _ in range(rng.randint(1, 3)):
            rng.choice(CHANGES)(changed, rng)
        (folder / "case").write_text(json.dumps(changed))
        case = folder / "changed"
        shutil.copytree(place, case, dirs_exist_ok=True)
        (case / QUANTIZATION).write_text(json.dumps(changed))
        found[loaded_and_exported(case, folder)] += 1
    return found


def loaded_and_exported(case: Path, folder: Path) -> str:
    """How far a run folder gets."""
    try:
        student = student_file.load(case).eval()
    except RequestError as error:
        return one_line(error, "refused")
    try:
        exported(student, folder)
    except RequestError as error:
        return one_line(error, "not exported")
    return "exported"


def exported(student: Student, folder: Path) -> None:
    """Save a student, write its file and open the file."""
    student_file.save(student, folder / "again", {})
    (folder / "file.onnx").write_bytes(onnx_model(student).SerializeToString())
    Engine(folder / "file.onnx")(torch.zeros(2, *SIZE))


def one_line(error: RequestError, outcome: str) -> str:
    assert "\n" not in str(error)
    return outcome


UNARY: tuple[Callable[[Tensor], Tensor], ...] = (
    F.relu, torch.sigmoid, F.silu, F.hardswish, F.gelu, torch.tanh, torch.abs, torch.sin, F.softplus, F.relu6,
    lambda x: x.clamp(-1, 1.5), lambda x: x.clamp(min=0.01).pow(1.7), lambda x: F.softmax(x, 1), lambda x: x * 2 + 1,
    lambda x: F.max_pool2d(x, 3, 1, 1), lambda x: F.avg_pool2d(x, 3, 1, 1), lambda x: x.flip(2), lambda x: x.roll(1, 3),
    lambda x: F.pad(x, (1, 1, 1, 1), "reflect")[..., 1:-1, 1:-1], lambda x: x.transpose(2, 3).contiguous(),
    lambda x: F.layer_norm(x, x.shape[1:]), lambda x: F.group_norm(x, 2), lambda x: F.instance_norm(x),
    lambda x: x.cumsum(1), lambda x: x - x.mean((2, 3), keepdim=True), lambda x: x / (x.std(1, keepdim=True) + 1),
    lambda x: x.reshape(x.shape[0] * 2, -1).sin().view(x.shape), lambda x: torch.where(x > 0, x, 0.3 * x),
    lambda x: x[:, torch.arange(x.shape[1] - 1, -1, -1)], lambda x: F.interpolate(x[..., ::2, ::2], scale_factor=2.0),
    lambda x: F.leaky_relu(x, 0.2), lambda x: x.sort(1).values,
    lambda x: torch.einsum("nchw->nhwc", x).permute(0, 3, 1, 2),
)  # fmt: skip
BINARY: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    torch.add, torch.sub, torch.mul, torch.maximum, lambda a, b: torch.cat((a[:, :3], b[:, 3:]), 1),
    lambda a, b: a * torch.sigmoid(b), lambda a, b: torch.stack((a, b), 2).mean(2), lambda a, b: a / (b.abs() + 1),
)  # fmt: skip


class Drawn(nn.Module):
    """Layers and operators in a random graph."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=rng.choice((1, 2, 6))), nn.BatchNorm2d(6))
            for _ in range(rng.randint(0, 2))
        )
        self.head = nn.Linear(6, 4)
        self.steps = [rng.choice(("unary", "unary", "binary", "layer")) for _ in range(rng.randint(1, 7))]
        self.choices = [(rng.randrange(10**6), rng.randrange(10**6), rng.randrange(10**6)) for _ in self.steps]

    def forward(self, x: Tensor) -> Tensor:
        values = [F.relu(self.norm(self.stem(x)))]
        for step, (first, second, third) in zip(self.steps, self.choices, strict=True):
            a, b = values[first % len(values)], values[second % len(values)]
            if step == "binary":
                values.append(BINARY[third % len(BINARY)](a, b))
            elif step == "layer" and len(self.layers):
                values.append(self.layers[third % len(self.layers)](a))
            else:
                values.append(UNARY[third % len(UNARY)](a))
        return self.head((values[-1] + values[0]).mean((2, 3)))


def networks(count: int, rng: random.Random, folder: Path) -> Counter[str]:
    """Quantize drawn networks without training, save and load the student, and export it."""
    found: Counter[str] = Counter()
    for _ in range(count):
        seed = rng.randrange(2**31)
        (folder / "case").write_text(str(seed))
        found[quantized(random.Random(seed), folder)] += 1
    return found


def quantized(rng: random.Random, folder: Path) -> str:
    """How far a drawn network gets."""
    torch.manual_seed(rng.randrange(2**31))
    network = Drawn(rng)
    network(images(8))
    try:
        student = student_from(trace(network.eval(), SIZE), rng.choice(("w8a8", "w4a4", "w4a8")))
        convert_to_integers(student)
        student.preprocessing = KNOWN
        student_file.save(student, folder / "drawn", {})
    except RequestError as error:
        return one_line(error, f"refused: {str(error)[:60]}")
    student = student_file.load(folder / "drawn").eval()
    exported(student, folder)
    with torch.no_grad():
        expected = student(images(3))
    file = Engine(folder / "file.onnx", "ORT_DISABLE_ALL")(images(3))
    close = (file - expected).abs().max() <= 0.1 * expected.abs().max() + 1e-3  # a level may differ at ties
    return "exported" if close else "exported, differs"


def main(kind: str, count: int, seed: int, folder: Path) -> None:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))  # so that a case that takes too much is found
    warnings.simplefilter("ignore")
    found = {"folders": folders, "networks": networks}[kind](count, random.Random(seed), folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
