"""What shares memory: layers with tensors in common, results that are views of others."""

from collections import defaultdict

from torch import fx, nn

from rni_pl.pruning import kinds

# Functions and methods whose result is certain to be new.
FRESH = (
    kinds.ARITHMETIC | kinds.EXTREMA | kinds.JOINS | kinds.POOLING | kinds.REDUCTIONS
    | (kinds.ACTIVATIONS - kinds.DROPPING)
)  # fmt: skip


def sharing_tensors(modules: dict[str, nn.Module]) -> set[str]:
    """Layers that have a parameter or a buffer in common with another module."""
    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in modules.items():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and tensor.ndim:
                owners[id(tensor)].append(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}


def read_elsewhere(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether what an in-place operation changes is read after it other than through its result."""
    changed = node.args[0]
    earlier, later = _before_and_after(node)
    shared = {changed}
    while True:  # views of views, and what they are views of
        grown = set(shared)
        for other in earlier:
            family = {other, *other.all_input_nodes}
            if family & shared and _may_share(other, modules):
                grown |= family
        if grown == shared:
            break
        shared = grown
    readers = {user for n in shared - {changed} if isinstance(n, fx.Node) for user in n.users}
    return any(user in later and not _asks_for_size(user) for user in readers)


def _before_and_after(node: fx.Node) -> tuple[list[fx.Node], set[fx.Node]]:
    nodes = list(node.graph.nodes)
    place = nodes.index(node)
    return nodes[:place], set(nodes[place + 1 :])


def _may_share(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a result may be its argument, or a part of it."""
    if node.op == "call_module":
        layer = modules[str(node.target)]
        if isinstance(layer, (*kinds.WITH_CHANNELS, *kinds.POOLING_LAYERS)):
            return False
        drops = "Dropout" in type(layer).__name__
        elementwise = isinstance(layer, kinds.ELEMENTWISE_LAYERS)
        return not elementwise or drops or bool(getattr(layer, "inplace", False))
    if kinds.is_in_place(node) or kinds.name_of(node) not in FRESH:
        return not _asks_for_size(node)
    return any(value is True for value in (*node.args, node.kwargs.get("inplace")))


def _asks_for_size(node: fx.Node) -> bool:
    if kinds.name_of(node) == "getattr":
        return node.args[1] in ("shape", "ndim", "dtype", "device")
    return kinds.name_of(node) in kinds.QUERIES - {"getattr", "getitem"}
