"""Scan of a pickle before torch reads it: which storages it declares, and which foreign names it uses, and how.

The scan follows the pickle's operations on stand-ins and builds nothing. It is no reader: torch reads the file
afterwards with ``weights_only=True``. So an error here can refuse a good file, but cannot run code.
"""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from acq.files import foreign
from acq.files.foreign import REBUILD, MoreThanWeightsError, Name

_ITEM_BYTES = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1,
    "ComplexDouble": 16, "ComplexFloat": 8, "Untyped": 1,
}  # fmt: skip
_PROTOCOL = 2  # the only one that torch.save writes and weights_only=True reads
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CONTAINERS = {"EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_KINDS = {"numpy.dtype": "type", "builtins.bytes": "bytes", "builtins.getattr": "lookup"}


@dataclass(frozen=True)
class Storage:
    """Bytes that a pickle declares under a key."""

    key: str
    bytes: int


@dataclass
class Scan:
    """What a pickle holds.

    Attributes:
        storages: The storages that it refers to, in order.
        kinds: For each foreign name, its kind of placeholder (``acq.files.inert``).
    """

    storages: list[Storage] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)


@dataclass(eq=False)
class _Made:
    """A container, or what the call of ``by`` gives; ``size`` counts its items or bytes."""

    by: Name | None = None
    size: int = 0


def scan(pickle: IO[bytes], length: int, *, plain: bool) -> Scan:
    """Follow one pickle to its end.

    Args:
        pickle: The file, at the beginning of the pickle.
        length: Bytes of the pickle, or of the file around it: all copies that it requests must be smaller.
        plain: Refuse every foreign object.

    Raises:
        MoreThanWeightsError: It is no pickle, or it does more than to build tensors and data.
        ValueError: It is damaged, or it requests more than it has.
    """
    machine = _Machine(length, plain)
    try:
        for name, argument in _operations(pickle):
            machine.follow(name, argument)
    except (IndexError, KeyError) as error:  # of the stack and the memo
        raise ValueError("its pickle is damaged") from error
    for name in machine.unfilled.values():
        raise MoreThanWeightsError(f"calls {name}")
    return machine.found


class _Machine:
    """The stack of a pickle's operations. Numbers and text are as they are, tuples too, and all else are stand-ins."""

    def __init__(self, length: int, plain: bool) -> None:
        self.found = Scan()
        self.unfilled: dict[_Made, str] = {}  # what must still be filled, or its call could do anything
        self._left, self._plain = 2 * length, plain  # bytes are copied once for an object and once for an array
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def follow(self, name: str, argument: Any) -> None:
        """Follow one operation."""
        stack = self._stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _CONTAINERS:
            stack.append(_Made())
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[-count:] = [(*(stack[at] for at in range(-count, 0)),)]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name == "PROTO":
            if argument != _PROTOCOL:
                raise MoreThanWeightsError(f"is written in pickle protocol {argument}, not in torch.save's own")
        elif name != "STOP":
            getattr(self, f"_{name.lower()}")(argument)

    def _mark(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _tuple(self, _: Any) -> None:
        items = tuple(self._since_mark())
        self._stack.append(items)

    def _append(self, _: Any) -> None:
        self._stack.pop()
        self._fill("items", 1)

    def _appends(self, _: Any) -> None:
        self._fill("items", len(self._since_mark()))

    def _setitem(self, _: Any) -> None:
        del self._stack[-2:]
        self._fill("table", 1)

    def _setitems(self, _: Any) -> None:
        self._fill("table", len(self._since_mark()))

    def _fill(self, kind: str, count: int) -> None:
        filled = self._stack[-1]
        if isinstance(filled, _Made):
            filled.size += count
            self.unfilled.pop(filled, None)
            if filled.by is not None and filled.by.written in self.found.kinds:
                self._stand_in(filled.by, kind)

    def _global(self, argument: str) -> None:
        module, _, last = argument.partition(" ")
        module, last = NAME_MAPPING.get((module, last), (IMPORT_MAPPING.get(module, module), last))
        name = Name(f"{module}.{last}", argument.replace(" ", "."))
        self._stack.append(name)
        if foreign.is_builder(name.current) or foreign.is_value_of_torch(name.current) or _storage_kind(name.current):
            return
        if name.current in (REBUILD, "_codecs.encode") or (name.current == "builtins.bytearray" and not self._plain):
            return
        if self._plain or foreign.is_known_to_torch(name.current):
            raise MoreThanWeightsError(f"names {name.current}")
        foreign.require_harmless(name.current)
        self._stand_in(name, "array" if foreign.is_array(name.current) else _KINDS.get(name.current))

    def _stand_in(self, name: Name, kind: str | None) -> None:
        for spelling in (name.current, name.written):  # torch brings some old names up to date, and not others
            self.found.kinds[spelling] = kind or self.found.kinds.get(spelling, "object")

    def _binpersid(self, _: Any) -> None:
        self.found.storages.append(_referenced_storage(self._stack.pop()))
        self._stack.append(_Made())

    def _reduce(self, _: Any) -> None:
        arguments, called = self._stack.pop(), self._stack.pop()
        if not isinstance(called, Name):
            raise MoreThanWeightsError("calls what it has looked up or made")
        made = _Made(called)
        if self._require_call(called.current, arguments):
            self.unfilled[made] = called.current
        if called.current == "_codecs.encode":
            made.size = _size(arguments[0])
        self._stack.append(made)

    def _newobj(self, _: Any) -> None:
        arguments, kind = self._stack.pop(), self._stack.pop()
        if isinstance(kind, Name) and kind.written not in self.found.kinds:
            self._require_call(kind.current, arguments)
        self._stack.append(_Made(kind if isinstance(kind, Name) else None))

    def _build(self, _: Any) -> None:
        state, built = self._stack.pop(), self._stack[-1]
        if isinstance(built, _Made):
            self.unfilled.pop(built, None)
            if built.by is not None and foreign.is_array(built.by.current) and isinstance(state, tuple):
                self._spend(*state)  # two arrays may share their bytes

    def _require_call(self, name: str, arguments: Any) -> bool:
        """Refuse a call that runs code, or that copies or allocates more than the file has.

        Returns:
            Whether what it makes must be filled.
        """
        if not isinstance(arguments, tuple):
            raise MoreThanWeightsError(f"calls {name} with arguments in no tuple")
        if name == "_codecs.encode":
            self._spend(*arguments)
            if [type(value) for value in arguments] != [str, str] or arguments[1] != "latin1":
                raise MoreThanWeightsError("calls _codecs.encode other than pickles do for bytes")
        elif name == "builtins.bytearray":  # of a number it would allocate so many bytes
            self._spend(*arguments)
            match arguments:
                case (_Made(by=Name(current="_codecs.encode")),):
                    return False
            raise MoreThanWeightsError("calls bytearray other than pickles do")
        elif name == REBUILD:
            match arguments:
                case (Name(current=builder), Name(current="torch.Tensor" | "torch.nn.parameter.Parameter"), *_):
                    if builder in foreign.TENSOR_BUILDERS:
                        return False
            raise MoreThanWeightsError(f"calls {name} for more than plain tensors")
        elif foreign.is_builder(name):
            self._spend(*(arguments if name in foreign.COPIERS else ()))
        elif foreign.is_known_to_torch(name):
            raise MoreThanWeightsError(f"calls {name}")
        else:
            return foreign.require_harmless_call(name, arguments)
        return False

    def _spend(self, *copied: Any) -> None:
        self._left -= sum(map(_size, copied))
        if self._left < 0:
            raise ValueError("its calls copy more than it has")


def _size(value: Any) -> int:
    return value.size if isinstance(value, _Made) else len(value) if isinstance(value, str | bytes | tuple) else 0


def _referenced_storage(reference: Any) -> Storage:
    match reference:
        case ("storage", Name(current=path), str(key), _, int(count)) | (
            "storage", Name(current=path), str(key), _, int(count), None,
        ):  # torch before 1.6 has a sixth item  # fmt: skip
            kind = _storage_kind(path)
            if kind is not None and count >= 0:
                return Storage(key, count * _ITEM_BYTES[kind])
        case ("module", *_):
            raise MoreThanWeightsError("is a whole module in the format before torch 1.6")
    raise MoreThanWeightsError("refers to more than storages")


def _storage_kind(path: str) -> str | None:
    """The kind of numbers in a type of storage, such as ``Float``; None for other names."""
    module, _, name = path.rpartition(".")
    kind = name.removesuffix("Storage")
    return kind if kind != name and kind in _ITEM_BYTES and module in ("torch", "torch.cuda", "torch.storage") else None


_OPERATIONS = {
    *_LITERALS, *_CONSTANTS, *_CONTAINERS, *_TUPLES, "PROTO", "STOP", "MARK", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD",
    "BINPERSID", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "TUPLE", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT",
}  # fmt: skip


def _operations(pickle: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """The operations that torch's reader has too; after any other, torch and this scan could understand the rest
    differently."""
    try:
        for operation, argument, _ in pickletools.genops(pickle):
            if operation.name not in _OPERATIONS:
                raise MoreThanWeightsError(f"has operation {operation.name}, which torch.save never writes")
            yield operation.name, argument
    except MoreThanWeightsError:
        raise
    except ValueError as error:  # no pickle, or a cut one
        raise MoreThanWeightsError("is cut, or no file of torch.save") from error
