"""A part of a program as a module of its own: some of its ops, from tensors that it reads to tensors that it makes."""

import operator
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zerobit.graph.describe import first_node, see_through
from zerobit.graph.ir import Rows, Shape
from zerobit.graph.program import Node, Program, empty_code, fetch, graph_module, map_nodes
from zerobit.graph.rows import from_rows


class Part(nn.Module):
    """Some ops of a program.

    Args:
        body: takes tensors and weights, returns a tuple of tensors.
        layouts: shape and rows of each weight.
    """

    def __init__(self, body: nn.Module, layouts: Sequence[tuple[Shape, Rows]]) -> None:
        super().__init__()
        self.body, self.layouts = body, tuple(layouts)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Run the ops.

        Args:
            values: the tensors read, then the weights, [O, K] each.

        Returns:
            The tensors made.
        """
        count = len(values) - len(self.layouts)
        weights = (
            from_rows(flat, flat.new_empty(shape), rows)
            for flat, (shape, rows) in zip(values[count:], self.layouts, strict=True)
        )
        return self.body(*values[:count], *weights)


def extract(
    program: Program,
    ops: Collection[str],
    inputs: Sequence[str],
    outputs: Sequence[str],
    weights: Mapping[str, tuple[Shape, Rows]],
) -> Part:
    """Copy some ops of a program into a module. Slots are seen through; sizes that the ops use are copied too.

    Args:
        program: left as it is; its tensors are copied, floating ones as float32.
        ops: names of the ops.
        inputs: names of the activations that the part takes, which no op of it makes.
        outputs: names of the activations that it returns.
        weights: parameters that it takes as arguments, by name, with their shape and rows.
    """
    copy = _Copy(program, ops, (*inputs, *weights))
    results = tuple(copy.of(copy.made[name]) for name in outputs)
    copy.code.output(results)
    copy.code.lint()
    return Part(graph_module(copy.code, copy.tensors).eval(), tuple(weights.values()))


def reads_of(program: Program, activations: Collection[str]) -> dict[str, tuple[str, ...]]:
    """For each call, the activations it reads, those included of which it only needs a size.

    Args:
        program: of the calls.
        activations: names of all activations.
    """
    names = see_through(program)
    found: dict[Node, dict[str, None]] = {}
    for node in program.code.nodes:
        found[node] = {}
        for source in node.all_input_nodes:
            found[node] |= {names[source]: None} if names[source] in activations else found[source]
    return {node.name: tuple(read) for node, read in found.items()}


def adaptive_max_pool(x: Tensor, output_size: Sequence[int]) -> tuple[Tensor]:
    """Largest value of each of as many windows as the output has positions, one spatial dimension after the other."""
    for i, count in enumerate(output_size):
        dim = x.dim() - len(output_size) + i
        size = x.shape[dim]
        windows = [(j * size // count, -(-(j + 1) * size // count)) for j in range(count)]
        x = torch.cat([x.narrow(dim, start, end - start).amax(dim, keepdim=True) for start, end in windows], dim)
    return (x,)


#: Calls that torch has no ONNX form for, where only the first of their results is read.
_REWRITTEN = {f"aten.adaptive_max_pool{n}d.default": adaptive_max_pool for n in (1, 2, 3)}


def _is_first(user: Node) -> bool:
    return user.target is operator.getitem and user.args[1:] == (0,)


class _Copy:
    """A graph that grows by copies of nodes."""

    def __init__(self, program: Program, ops: Collection[str], arguments: Sequence[str]) -> None:
        self.code, self.tensors = empty_code(), dict[str, Any]()
        self._program, self._names = program, see_through(program)
        self._own = {name: self.code.placeholder(f"input_{i}") for i, name in enumerate(arguments)}
        self.made = {node.name: node for node in program.code.nodes if node.name in ops}
        self._copies: dict[Node, Node] = {}
        for node in self.made.values():
            self.of(node)

    def of(self, node: Node) -> Node:
        """The copy of a node, with everything it reads."""
        name = self._names.get(node)
        if name in self._own:
            return self._own[name]
        if node not in self._copies:
            self._copies[node] = self._new(node)
        return self._copies[node]

    def _new(self, node: Node) -> Node:
        if node.op == "get_attr":
            own = f"tensor_{len(self.tensors)}"
            self.tensors[own] = _own_copy(fetch(self._program, str(node.target)))
            return self.code.get_attr(own)
        if node.op == "call_module":  # a slot, or a dropout, which does nothing in evaluation
            return self.of(first_node(node))
        args, kwargs = map_nodes((node.args, node.kwargs), self.of)
        if str(node.target) in _REWRITTEN and all(_is_first(user) for user in node.users):
            return self.code.call_function(_REWRITTEN[str(node.target)], args, kwargs)
        return self.code.create_node(node.op, node.target, args, kwargs)


def _own_copy(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value  # code of control flow
    own = value.detach().cpu().clone()
    return own.float() if own.is_floating_point() else own
