"""Computed weights: what depends on parameters alone is computed once, and becomes a parameter itself."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zerobit.graph.describe import module_path
from zerobit.graph.edits import drop_unused
from zerobit.graph.functional import is_random, written
from zerobit.graph.normalise import bound
from zerobit.graph.program import Node, OpOverload, Program, assign, map_nodes

#: Layers, by the beginning of their call's name; and the arguments that a layer owns.
_LAYERS = ("aten.conv", "aten.linear.", "aten.embedding.")
_OWNED = ("weight", "bias")


def fold_constants(program: Program) -> Program:
    """Replace weights that are computed from parameters and buffers alone by their values, in place.

    Weight normalisation, spectral normalisation, standardised or fused weights: a layer's weight or bias, or any
    other operand that is no larger than what it is computed from, becomes one tensor, named after the parameter
    it comes from or after its layer. It is trained in its own right from then on. What a parameter that is also
    read as it is (a tied one) gives stays computed.

    Returns:
        The program.
    """
    constants = _constants(program)
    _unite(program, constants)
    values: dict[Node, Any] = {}
    folded: list[tuple[Node, str, Tensor]] = []
    for node in constants:
        argument, sources = _owner(node, constants), _sources(node)
        if argument is None or any(user not in constants for source in sources for user in source.users):
            continue
        value = _value(node, values, program)
        if isinstance(value, Tensor) and (argument or _is_small(value, sources, program)):
            folded.append((node, _wanted_name(node, argument, sources), _own(value, sources, program)))
    operands = [_put_operand(program, node) for node, _, _ in folded]
    # Without this, fx would ask the modules of calls, and our code belongs to none.
    program.code.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    drop_unused(program)  # the names of what was computed from are free again
    for operand, (_, name, value) in zip(operands, folded, strict=True):
        operand.target = _free_name(name, program)
        assign(program, operand.target, value)
    program.changed()
    return program


def _constants(program: Program) -> dict[Node, None]:
    """Calls that read parameters, buffers and each other only, and give the same every time; in order."""
    tensors = program.tensors()
    known = {n for n in program.code.nodes if n.op == "get_attr" and str(n.target) in tensors}
    constants: dict[Node, None] = {}
    for node in program.code.nodes:
        is_call = node.op == "call_function" and not is_random(node) and written(node) is None
        if is_call and all(n in known or n in constants for n in node.all_input_nodes):
            constants[node] = None
    return constants


def _unite(program: Program, constants: dict[Node, None]) -> None:
    """Compute the same only once, so that a module that is called twice keeps one weight."""
    first: dict[str, Node] = {}
    for node in list(constants):
        same = first.setdefault(repr((str(node.target), node.args, node.kwargs)), node)
        if same is not node:
            node.replace_all_uses_with(same)
            program.code.erase_node(node)
            del constants[node]


def _owner(node: Node, constants: Mapping[Node, None]) -> str | None:
    """Under which argument a call that is no constant reads a node: weight or bias of a layer, or ""."""
    readers = [user for user in node.users if user not in constants and user.op != "output"]
    owned = [name for user in readers for name in _OWNED if _is_layer(user) and bound(user).get(name) is node]
    return (owned or [""])[0] if readers else None


def _is_layer(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and str(node.target).startswith(_LAYERS)


def _ancestors(node: Node) -> Iterator[Node]:
    """A constant and all that it is computed from, in order of need."""
    seen: dict[Node, None] = {}

    def visit(n: Node) -> None:
        if n not in seen:
            for source in n.all_input_nodes:
                visit(source)
            seen[n] = None

    visit(node)
    yield from seen


def _sources(node: Node) -> list[Node]:
    return [n for n in _ancestors(node) if n.op == "get_attr"]


def _value(node: Node, values: dict[Node, Any], program: Program) -> Any:
    tensors = program.tensors()
    with torch.no_grad():
        for n in _ancestors(node):
            if n not in values:
                args, kwargs = _filled((n.args, n.kwargs), values)
                values[n] = tensors[str(n.target)] if n.op == "get_attr" else n.target(*args, **kwargs)  # type: ignore[operator]
    return values[node]


def _filled(arguments: Any, values: Mapping[Node, Any]) -> Any:
    return map_nodes(arguments, values.__getitem__)


def _is_small(value: Tensor, sources: list[Node], program: Program) -> bool:
    tensors = program.tensors()
    return value.is_floating_point() and value.numel() <= sum(tensors[str(n.target)].numel() for n in sources)


def _own(value: Tensor, sources: list[Node], program: Program) -> Tensor:
    """A parameter if it is computed from one, else a buffer."""
    tensors = program.tensors()
    parameters = [t for n in sources if isinstance(t := tensors[str(n.target)], nn.Parameter)]
    new = value.detach().clone(memory_format=torch.contiguous_format)
    if not parameters or not new.is_floating_point():
        return new
    return nn.Parameter(new, any(p.requires_grad for p in parameters))


def _wanted_name(node: Node, argument: str, sources: list[Node]) -> str:
    """That of the only source; else the layer's own name for the argument; else that of the first source."""
    names = [str(n.target) for n in sources]
    if len(names) == 1 or not argument:
        return names[0] if names else f"{module_path(node)}.constant".lstrip(".")
    (reader, *_) = (user for user in node.users if _is_layer(user))
    return f"{module_path(reader)}.{argument}".lstrip(".")


def _free_name(name: str, program: Program) -> str:
    """The name, with as many underscores as it takes for no tensor or module to bear it."""
    taken = {*program.tensors(), *(path for path, _ in program.named_modules())}
    while name in taken:
        name += "_"
    return name


def _put_operand(program: Program, node: Node) -> Node:
    """Let the readers of a call read a tensor instead, whose name is still to come."""
    with program.code.inserting_before(next(iter(program.code.nodes))):
        operand = program.code.get_attr("")
    node.replace_all_uses_with(operand)
    return operand
