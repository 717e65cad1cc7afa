"""Foreign ONNX files with random changes, imported as networks: ``python tests/fuzz_imports.py COUNT SEED FOLDER``.

ONNX Runtime is native code, so this runs in its own process, with a limit to its memory. If the process dies,
``FOLDER/file.onnx`` is the cause. It prints one JSON object: how many files were refused, and how many imported.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from fuzz_engine import search
from helpers import SIZE, network
from onnx import TensorProto, helper
from onnx_files import exported, model_of

from acq.errors import RequestError
from acq.zoo import resolve

NETWORKS = ("shuffle", "relu6", "pools", "squeeze-excite")
MEMORY = 12 << 30


def sizes() -> onnx.ModelProto:
    """A network that computes with its sizes, and moves values in many ways."""
    lines = """
        Shape: x -> shape
        Gather: shape two -> height
        Unsqueeze: height zero -> heights
        Concat: heights heights -> sides
        Range: none height one -> places
        Cast: places -> floats
        ConstantOfShape: sides -> blank
        Pad: x pads -> padded
        Slice: padded begins ends axes steps -> cut
        Resize: cut nothing scales -> large
        Tile: large repeats -> tiled
        Expand: floats wide -> spread
        Add: tiled spread -> sum
        TopK: sum one1 -> best places2
        Where: mask best blank0 -> chosen
        Reshape: chosen rows -> table
        CumSum: table one -> running
        MatMul: running weight -> product
        Add: product bias -> shifted
        ReduceSum: shifted last -> y"""
    nodes = []
    for line in lines.strip().splitlines():
        kind, _, rest = line.strip().partition(": ")
        inputs, _, outputs = rest.partition(" -> ")
        more = {"axis": 0} if kind == "Concat" else {"to": 1} if kind == "Cast" else {}
        more |= {"keepdims": 0} if kind == "ReduceSum" else {}
        names = ["" if name == "nothing" else name for name in inputs.split()]
        nodes.append(helper.make_node(kind, names, outputs.split(), **more))
    rng = np.random.default_rng(0)
    constants = {
        "zero": [0], "one": np.array(1), "none": np.array(0), "two": np.array(2), "pads": [0, 0, 1, 1, 0, 0, 1, 1],
        "begins": [1, -1], "ends": [17, -(2**63)], "axes": [2, 3], "steps": [1, -1],
        "scales": np.array([1, 1, 1, 16 / 18], np.float32), "repeats": [1, 1, 1, 1], "wide": [3, 16, 1],
        "one1": [4],
        "mask": np.array([True, False, True, True]), "blank0": rng.standard_normal((3, 16, 4)), "rows": [0, -1, 12],
        "weight": rng.standard_normal((12, 5)), "bias": rng.standard_normal(5), "last": [1],
    }  # fmt: skip
    return model_of(nodes, ("n", *SIZE), constants)


def short_and_turned() -> onnx.ModelProto:
    """A network in 16 bits whose images have their channels last."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["turned"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["turned", "w"], ["cells"]),
        helper.make_node("GlobalAveragePool", ["cells"], ["means"]),
        helper.make_node("Flatten", ["means"], ["y"]),
    ]
    weight = np.random.default_rng(0).standard_normal((5, 3, 3, 3)).astype(np.float16)
    return model_of(nodes, (4, *SIZE[1:], 3), {"w": weight}, kind=TensorProto.FLOAT16)


def outcome(path: Path) -> str:
    """What becomes of a file as a whole, and of its first half, behind which the rest is put back."""
    found = {tried(path, ()), tried(path, middle(path))}
    return max(found, key=["refused", "imported", "refused in several lines"].index)


def tried(path: Path, outputs: tuple[str, ...]) -> str:
    try:
        resolve(str(path), outputs=outputs)
    except RequestError as error:
        return "refused" if "\n" not in str(error) else "refused in several lines"
    return "imported"


def middle(path: Path) -> tuple[str, ...]:
    """The name of a value in the middle of a graph; none where the file cannot be read."""
    try:
        nodes = onnx.load(path, load_external_data=False).graph.node
        return tuple(nodes[len(nodes) // 2].output[:1])
    except Exception:  # errors of native code
        return ()


def main(count: int, seed: int, folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    whole = [sizes().SerializeToString(), short_and_turned().SerializeToString()]
    for name in NETWORKS:
        file = exported(network(name), folder / "own.onnx", SIZE, dynamo=False, folded=False, free=name != "shuffle")
        whole.append(file.read_bytes())
    for content in whole:
        (folder / "file.onnx").write_bytes(content)
        assert outcome(folder / "file.onnx") == "imported"
    print(json.dumps(search(whole, outcome, count, random.Random(seed), folder)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
