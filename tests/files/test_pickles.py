from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import functools
import io
import logging
import operator
import os
import pickle
import random
import re
import subprocess
import types
import typing
import uuid
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
import torch._weights_only_unpickler as reader_of_torch
from torch import Tensor, nn

from acq.files import foreign
from acq.files.foreign import MoreThanWeightsError
from acq.files.inert import Inert
from acq.files.pickles import scan
from acq.files.tensors import read_foreign_pickle


class Mode(enum.Enum):
    FAST = "fast"
    SLOW = 2


class Settings(dict[str, Any]):
    pass


class Ordered(collections.OrderedDict[str, Any]):
    pass


class Rows(list[Any]):
    pass


@dataclass
class Options:
    rate: float = 0.1
    data: Path = Path("/data")
    mode: Mode = Mode.FAST
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fixed:
    rate: float = 0.1


class Pair(typing.NamedTuple):
    first: int
    second: int


class Outer:
    class Inner:
        pass


class Writes:
    """Its class runs code when it is called."""

    def __init__(self, path: str = "ran") -> None:
        Path(path).touch()


def write(path: str) -> None:
    Path(path).touch()


class Loud:
    """Its class says when its code runs."""

    allowed = True

    def __new__(cls) -> Loud:
        assert cls.allowed
        return object.__new__(cls)

    def __getstate__(self) -> dict[str, int]:
        return {"a": 1}

    def __setstate__(self, state: Any) -> None:
        raise AssertionError


class Call:
    """A value whose pickle calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def attributed(tensor: Tensor) -> Tensor:
    tensor.origin = "x"  # type: ignore[attr-defined]
    return tensor


HARMLESS: list[Any] = [
    np.float64(3), np.bool_(True), np.arange(3.0), np.array(["a"]), np.array([1, "a"], dtype=object),
    np.dtype("float32"), np.random.get_state(), np.random.RandomState(0), np.random.default_rng(0),
    Path("/a/b"), PurePosixPath("x"), PureWindowsPath("c:/x"),
    datetime.datetime(2026, 1, 2), datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), datetime.timedelta(1),
    Mode.FAST, Mode.SLOW, Settings(a=1), Settings(), Ordered(a=1), Rows([1]), Options(), Fixed(), Pair(1, 2),
    collections.defaultdict(list, a=[1]), collections.defaultdict(Options, a=1), collections.deque([1], maxlen=3),
    collections.Counter("abc"), argparse.Namespace(a=Path("/x")), types.SimpleNamespace(a=1), decimal.Decimal("1"),
    fractions.Fraction(1, 2), uuid.UUID(int=3), b"abc", b"", bytearray(b"x"), frozenset([1]), {1, 2}, slice(1, 2),
    range(3), ..., Options, Outer.Inner(), nn.functional.relu, torch.sigmoid,
    functools.partial(nn.functional.relu, inplace=True), logging.getLogger("a"), re.compile("a"), random.Random(1),
    random.getstate(), int, type(None), typing.Optional[int], typing.Dict[str, typing.Any],  # noqa: UP006, UP045
    list[int], int | str, operator.itemgetter("a"), ValueError("x"), 1 << 100, 1 + 2j, torch.__version__,
    torch.float16, torch.Size([2]), attributed(torch.zeros(2)), attributed(nn.Parameter(torch.zeros(2))),
    nn.CrossEntropyLoss(), nn.ReLU().forward, torch.optim.Adam([torch.zeros(1)]),
]  # fmt: skip
HOSTILE: list[Any] = [
    Call(os.system, "touch ran"), Call(subprocess.Popen, ["touch", "ran"]), Call(eval, "open('ran', 'w')"),
    Call(exec, "open('ran', 'w')"), Call(__import__, "os"), Call(print, "x"), Call(open, "ran", "w"),
    Call(io.FileIO, "ran", "w"), Call(Path.touch, Path("ran")), Call(list, Call(map, write, ["ran"])),
    Call(set, Call(filter, write, ["ran"])), Call(functools.reduce, write, ["ran"]), Call(write, "ran"), Call(Writes),
    Call(Writes, "./ran"), Call(Call(functools.partial, write, "ran").__reduce__), Call(logging.FileHandler, "ran"),
    Call(torch.load, "ran"), Call(torch.hub.load, "ran"), Call(np.memmap, "ran"), Call(np.load, "ran"),
    Call(pickle.loads, b"x"), Call(operator.getitem, {}, "x"), collections.defaultdict(os.getpid),
    Call(bytearray, 10**12), Call(torch.FloatTensor, 10**12), Call(torch.UntypedStorage, 10**12),
    Call(torch._tensor._rebuild_from_type_v2, bytearray, torch.Tensor, (10**12,), None),
    torch.fx.symbolic_trace(nn.ReLU()),
]  # fmt: skip


def saved(value: Any, archive: bool = True) -> io.BytesIO:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old format warns that it finds no source of classes
        torch.save(value, file, _use_new_zipfile_serialization=archive)
    return file


@pytest.mark.parametrize("value", HARMLESS, ids=lambda value: type(value).__name__)
def test_a_harmless_object_beside_weights_does_not_matter(value: Any) -> None:
    """Hyper-parameters of any class, and functions that are named and not called."""
    found = read_foreign_pickle(saved({"weight": torch.arange(3.0), "beside": value, "after": 5}))
    assert torch.equal(found["weight"], torch.arange(3.0))
    assert found["after"] == 5


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: type(value).__name__)
def test_a_pickle_that_runs_code_never_reaches_torch(
    value: Any, archive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function of the system, of a library, or of the user's own code: it is refused, and nothing runs."""
    content = saved({"weight": torch.zeros(1), "beside": value}, archive)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch read it"))
    with pytest.raises(MoreThanWeightsError, match=r"^(names|calls|is a whole module)"):
        read_foreign_pickle(content)
    assert not list(tmp_path.iterdir())


def test_no_foreign_code_runs_for_objects_that_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a constructor nor ``__setstate__`` of an installed class."""
    content = saved(Loud())
    monkeypatch.setattr(Loud, "allowed", False)
    with pytest.raises(AssertionError):
        Loud()
    assert isinstance(read_foreign_pickle(content), Inert)


def test_every_name_that_torch_reads_as_itself_is_known() -> None:
    """A placeholder cannot stand for it, so the scan must decide about it."""
    names = {str(name) for name in reader_of_torch._get_allowed_globals()}
    constants = {name for name in names if foreign.is_value_of_torch(name) or name.startswith("torch.per_")}
    assert {name for name in names if not foreign.is_known_to_torch(name)} <= constants | {
        "torch.bits8", "torch.bits16", "torch.bits1x8", "torch.bits2x4", "torch.bits4x2",
    }  # fmt: skip


@pytest.mark.parametrize("copier", [b"c__builtin__\nset\n", b"ccollections\nOrderedDict\n", b"ctorch\nSize\n"])
def test_a_small_pickle_cannot_request_many_copies(copier: bytes) -> None:
    """Each call copies a list that is written once: 1,000 items by 10 bytes."""
    numbers = b"](" + b"K\x01" * 1000 + b"eq\x00"
    call = copier + b"h\x00\x85R"
    with pytest.raises(ValueError, match="copy more than it has"):
        scan(io.BytesIO(b"\x80\x02](" + numbers + call * 100 + b"e."), len(numbers) + 100 * len(call), plain=True)


def test_arrays_that_share_their_bytes_are_refused() -> None:
    """So no small file becomes many large tensors."""
    rebuild, arguments, _ = np.zeros(1).__reduce__()
    content = bytes(1000)

    class Shared:
        def __reduce__(self) -> Any:
            return rebuild, arguments, (1, (1000,), np.dtype("i1"), False, content)

    pickled = pickle.dumps([Shared() for _ in range(100)], 2)
    with pytest.raises(ValueError, match="copy more than it has"):
        scan(io.BytesIO(pickled), len(pickled), plain=False)


@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_other_protocols_are_named(protocol: int) -> None:
    """Torch reads only the one that ``torch.save`` writes by default."""
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(1)}, file, pickle_protocol=protocol)
    with pytest.raises(MoreThanWeightsError, match=r"protocol|operation"):
        read_foreign_pickle(file)


@pytest.mark.parametrize(
    "content", [b"", b"\x80", b"\x80\x02", b"\x80\x02R.", b"\x80\x02h\x07.", b"<html>", b"\x80\x02}a."]
)
def test_damaged_pickles_are_refused(content: bytes) -> None:
    """With one kind of error, whatever is missing."""
    with pytest.raises(ValueError, match=r"damaged|cut|operation"):
        scan(io.BytesIO(content), len(content), plain=False)
