"""Names of nodes as the owner of the network knows them: ``layer3.2.conv2``, ``layer1.0.add``."""

from __future__ import annotations

from collections import Counter

from torch import fx

_IMAGE = "image"
# modules of torch itself, and nodes of ONNX files: most have one operator, so the module's name is enough
_LEAVES = ("torch.nn.modules.", "acq.zoo.onnx.network.Operation")
_CONTAINERS = "torch.nn.modules.container"
_WEIGHT = ".weight"
_NOWHERE = "_empty_nn_module_stack"  # torch's own mark for nodes that it added itself


def name_of(node: fx.Node) -> str:
    """The public name of a node, unique in its graph.

    Plans, reports, settings and files use this name. ``node.name`` is torch's own and never shown.
    """
    name: str = node.meta["name"]
    return name


def assign_names(graph: fx.Graph) -> None:
    """Give every node of a traced graph its public name.

    A layer has the name of the module that owns its weight. Another operator has the name of its module of
    ``torch.nn``, if that has no other operators, or the name of the block that calls it and the operator:
    ``layer1.0.add``. A name that is taken gets a number: ``layer1.0.relu_2``. Layers choose first, because settings
    name them.
    """
    taken: set[str] = set()
    kinds = {(module_of(node)[0], packet_of(node)) for node in graph.nodes if _is_operator(node)}
    counts = Counter(path for path, _ in kinds)
    for node in sorted(graph.nodes, key=lambda node: not _owner(node)):
        wanted = name = _owner(node) or _wanted(node, alone=counts[module_of(node)[0]] <= 1)
        count = 1
        while name in taken:
            count += 1
            name = f"{wanted}_{count}"
        taken.add(name)
        node.meta["name"] = name


def _owner(node: fx.Node) -> str:
    """The module that owns the weight of a layer; empty for other nodes."""
    if node.op != "call_function" or packet_of(node) not in ("conv2d", "linear"):
        return ""
    weight = node.args[1]
    owner = str(weight.target) if isinstance(weight, fx.Node) and weight.op == "get_attr" else ""
    return owner.removesuffix(_WEIGHT) if owner.endswith(_WEIGHT) else ""


def _is_operator(node: fx.Node) -> bool:
    """Whether a node computes something; sizes and items of tuples only serve others."""
    return node.op == "call_function" and packet_of(node) not in ("getitem", "sym_size")


def _wanted(node: fx.Node, alone: bool) -> str:
    if node.op == "placeholder":
        return _IMAGE
    if node.op != "call_function":
        return str(node.target)
    path, kind = module_of(node)
    operator = packet_of(node)
    if alone and path and kind.startswith(_LEAVES) and not kind.startswith(_CONTAINERS):
        return path
    return f"{path}.{operator}" if path else operator


def module_of(node: fx.Node) -> tuple[str, str]:
    """Path and type of the innermost module that calls the node; empty where torch does not say."""
    stack = node.meta.get("nn_module_stack") or {}
    found = [entry for entry in stack.values() if isinstance(entry, tuple) and not entry[0].startswith(_NOWHERE)]
    if not found:
        return "", ""
    path, kind = found[-1]
    return str(path).partition("@")[0], kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def packet_of(node: fx.Node) -> str:
    """The name of a node's operator without its overload, such as ``relu``."""
    name = str(node.target)
    return name.split(".")[1] if name.startswith("aten.") else str(getattr(node.target, "__name__", name))
