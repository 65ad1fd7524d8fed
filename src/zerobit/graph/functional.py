"""Captured code without side effects: in-place calls become functional, writes to unread state are dropped."""

import itertools
import operator
from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor

from zerobit.errors import CaptureError
from zerobit.graph.edits import DROPOUTS
from zerobit.graph.program import Code, Node, OpOverload, map_nodes

#: Calls that can return their input itself, though their schema does not say so.
_RETURN_INPUT = (*DROPOUTS, "aten.type_as.default")
#: Calls that keep numbers where their functional form returns booleans.
_COMPARISONS = frozenset(
    f"{name}_"
    for name in ("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor", "logical_not")
)


def written(node: Node) -> Node | None:
    """What a call changes in place, if it does and this is its first argument."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload) or not _schema(node).is_mutable:
        return None
    info = _schema(node).arguments[0].alias_info
    first = node.args[0] if node.args else None
    return first if info is not None and info.is_write and isinstance(first, Node) else None


def _schema(node: Node) -> Any:
    return node.target._schema  # pyright: ignore


def memory_of(node: Node) -> Node:
    """The node whose memory the result of a call may lie in: itself, or what it is a view of."""
    while node.op == "call_function" and node.args and isinstance(node.args[0], Node) and _may_alias(node):
        node = node.args[0]
    return node


def _may_alias(node: Node) -> bool:
    if node.target is operator.getitem or str(node.target) in _RETURN_INPUT:
        return True
    returns = _schema(node).returns if isinstance(node.target, OpOverload) else ()
    return any(result.alias_info is not None for result in returns)


def drop_counters(code: Code, model: str) -> None:
    """Take out writes to buffers that no result depends on.

    Raises:
        CaptureError: results depend on them, so that one call would change the next.
    """
    writes = [n for n in code.nodes if (w := written(n)) is not None and memory_of(w).op == "get_attr"]
    states = {memory_of(n) for n in writes}
    for node in reversed(writes):
        if not node.users:
            code.erase_node(node)
    code.eliminate_dead_code()
    left = [str(state.target) for state in states if state.users]
    if left:
        msg = (
            f"`model` ({model}) changes its buffer `{left[0]}` in evaluation mode and reads it, so that one "
            "call changes the next; a network must compute the same from the same inputs; "
            "take the state as an input and return the new one"
        )
        raise CaptureError(msg)


def make_functional(code: Code) -> bool:
    """Replace in-place calls by their functional form and let later readers read the result.

    Returns:
        Whether that was enough. It is not where a changed tensor is also read under another name, as a view.
    """
    nodes = list(code.nodes)
    position = {node: i for i, node in enumerate(nodes)}
    memory = {node: memory_of(node) for node in nodes}
    for i, node in enumerate(nodes):
        changed = written(node)
        if changed is None:
            if isinstance(node.target, OpOverload) and _schema(node).is_mutable:
                return False
            continue
        functional = _functional_form(node)
        others = [n for n in nodes[:i] if n is not changed and memory[n] is memory[changed]]
        if functional is None or any(position[user] > i for other in others for user in other.users):
            return False
        node.target = functional
        for reader in [user for user in changed.users if position[user] > i]:
            reader.replace_input_with(changed, node)
    return True


def _functional_form(node: Node) -> Any:
    """aten.relu for aten.relu_; None if there is no such call of the same arguments and type."""
    name, overload = _schema(node).name.split("::")[-1], _schema(node).overload_name
    if name in _COMPARISONS:
        return None
    packet = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") and not name.endswith("__") else None
    functional = getattr(packet, overload or "default", None)
    if functional is None:
        return None
    ours, theirs = _schema(node).arguments, functional._schema.arguments
    fits = [str(a.type) for a in ours] == [str(a.type) for a in theirs]
    return functional if fits and set(node.kwargs) <= {a.name for a in theirs} else None


def undo_decompositions(code: Code) -> None:
    """Give BatchNorm its own call again, and views the form that takes inputs of any memory layout."""
    for node in list(code.nodes):
        if str(node.target) == "aten.view.default":
            node.target = torch.ops.aten.reshape.default
        elif str(node.target) == "aten._native_batch_norm_legit_no_training.default":
            x, weight, bias, mean, var, momentum, eps = node.args
            (first,) = node.users
            with code.inserting_before(node):
                arguments = (x, weight, bias, mean, var, False, momentum, eps, False)
                norm = code.call_function(torch.ops.aten.batch_norm.default, arguments)
            norm.meta = node.meta
            first.replace_all_uses_with(norm)
            code.erase_node(first)
            code.erase_node(node)


def compute_constants(code: Code, known: Mapping[str, Tensor], taken: Container[str]) -> dict[str, Tensor]:
    """Compute once what depends on no input and no parameter (position indices, masks), in place.

    Args:
        code: as exported.
        known: constants of the code.
        taken: names that tensors of the model have.

    Returns:
        Name -> tensor for each result that the code reads now.
    """
    given = {n: known[str(n.target)] for n in code.nodes if n.op == "get_attr" and str(n.target) in known}
    alone = _independent(code, given)
    values: dict[Node, Any] = {n: tensor.detach().clone() for n, tensor in given.items()}
    with torch.no_grad():
        for node in alone:
            args, kwargs = map_nodes((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    constants: dict[str, Tensor] = {}
    for node in alone:
        readers = [user for user in node.users if user not in alone]
        if not readers or not isinstance(values[node], Tensor):
            continue
        name = next(n for i in itertools.count() if not _is_taken(n := f"constant_{i}", constants, known, taken))
        constants[name] = values[node].clone()
        with code.inserting_before(next(iter(code.nodes))):
            operand = code.get_attr(name)
        operand.meta = dict(node.meta)
        for user in readers:
            user.replace_input_with(node, operand)
    for node in reversed(alone):
        if not node.users:
            code.erase_node(node)
    return constants


def _is_taken(name: str, *names: Container[str]) -> bool:
    return any(name in taken for taken in names)


def _independent(code: Code, given: Container[Node]) -> dict[Node, None]:
    """Calls that read no input and no parameter, and write to nothing that others write to; in order."""
    banned: set[Node] = set()
    position = {node: i for i, node in enumerate(code.nodes)}
    while True:
        alone: dict[Node, None] = {}
        for node in code.nodes:
            is_call = node.op == "call_function" and not is_random(node) and node not in banned
            if is_call and all(n in alone or n in given for n in node.all_input_nodes):
                alone[node] = None
        # What others read before it changes last, or write into themselves, is no constant.
        last: dict[Node, int] = {}
        for node in code.nodes:
            target = written(node)
            if target is not None:
                last[memory_of(target)] = position[node] if node in alone else len(position)
        early = {
            memory_of(node)
            for node in alone
            for user in node.users
            if user not in alone and position[user] < last.get(memory_of(node), -1)
        }
        wrong = [node for node in alone if memory_of(node) in early]
        if not wrong:
            return alone
        banned.update(wrong)


def is_random(node: Node) -> bool:
    """Whether a call gives something else each time."""
    return isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags
