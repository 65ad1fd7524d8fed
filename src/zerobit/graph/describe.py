"""From a program to its frozen graph; slots are seen through."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from zerobit.graph.groups import find_groups
from zerobit.graph.ir import FROZEN, Graph, Kind, Op, Shape
from zerobit.graph.normalise import bound
from zerobit.graph.program import STACK, Node, Program, map_nodes, slot_name
from zerobit.graph.rules import RULES, Arguments, Ref
from zerobit.graph.walks import record


@dataclass(frozen=True)
class _Found:
    """What is known while ops are described one by one.

    Attributes:
        shapes: of all activations.
        constants: activations that depend on parameters only.
        tuples: ops with a rule that return several tensors.
    """

    shapes: Mapping[str, Shape]
    constants: set[str] = field(default_factory=set[str])
    tuples: set[str] = field(default_factory=set[str])


def describe(program: Program) -> Graph:
    """Derive the frozen graph of a program; slots are seen through.

    Shapes come from a run, so that they are true after a cut as well.
    """
    slots = {n.name for n in program.code.nodes if n.op == "call_module" and not is_own_op(n)}
    run = record(program)
    shapes = {name: shape for name, shape in run.shapes.items() if name not in slots}
    names = see_through(program)
    tensors = program.tensors()
    found = _Found(shapes)
    ops: list[Op] = []
    for node in program.code.nodes:
        if node.op == "call_function" and node.name in shapes:
            ops.append(_describe_op(node, names, tensors, program.structure.frozen, found))
        elif is_own_op(node):
            source = names[first_node(node)]
            ops.append(Op(node.name, Kind.IDENTITY, (source,), "dropout", module_path(node)))
    inputs = tuple(n.name for n in program.code.nodes if n.op == "placeholder" and n.name in shapes)
    (output,) = (n for n in program.code.nodes if n.op == "output")
    outputs = tuple(names[n] for n in output.all_input_nodes)
    once = {id(tensor): name for name, tensor in reversed(tensors.items())}  # a tied one by its first name
    parameters = {name: tuple(t.shape) for name, t in tensors.items() if once[id(t)] == name}
    trained = frozenset(
        n for n in parameters if isinstance(tensors[n], nn.Parameter) and tensors[n].is_floating_point()
    )
    return find_groups(Graph(inputs, outputs, tuple(ops), shapes, parameters, trained=trained, batched=run.batched))


def _describe_op(
    node: Node, names: Mapping[Node, str], tensors: Mapping[str, Tensor], frozen: frozenset[str], found: _Found
) -> Op:
    shapes = found.shapes
    rule = RULES.get(str(node.target))
    operands = [names[n] for n in node.all_input_nodes if n in names]
    parameters = tuple(n for n in operands if n in tensors)
    activations = tuple(n for n in operands if n in shapes)
    op = Op(node.name, Kind.BARRIER, activations, _target(node), module_path(node), parameters=parameters)
    if frozen.intersection(parameters):
        return replace(op, reason=FROZEN)
    if op.target == "getitem" and activations and activations[0] in found.tuples:
        return replace(op, kind=Kind.FLOAT, attrs={"index": node.args[1]})
    if rule is None:
        return replace(op, reason="zerobit has no rule for this op")
    if not activations and not rule.takes_parameters:
        return replace(op, reason="it reads parameters only")
    own_shapes = {name: tuple(tensors[name].shape) for name in parameters}
    op = _computed_once(rule.read(op, bind(node, names), {**shapes, **own_shapes}), found)
    if op.kind is not Kind.BARRIER and len(node.target._schema.returns) > 1:  # type: ignore[union-attr]
        found.tuples.add(op.name)
    return op


def _computed_once(op: Op, found: _Found) -> Op:
    """The op; in float where it, or one of two operands, depends on parameters only."""
    constant = [name in found.constants for name in op.inputs]
    if all(constant):
        found.constants.add(op.name)
        return op if op.kind in (Kind.BARRIER, Kind.EMBEDDING) else replace(op, kind=Kind.FLOAT)
    mixed = op.kind in (Kind.ADD, Kind.MUL, Kind.CONCAT) and any(constant)
    return replace(op, kind=Kind.FLOAT) if mixed else op


def _target(node: Node) -> str:
    """Name of an operator; a Python function (getitem on a tuple of tensors) by its bare name."""
    return str(getattr(node.target, "__name__", "")) if "<built-in" in str(node.target) else str(node.target)


def module_path(node: Node) -> str:
    """Path of the user's module that a call comes from."""
    stack = list((node.meta.get(STACK) or {}).values())
    return str(stack[-1][0]) if stack else ""


def bind(node: Node, names: Mapping[Node, str] | None = None) -> Arguments:
    """Arguments of an aten call by schema name; nodes become `Ref`s of their names."""
    return map_nodes(bound(node), lambda n: Ref(names.get(n, n.name) if names else n.name))


def see_through(program: Program) -> dict[Node, str]:
    """Node -> name of the tensor it stands for: parameters by their own name, slots by what they wrap."""
    names: dict[Node, str] = {}
    for node in program.code.nodes:
        if node.op == "get_attr":
            names[node] = str(node.target)
        elif node.op == "call_module" and node.all_input_nodes and not is_own_op(node):
            names[node] = names[first_node(node)]
        elif not _is_choice(node):
            names[node] = node.name
    return names


def is_own_op(node: Node) -> bool:
    """Whether a module call is an op of the network (dropout) and not a slot."""
    return node.op == "call_module" and str(node.target).startswith(slot_name("dropout"))


def _is_choice(node: Node) -> bool:
    """A slot without a tensor operand: a gate or width that is drawn, not data that flows."""
    return node.op == "call_module" and not node.all_input_nodes


def first_node(node: Node) -> Node:
    """The tensor that a slot or one-input op reads."""
    return node.all_input_nodes[0]
