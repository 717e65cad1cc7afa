"""The line that a user reads where a node of a file cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from acq.errors import RequestError, first_line, short
from acq.zoo.onnx.registry import Node
from acq.zoo.onnx.values import UnreadError


@contextmanager
def refused(node: Node) -> Iterator[None]:
    """Turn any error within the block into one about the node, with the way out.

    Raises:
        RequestError: There was one.
    """
    try:
        yield
    except RequestError:
        raise
    except UnreadError as error:
        raise RequestError(f"{label(node)} {error}; {way_out(node)}") from error
    except Exception as error:  # a stranger's attributes and sizes may cause any
        reason = first_line(error, typed=True)
        raise RequestError(f"{label(node)} cannot be computed ({reason}); {way_out(node)}") from error


def label(node: Node) -> str:
    """A node as messages name it, in one line whatever its file says."""
    name, kind = node.name or next(iter(node.outputs), ""), short(node.kind)[1:-1]
    return f"{kind} (node {short(name)})"


def way_out(node: Node) -> str:
    """How a node is left out."""
    if node.cut:
        return f"cut the graph before it with --outputs {short(node.cut)}"
    return "nothing before it can be named as --outputs, so export the network without it"
