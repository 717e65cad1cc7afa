"""Exported files with random changes, screened and then run: ``python tests/fuzz_engine.py COUNT SEED FOLDER``.

ONNX Runtime is native code, so this runs in its own process. If the process dies, ``FOLDER/file.onnx`` is the cause.
It prints one JSON object: how many files were refused before the engine, refused by it, or run.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from helpers import SIZE, student_of

from acq.core.values import Preprocessing
from acq.errors import RequestError
from acq.export.engine import Engine
from acq.export.graph import onnx_model
from acq.files.screening import screened

NETWORKS = ("residual", "shuffle", "pools")
NUMBERS = (0, -1, 1, 2, 3, 7, 100, 2**31, -(2**31), 2**62, -(2**63))
OPERATORS = (
    "Conv", "ConvTranspose", "Relu", "MaxPool", "AveragePool", "Resize", "Gather", "Pad", "Slice", "Reshape", "Concat",
    "Gemm", "MatMul", "Clip", "QuantizeLinear", "DequantizeLinear", "GridSample", "CumSum", "Tile", "Expand", "TopK",
    "ScatterND", "GatherND", "LSTM", "Transpose", "DepthToSpace", "QLinearConv", "ConvInteger", "Col2Im", "Split",
)  # fmt: skip


def content(name: str, raw: bool) -> bytes:
    student = student_of(name).eval()
    student.preprocessing = Preprocessing(SIZE, (0.5,) * 3, (0.2,) * 3)
    return onnx_model(student, raw_images=raw).SerializeToString()


def attribute(graph: onnx.GraphProto, rng: random.Random) -> None:
    parts = [part for node in graph.node for part in node.attribute]
    part = rng.choice(parts)
    if part.ints:
        part.ints[rng.randrange(len(part.ints))] = rng.choice(NUMBERS)
    elif part.type == onnx.AttributeProto.INT:
        part.i = rng.choice(NUMBERS)
    elif part.type == onnx.AttributeProto.FLOAT:
        part.f = rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e38))


def connection(graph: onnx.GraphProto, rng: random.Random) -> None:
    names = [name for node in graph.node for name in node.output] + [tensor.name for tensor in graph.initializer]
    node = rng.choice(graph.node)
    if node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice([*names, ""])


def operator(graph: onnx.GraphProto, rng: random.Random) -> None:
    rng.choice(graph.node).op_type = rng.choice(OPERATORS)


def shape(graph: onnx.GraphProto, rng: random.Random) -> None:
    tensor = rng.choice(graph.initializer)
    tensor.dims[:] = rng.sample(list(tensor.dims), len(tensor.dims))


def values(graph: onnx.GraphProto, rng: random.Random) -> None:
    tensor = rng.choice(graph.initializer)
    if tensor.data_type == onnx.TensorProto.INT64 and tensor.raw_data:
        numbers = np.frombuffer(tensor.raw_data, np.int64).copy()
        numbers[rng.randrange(len(numbers))] = rng.choice(NUMBERS)
        tensor.raw_data = numbers.tobytes()
    elif tensor.raw_data:
        written = bytearray(tensor.raw_data)
        written[rng.randrange(len(written))] = rng.choice((0, 1, 127, 128, 255))
        tensor.raw_data = bytes(written)


def changed(whole: bytes, rng: random.Random) -> bytes:
    """The file with a few bits flipped, or with a few parts of its graph changed."""
    if rng.random() < 0.5:
        written = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            written[rng.randrange(len(written))] ^= 1 << rng.randrange(8)
        return bytes(written)
    model = onnx.load_model_from_string(whole)
    for _ in range(rng.randint(1, 3)):
        rng.choice((attribute, connection, operator, shape, values))(model.graph, rng)
    return model.SerializeToString()


def outcome(path: Path) -> str:
    try:
        screened(path)
    except RequestError:
        return "refused before an engine"
    try:
        Engine(path)(torch.zeros(2, *SIZE))
    except RequestError:
        return "refused by the engine"
    return "run"


def search(
    whole: Sequence[bytes], outcome: Callable[[Path], str], count: int, rng: random.Random, folder: Path
) -> Counter[str]:
    """What becomes of changed files, which are written as ``FOLDER/file.onnx`` one after the other.

    Args:
        whole: Contents of valid files.
        outcome: Reads a file, and names what became of it.
        count: How many changed files.
        rng: Random state of the changes.
        folder: Where the files are written.
    """
    found = Counter[str]()
    for _ in range(count):
        (folder / "file.onnx").write_bytes(changed(rng.choice(whole), rng))
        found[outcome(folder / "file.onnx")] += 1
    return found


def main(count: int, seed: int, folder: Path) -> None:
    torch.set_num_threads(1)
    whole = [content(name, raw) for name in NETWORKS for raw in (False, True)]
    print(json.dumps(search(whole, outcome, count, random.Random(seed), folder)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
