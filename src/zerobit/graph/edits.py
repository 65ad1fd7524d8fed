"""The few edits a program takes: slots in and out, an operand more, channels gone."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zerobit.errors import PlanError
from zerobit.graph.describe import bind, first_node, is_own_op, see_through
from zerobit.graph.ir import ChannelGroup, Graph
from zerobit.graph.program import Node, Program, assign, remove, slot_name
from zerobit.graph.rules import RULES, Cut, Ref

#: Functions that do nothing in evaluation, by the aten call they are captured as.
DROPOUTS = {
    f"aten.{name}.default": getattr(torch, name)
    for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
}


class ModalDropout(nn.Dropout):
    """A dropout of any form (whole channels, alpha) that knows train from eval.

    Args:
        target: the aten call it stands for.
        p: share of values that are dropped.
    """

    def __init__(self, target: str, p: float) -> None:
        super().__init__(p)
        self.target = target

    def forward(self, input: Tensor) -> Tensor:
        """The input, or with some of it dropped in training."""
        return DROPOUTS[self.target](input, self.p, self.training)


def make_dropout_modal(program: Program) -> None:
    """Turn dropout calls, frozen by an evaluation-mode capture, into modules that know train from eval.

    A dropout that is active in evaluation, too, stays as it is.
    """
    for node in list(program.code.nodes):
        if node.op == "call_function" and str(node.target) in DROPOUTS and node.args[2] is False:
            name = slot_name(f"dropout_{node.name}")
            assign(program, name, ModalDropout(str(node.target), float(node.args[1])))
            with program.code.inserting_before(node):
                new = program.code.call_module(name, (node.args[0],))
                new.meta = node.meta
            node.replace_all_uses_with(new)
            program.code.erase_node(node)
    program.changed()


def insert_source(program: Program, name: str, module: nn.Module) -> str:
    """Add a slot without operands (a gate, a shared width) in front of everything; returns its name."""
    assign(program, name, module)
    first = next(iter(program.code.nodes))
    with program.code.inserting_before(first):
        program.code.call_module(name, ())
    program.changed()
    return name


def insert_slot(program: Program, tensor: str, name: str, module: nn.Module, sources: Sequence[str] = ()) -> None:
    """Route every reader of a tensor through a slot `module(tensor, *sources)`.

    Args:
        program: edited in place.
        tensor: name of a parameter or activation, as `describe` gives it.
        name: dotted name of the slot; an existing one is reused, so that several tensors can share it.
        module: the slot.
        sources: names of slots made by `insert_source`.
    """
    if name not in dict(program.named_modules(remove_duplicate=False)):
        assign(program, name, module)
    node = _find(program, tensor)
    readers = list(node.users)
    with program.code.inserting_after(_after_sources(program, node, sources)):
        slot = program.code.call_module(name, (node, *(_slot_node(program, s) for s in sources)))
    for reader in readers:
        reader.replace_input_with(node, slot)
    program.changed()


def _after_sources(program: Program, node: Node, sources: Sequence[str]) -> Node:
    """The last of a node and the sources, so that a slot placed behind it sees them all."""
    wanted = {node, *(_slot_node(program, source) for source in sources)}
    return [n for n in program.code.nodes if n in wanted][-1]


def _slot_node(program: Program, name: str) -> Node:
    return next(n for n in program.code.nodes if n.op == "call_module" and n.target == name)


def _find(program: Program, tensor: str) -> Node:
    """The node that holds a parameter, or makes an activation."""
    for node in program.code.nodes:
        if (node.op == "get_attr" and node.target == tensor) or (node.op != "get_attr" and node.name == tensor):
            return node
    raise AssertionError(tensor)


def bypass(program: Program, op: str) -> None:
    """Take a one-input op out: its readers read its input."""
    node = _find(program, op)
    node.replace_all_uses_with(first_node(node))
    program.code.erase_node(node)
    program.changed()


def add_operand(program: Program, op: str, position: int, name: str, value: nn.Parameter) -> None:
    """Give an op a parameter it did not have (a bias, where BatchNorm was folded)."""
    assign(program, name, value)
    node = _find(program, op)
    with program.code.inserting_before(next(iter(program.code.nodes))):
        operand = program.code.get_attr(name)
    arguments = list(node.args)
    arguments += [None] * (position + 1 - len(arguments))
    arguments[position] = operand
    node.args = tuple(arguments)
    program.changed()


def strip_slots(program: Program) -> None:
    """Take all slots out again, but for dropout; what remains is the plain float network."""
    names: set[str] = set()
    for node in reversed(list(program.code.nodes)):
        if node.op == "call_module" and not is_own_op(node):
            if node.all_input_nodes:
                node.replace_all_uses_with(first_node(node))
            program.code.erase_node(node)
            names.add(str(node.target))
    for name in names:
        remove(program, name)
    drop_unused(program)


def drop_unused(program: Program) -> None:
    """Forget parameters and buffers that the code no longer reads."""
    for node in list(program.code.nodes):
        if node.op == "get_attr" and not node.users:
            program.code.erase_node(node)
    tensors = program.tensors()
    read = {id(tensors.get(str(n.target))) for n in program.code.nodes if n.op == "get_attr"}
    for name, tensor in tensors.items():
        if id(tensor) not in read:
            remove(program, name)
    program.changed()


def replace_tensor(program: Program, name: str, value: Tensor) -> None:
    """Put another tensor in the place of one, under all of its names if it is tied."""
    tensors = program.tensors()
    for other, tensor in tensors.items():
        if tensor is tensors[name]:
            assign(program, other, value)


def cut(program: Program, graph: Graph, kept: Mapping[str, Sequence[int]]) -> None:
    """Physically remove the units of each group that are not kept, in place.

    Args:
        program: without slots.
        graph: of this program, with groups.
        kept: group name -> units that stay, in ascending order; a group that is not named keeps all.

    Raises:
        PlanError: no such group or unit, nothing of a group is kept, or a unit of a frozen group is not.
    """
    keep = kept_positions(graph, kept)
    for name, tensor in program.tensors().items():
        dims = [dim for dim in range(tensor.dim()) if (name, dim) in keep]
        new = tensor.detach()
        for dim in dims:
            new = new.index_select(dim, torch.as_tensor(keep[name, dim], device=new.device))
        if dims:
            new = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
            replace_tensor(program, name, new)
    before = {**graph.parameters, **graph.shapes}
    after = {
        name: tuple(len(keep[name, d]) if (name, d) in keep else size for d, size in enumerate(shape))
        for name, shape in before.items()
    }
    sizes = Cut(before, after, keep)
    names = see_through(program)
    by_name = {name: node for node, name in names.items()}
    for node in program.code.nodes:
        rule = RULES.get(str(node.target)) if node.op == "call_function" and node.name in graph.shapes else None
        if rule is not None:
            arguments = bind(node, names)
            changed = rule.rewrite(arguments, sizes, node.name)
            if changed and str(node.target) in rule.replacement:
                _replace_call(node, rule.replacement[str(node.target)], {**arguments, **changed}, by_name)
            else:
                _set_arguments(node, changed, by_name)
    program.changed()


def kept_positions(graph: Graph, kept: Mapping[str, Sequence[int]]) -> dict[tuple[str, int], list[int]]:
    """(tensor, dim) -> positions that stay, for every dimension that loses some.

    Raises:
        PlanError: as `cut`.
    """
    _check_kept(graph, kept)
    removed: dict[tuple[str, int], set[int]] = {}
    for group in graph.groups:
        gone = sorted(set(range(group.units)) - set(kept.get(group.name, range(group.units))))
        if gone:
            for member in group.members:
                positions = removed.setdefault((member.tensor, member.dim), set())
                positions.update(member.index[gone].ravel().tolist())
    sizes = {**graph.shapes, **graph.parameters}
    return {key: [i for i in range(sizes[key[0]][key[1]]) if i not in gone] for key, gone in removed.items()}


def _check_kept(graph: Graph, kept: Mapping[str, Sequence[int]]) -> None:
    groups = {group.name: group for group in graph.groups}
    for name, units in kept.items():
        if name not in groups:
            msg = f"`kept` names a group {name!r}; this network has {sorted(groups)}; use one of these"
            raise PlanError(msg)
        _check_units(groups[name], set(units))


def _check_units(group: ChannelGroup, units: set[int]) -> None:
    if not units or not units <= set(range(group.units)):
        msg = (
            f"`kept[{group.name!r}]` is {sorted(units)}; at least one of 0..{group.units - 1} must stay; "
            "list the units that stay"
        )
        raise PlanError(msg)
    if group.frozen is not None and len(units) < group.units:
        msg = (
            f"`kept[{group.name!r}]` leaves out {sorted(set(range(group.units)) - units)}, but all units of "
            f"this group must stay: {group.frozen}; keep all {group.units}"
        )
        raise PlanError(msg)


def _set_arguments(node: Node, changed: Mapping[str, Any], by_name: Mapping[str, Node]) -> None:
    """Replace arguments of an aten call by schema name."""
    position = {arg.name: i for i, arg in enumerate(node.target._schema.arguments)}  # type: ignore[union-attr]
    for name, value in _to_nodes(changed, by_name).items():
        if position[name] < len(node.args):
            node.update_arg(position[name], value)
        else:
            node.update_kwarg(name, value)


def _replace_call(node: Node, target: str, arguments: Mapping[str, Any], by_name: Mapping[str, Node]) -> None:
    """Another aten call on those arguments that it takes."""
    overload = operator.attrgetter(target)(torch.ops)
    values = _to_nodes(arguments, by_name)
    node.target = overload
    node.args = tuple(values[argument.name] for argument in overload._schema.arguments)
    node.kwargs = {}


def _to_nodes(value: Any, by_name: Mapping[str, Node]) -> Any:
    """The value with `Ref`s turned back into nodes."""
    if isinstance(value, Ref):
        return by_name[value.name]
    if isinstance(value, (list, tuple)):
        return [_to_nodes(v, by_name) for v in value]
    return {k: _to_nodes(v, by_name) for k, v in value.items()} if isinstance(value, dict) else value
