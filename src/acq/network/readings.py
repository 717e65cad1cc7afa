"""How a traced graph's arithmetic reads: numbers, products, polynomials and bounds, however they are written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import fx

from acq.network.constants import constant, shape_of
from acq.network.operators import (
    DIFFERENCES,
    PRODUCTS,
    QUOTIENTS,
    RELU,
    REVERSED_DIFFERENCES,
    SUMS,
    is_float,
    operator_of,
    sole_user,
)

_NEGATE, _POWER = "aten.neg.default", "aten.pow.Tensor_Scalar"
_LINEAR_TERMS = (*SUMS, *DIFFERENCES, *REVERSED_DIFFERENCES)
_DEPTH, _DEGREE = 12, 3  # operators that are read within each other, and the highest power of a polynomial
_CLOSE = 1e-4  # constants are written with few digits


@dataclass(frozen=True)
class Whole:
    """A whole operator with its arguments, in place of the nodes that compute it in pieces."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Product:
    """A number times other nodes, in order of their places."""

    number: float
    factors: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Bounded:
    """A node between two bounds, either of which may be infinite."""

    source: fx.Node
    low: float
    high: float


Polynomial = dict[int, float]  # coefficients by power


class Reader:
    """Reads the nodes of one graph.

    Args:
        graph: The traced network, for its constants.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph

    def number(self, value: Any) -> float | None:
        """An argument as a number: one itself, or a constant of one value; None for any other."""
        if isinstance(value, int | float):
            return float(value)
        tensor = constant(self.graph, value)
        return float(tensor) if tensor is not None and tensor.numel() == 1 and tensor.is_floating_point() else None

    def product(self, node: fx.Node, depth: int = _DEPTH) -> Product:
        """A node as a number times other nodes, through products that nothing else reads."""
        name = operator_of(node) if node.op == "call_function" else ""
        if name == _NEGATE and depth:
            return self._times(-1.0, node.args[0], depth - 1)
        if name not in (*PRODUCTS, *QUOTIENTS) or len(node.args) < 2 or not depth:
            return Product(1.0, (node,))
        left, right = node.args[:2]
        if name in QUOTIENTS:
            divisor = self.number(right)
            return self._times(1 / divisor, left, depth - 1) if divisor else Product(1.0, (node,))
        found = [self._factor(value, depth - 1) for value in (left, right)]
        return Product(math.prod(each.number for each in found), tuple(f for each in found for f in each.factors))

    def polynomial(self, node: fx.Node, variable: fx.Node, depth: int = _DEPTH) -> Polynomial | None:
        """A node as a polynomial of another one, of the third degree at most; None where it is none."""
        if node is variable:
            return {1: 1.0}
        if not depth or node.op != "call_function" or not node.args:
            return None
        name = operator_of(node)
        terms = [self._term(value, variable, depth - 1) for value in node.args[:2]]
        first = terms[0]
        if first is None:
            return None
        if name == _NEGATE:
            return _scaled(first, -1.0)
        if name == _POWER:
            exponent = node.args[1]
            return _power(first, int(exponent)) if exponent in (2, 3) else None  # type: ignore[arg-type]
        second = terms[1] if len(terms) > 1 else None
        if second is None:
            return None
        if name in PRODUCTS:
            return _multiplied(first, second)
        if name in QUOTIENTS:
            divisor = second.get(0) if set(second) == {0} else None
            return _scaled(first, 1 / divisor) if divisor else None
        if name not in _LINEAR_TERMS:
            return None
        alpha = float(node.args[2] if len(node.args) > 2 else node.kwargs.get("alpha", 1))  # type: ignore[arg-type]
        if name in SUMS:
            return _summed(first, _scaled(second, alpha))
        if name in DIFFERENCES:
            return _summed(first, _scaled(second, -alpha))
        return _summed(second, _scaled(first, -alpha))

    def bounded(self, node: fx.Node) -> Bounded | None:
        """A node as another one between bounds, through several bounds one after the other."""
        low, high, source = -math.inf, math.inf, node
        while (bounds := self._bounds(source)) is not None:
            inner: Any = source.args[0]
            below, above = bounds
            # the inner bounds come first, so the outer ones bound them
            low, high, source = min(max(low, below), high), max(min(high, above), low), inner
        return None if source is node else Bounded(source, low, high)

    def base(self, node: fx.Node) -> fx.Node:
        """What a node is computed from by sums and products with numbers alone."""
        while node.op == "call_function" and operator_of(node) in (*_LINEAR_TERMS, *PRODUCTS, *QUOTIENTS):
            others = [value for value in node.args[:2] if self.number(value) is None]
            if len(others) != 1 or not isinstance(others[0], fx.Node):
                break
            node = others[0]
        return node

    def _times(self, number: float, value: Any, depth: int) -> Product:
        found = self._factor(value, depth)
        return Product(number * found.number, found.factors)

    def _factor(self, value: Any, depth: int) -> Product:
        number = self.number(value)
        if number is not None:
            return Product(number, ())
        assert isinstance(value, fx.Node)
        return self.product(value, depth) if sole_user(value) is not None else Product(1.0, (value,))

    def _term(self, value: Any, variable: fx.Node, depth: int) -> Polynomial | None:
        number = self.number(value)
        if number is not None:
            return {0: number}
        return self.polynomial(value, variable, depth) if isinstance(value, fx.Node) else None

    def _bounds(self, node: fx.Node) -> tuple[float, float] | None:
        name = operator_of(node) if node.op == "call_function" else ""
        if name == RELU:
            return 0.0, math.inf
        if name == "aten.relu6.default":
            return 0.0, 6.0
        defaults = {
            "aten.hardtanh.default": (-1.0, 1.0), "aten.clamp.default": (None, None),
            "aten.clamp_min.default": (None,), "aten.clamp_max.default": (None,),
        }.get(name)  # fmt: skip
        if defaults is None:
            return None
        given = [node.args[place] if len(node.args) > place else default for place, default in enumerate(defaults, 1)]
        keyword = {"min": 0, "max": 1, "min_val": 0, "max_val": 1}
        for key, value in node.kwargs.items():
            given[keyword.get(key, 0) % len(given)] = value
        numbers = [None if value is None else self.number(value) for value in given]
        if any(number is None and value is not None for number, value in zip(numbers, given, strict=True)):
            return None
        if len(numbers) == 1:
            numbers = [numbers[0], None] if name.endswith("min.default") else [None, numbers[0]]
        low, high = numbers
        return -math.inf if low is None else low, math.inf if high is None else high


def close(found: Polynomial, wanted: Polynomial) -> bool:
    """Whether two polynomials are equal but for the digits of their coefficients."""
    powers = found.keys() | wanted.keys()
    return all(math.isclose(found.get(n, 0), wanted.get(n, 0), rel_tol=_CLOSE, abs_tol=_CLOSE**2) for n in powers)


def is_number(found: float, wanted: float) -> bool:
    """Whether a number is another one but for its digits."""
    return close({0: found}, {0: wanted})


def same_shape(first: fx.Node, second: fx.Node) -> bool:
    """Whether two nodes hold floats of one shape."""
    return is_float(first) and is_float(second) and shape_of(first) == shape_of(second)


def _scaled(terms: Polynomial, number: float) -> Polynomial:
    return {power: number * value for power, value in terms.items()}


def _summed(one: Polynomial, other: Polynomial) -> Polynomial:
    return {power: one.get(power, 0.0) + other.get(power, 0.0) for power in one.keys() | other.keys()}


def _multiplied(one: Polynomial, other: Polynomial) -> Polynomial | None:
    found: Polynomial = {}
    for power, value in one.items():
        for more, factor in other.items():
            found[power + more] = found.get(power + more, 0.0) + value * factor
    return found if max(found) <= _DEGREE else None


def _power(terms: Polynomial, exponent: int) -> Polynomial | None:
    found: Polynomial | None = {0: 1.0}
    for _ in range(exponent):
        found = None if found is None else _multiplied(found, terms)
    return found
