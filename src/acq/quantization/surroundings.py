"""What the graph around each tensor says of it: the bits that its consumers want, and what it belongs to.

These are the planner's second pass. ``acq.quantization.plan`` uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import fx

from acq.network.constants import shape_of
from acq.network.operators import Role, float_inputs
from acq.quantization.formats import FULL_BITS, NumberFormat
from acq.quantization.roles import LAYERS, WEIGHTED, Roles

_IMAGE_DIMENSIONS = 4  # [N, C, H, W]


def wanted_bits(roles: Roles, format: NumberFormat) -> dict[fx.Node, int]:
    """Second pass, backwards: the most bits that a consumer of each node wants, also behind operators that move."""
    wanted: dict[fx.Node, int] = {}
    if format.weights_alone:
        return wanted
    for node in reversed(roles.nodes):
        users = [user for user in node.users if roles.of(user) not in (Role.SHAPE, Role.CONSTANT)]
        widths = [wanted[user] if roles.keeps_levels(user) else input_bits(roles, user, format) for user in users]
        wanted[node] = max(widths, default=format.multiplied)
    return wanted


def input_bits(roles: Roles, node: fx.Node, format: NumberFormat) -> int:
    """The bits in which an operator takes its inputs if they have as many."""
    role, inputs = roles.of(node), float_inputs(node)
    if role in (Role.RESCALE, Role.FLOAT) or (role in (Role.ADD, Role.PRODUCT) and _takes_number(node)):
        return FULL_BITS  # what no multiplication of integers needs narrow is rounded once, behind it
    if role == Role.NONLINEARITY or (role == Role.PRODUCT and any(map(roles.is_gate_of_own_input, inputs))):
        return max(format.nonlinearity, format.multiplied)
    if role == Role.ADD:
        return max(format.add or 0, format.multiplied)
    return format.multiplied


def _takes_number(node: fx.Node) -> bool:
    return not all(isinstance(value, fx.Node) for value in node.args[:2])


def unquantized_logits(roles: Roles) -> set[fx.Node]:
    """The output and the nodes it is moved or joined from, back to the operators that compute the scores."""
    found: set[fx.Node] = set()

    def ends_in_logits(user: fx.Node) -> bool:
        moves = roles.of(user) in (Role.MOVE, Role.CONCAT, Role.NONLINEARITY, Role.FLOAT) and user not in roles.kept
        return user.op == "output" or (user in found and moves)

    for node in reversed(roles.nodes):
        if node.users and all(map(ends_in_logits, node.users)):
            found.add(node)
    return found


def images_of(roles: Roles) -> set[fx.Node]:
    """The image, and what is computed from it alone before the first layer: normalised, or resampled in float."""
    found: set[fx.Node] = set()
    for node in roles.nodes:
        role, inputs = roles.of(node), [value for value in float_inputs(node) if value not in roles.tables]
        from_images = bool(inputs) and (inputs[0] in found if role == Role.FLOAT else found.issuperset(inputs))
        is_image = from_images and role not in LAYERS and len(shape_of(node)) == _IMAGE_DIMENSIONS
        if role == Role.IMAGE or (is_image and node not in roles.kept):
            found.add(node)
    return found


def read_in_float(roles: Roles) -> set[fx.Node]:
    """The nodes whose values only operators in floating point read, directly or through operators without weights."""
    found: set[fx.Node] = set()
    for node in reversed(roles.nodes):
        users = [user for user in node.users if roles.of(user) != Role.SHAPE]

        def reads_floats(user: fx.Node) -> bool:
            return roles.of(user) == Role.FLOAT or (user in found and roles.of(user) not in (*WEIGHTED, Role.FOLD))

        if users and all(map(reads_floats, users)):
            found.add(node)
    return found


def read_by_layers(roles: Roles) -> set[fx.Node]:
    """The nodes whose values layers alone read, directly or through what moves values."""
    found: set[fx.Node] = set()
    for node in reversed(roles.nodes):
        users = [user for user in node.users if roles.of(user) != Role.SHAPE]
        if users and all(roles.of(user) in LAYERS or (user in found and roles.of(user) == Role.MOVE) for user in users):
            found.add(node)
    return found


def reached(roles: Roles, nodes: Iterable[fx.Node], neighbours: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    """The nodes that reach a layer through their neighbours, which come first in ``nodes``."""
    found: set[fx.Node] = set()
    for node in nodes:
        if any(near in roles.layers or near in found for near in neighbours(node)):
            found.add(node)
    return found
