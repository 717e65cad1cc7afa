"""Which names of a pickle are harmless: what torch may call, what placeholders may stand for, and what is refused.

A pickle names functions and classes, and calls some of them. Torch is allowed to call those that build plain tensors
and containers. Any other name gets a placeholder that does nothing (``acq.files.inert``). A file is refused if it calls
a function whose work is unknown, because such a file was made to run code.
"""

from __future__ import annotations

import builtins
import re
import sys
from dataclasses import dataclass
from typing import Any

import torch

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_WORD = re.compile(r"[\w+-][\w+.-]{0,63}")  # an enum's value; no path, address or command

_OF_TORCH = ("torch.cuda", "torch.sparse", "torch.cuda.sparse", "torch.storage", "torch._utils")
_CHECKED = ("_codecs.encode", "builtins.bytearray")  # harmless only with the right arguments
REBUILD = "torch._tensor._rebuild_from_type_v2"  # calls its first argument

# torch calls these itself; excluded are bytearray(n), legacy constructors, and tensors that are sparse, nested,
# quantized or on the meta device
TENSOR_BUILDERS = {
    *(f"torch._utils._rebuild_{kind}" for kind in ("tensor", "tensor_v2", "tensor_v3", "parameter")),
    "torch._utils._rebuild_parameter_with_state",
}  # fmt: skip
COPIERS = {"collections.OrderedDict", "collections.Counter", "builtins.set", "torch.Size"}  # copy what they are given
_BUILDERS = {
    *TENSOR_BUILDERS, *COPIERS, "torch.device", "torch.nn.parameter.Parameter", "torch.serialization._get_layout",
    "builtins.complex",
}  # fmt: skip

_ARRAYS = {f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")}
# a placeholder stands for these; the real ones only hold what they are given
_HOLDERS = {
    *_ARRAYS, "numpy.dtype", *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),
    *(f"numpy.random._pickle.__{kind}_ctor" for kind in ("randomstate", "generator", "bit_generator")),
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
    *(f"{module}.{kind}Path" for module in ("pathlib", "pathlib._local")
      for kind in ("", "Pure", "Posix", "PurePosix", "Windows", "PureWindows")),
    *(f"datetime.{kind}" for kind in ("datetime", "date", "time", "timedelta", "timezone")),
    *(f"builtins.{kind}" for kind in ("frozenset", "slice", "range", "bytes", "list", "tuple", "dict", "type", "int",
                                      "float", "str", "bool", "object")),
    "collections.deque", "collections.defaultdict", "argparse.Namespace", "types.SimpleNamespace", "types.GenericAlias",
    "uuid.UUID", "decimal.Decimal", "fractions.Fraction", "functools.partial", "operator.itemgetter",
    "operator.attrgetter", "random.Random", "re._compile", "logging.getLogger", "copyreg._reconstructor",
    "torch.torch_version.TorchVersion",
}  # fmt: skip
# modules that reach the system or run code: no checkpoint has a reason to name them
_SYSTEM = {
    "os", "posix", "nt", "sys", "subprocess", "importlib", "runpy", "pty", "ctypes", "shutil", "socket", "code",
    "codeop", "pickle", "_pickle", "marshal", "webbrowser", "pip", "setuptools",
}  # fmt: skip


@dataclass(eq=False)
class Name:
    """A function or class in a pickle.

    Attributes:
        current: Its name in current versions of Python.
        written: Its name in the file, which may be one of Python 2.
    """

    current: str
    written: str


class MoreThanWeightsError(ValueError):
    """The file is no pickle, or the pickle does more than to build weights and data; the message says what."""


def is_builder(name: str) -> bool:
    """Return whether torch may call this function itself: it builds plain tensors, or containers of what it gets."""
    return name in _BUILDERS


def is_array(name: str) -> bool:
    """Return whether the name makes an array of numpy."""
    return name in _ARRAYS


def is_known_to_torch(name: str) -> bool:
    """Return whether torch may read this name as itself, so that no placeholder can stand for it."""
    module, _, last = name.rpartition(".")
    is_class = module == "torch" and last.endswith(("Tensor", "Storage"))
    return is_class or module in _OF_TORCH or is_builder(name) or name in (*_CHECKED, REBUILD)


def is_value_of_torch(name: str) -> bool:
    """Return whether the name is a constant of torch: a dtype, or the class of tensors, which must not be called."""
    module, _, last = name.rpartition(".")
    return module == "torch" and (last == "Tensor" or isinstance(vars(torch).get(last), torch.dtype))


def require_harmless(name: str) -> None:
    """Refuse a name that only code would need, even if it is never called.

    Raises:
        MoreThanWeightsError: It is no plain name, or it reaches the system.
    """
    top, _, rest = name.partition(".")
    is_function = top == "builtins" and rest != "getattr" and not _is_class_or_constant(rest)
    if not _NAME.fullmatch(name):
        raise MoreThanWeightsError("names something that is no function or class")
    if top in _SYSTEM or is_function:
        raise MoreThanWeightsError(f"names {name}")


def require_harmless_call(name: str, arguments: tuple[Any, ...]) -> bool:
    """Refuse the call of a foreign function or class, unless it only holds data.

    Args:
        name: What is called.
        arguments: Numbers and text as they are, functions and classes as ``Name``, other values in any form.

    Returns:
        Whether the call is harmless only if what it makes is filled afterwards, as pickles do for containers.

    Raises:
        MoreThanWeightsError: Nobody can tell what the call would do.
    """
    if name in _HOLDERS or _is_exception(name) or name == "builtins.getattr" or _is_type(name, arguments):
        return False
    package, last = name.split(".")[0], name.rpartition(".")[2].lstrip("_")
    if not last[:1].isupper() or package in sys.stdlib_module_names or package == "numpy":
        raise MoreThanWeightsError(f"calls {name}")  # no class of another package
    if not all(isinstance(argument, Name) for argument in arguments):
        _require_member(name, arguments)
        return False
    return True


def _is_class_or_constant(name: str) -> bool:
    found = vars(builtins).get(name)
    return isinstance(found, type) or found in (..., NotImplemented)


def _is_exception(name: str) -> bool:
    top, _, last = name.partition(".")
    found = vars(builtins).get(last)
    return top == "builtins" and isinstance(found, type) and issubclass(found, BaseException)


def _is_type(name: str, arguments: tuple[Any, ...]) -> bool:
    """Whether this makes a type of others, such as ``Optional[int]`` or ``int | str``."""
    first = arguments[0].current if arguments and isinstance(arguments[0], Name) else ""
    return (name == "_operator.getitem" and first.startswith("typing.")) or (
        name == "functools.reduce" and first == "_operator.or_"
    )


def _require_member(name: str, arguments: tuple[Any, ...]) -> None:
    """Refuse a call that does not look like a member of an enum, which has one number or word."""
    match arguments:
        case (int(),):
            return
        case (str(word),) if _WORD.fullmatch(word):
            return
    raise MoreThanWeightsError(f"calls {name}")
