"""One spelling for each view: the many ways to split, stack and transpose become slice, select, cat and permute.

Every rewrite computes the same values bit for bit, so that the rules need to know four ops instead of thirty.
What depends on a size that is not fixed (the batch) stays as it is.
"""

import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zerobit.graph.program import Code, Node, OpOverload

#: Key of a node's meta data: sizes of its result while a capture is normalised; None for one that is not fixed.
SIZES = "sizes"

Sizes = tuple[int | None, ...]
Arguments = Mapping[str, Any]

_ATEN = torch.ops.aten


def sizes(value: Any) -> Any:
    """Sizes of a tensor, or of each in a tuple; None where a size is symbolic, or for what is no tensor."""
    if isinstance(value, Tensor):
        return tuple(_fixed(size) for size in value.shape)
    return [sizes(part) for part in value] if isinstance(value, (tuple, list)) else None


def _fixed(size: Any) -> int | None:
    """The value of a size that is the same for every input."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression) if expression.is_number else None


def normalise(code: Code) -> None:
    """Rewrite views in place; nodes bear `SIZES` in their meta data."""
    for node in list(code.nodes):
        if node.op != "call_function" or not isinstance(node.target, OpOverload):
            continue
        name = str(node.target)
        arguments = bound(node)
        if name in _PIECES or name in ("aten.unbind.int", "aten.unsafe_unbind.int"):
            _split(code, node, name, arguments)
        elif name in _STACKS:
            _stack(code, node, name, arguments)
        elif name in _WINDOWS:
            _pool(code, node, name)
        elif name in _LARGEST:
            _reduce(code, node, name, arguments)
        elif name == "aten.slice.Tensor" and _takes_all(node, arguments):
            node.replace_all_uses_with(node.args[0])
            code.erase_node(node)
        elif name in _VIEWS:
            rewritten = _VIEWS[name](node, arguments)
            if rewritten is not None:
                _become(node, *rewritten)


def _takes_all(node: Node, arguments: Arguments) -> bool:
    """Whether a slice is the whole, as in `x[:, :3]` along the batch."""
    found = _sizes_of(node.args[0])
    size = None if found is None else found[int(arguments["dim"])]
    end = arguments["end"]
    to_the_end = end is None or (isinstance(end, int) and (end == sys.maxsize or (size is not None and end >= size)))
    return arguments["start"] in (0, None) and arguments["step"] == 1 and to_the_end


def bound(node: Node) -> Arguments:
    """Arguments of an aten call by the names of its schema, defaults included."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    values: dict[str, Any] = {arg.name: arg.default_value for arg in schema if arg.has_default_value()}
    values.update({arg.name: value for arg, value in zip(schema, node.args, strict=False)})
    return {**values, **node.kwargs}


def _become(node: Node, target: Any, *args: Any) -> None:
    node.target, node.args, node.kwargs = target, args, {}


def _sizes_of(node: Any) -> Sizes | None:
    """Sizes of the tensor that a node makes, if it makes one."""
    found = node.meta.get(SIZES) if isinstance(node, Node) else None
    return found if isinstance(found, tuple) else None


def _is_whole(*values: Any) -> bool:
    return all(isinstance(value, int) for value in values)


# ---- one tensor into several


def _split(code: Code, node: Node, name: str, arguments: Arguments) -> None:
    """Let each reader of one piece read a slice instead."""
    source, dim = arguments["self"], arguments.get("dim", 0)
    before = _sizes_of(source)
    if before is None or any(user.target is not operator.getitem for user in node.users):
        return
    dim %= len(before)
    size = before[dim]
    pieces = None if size is None or name not in _PIECES else _PIECES[name](size, arguments)
    if name in _PIECES and pieces is None:
        return
    for user in list(node.users):
        index = user.args[1]
        assert isinstance(index, int)
        if pieces is None:
            _become(user, _ATEN.select.int, source, dim, index)
        else:
            _become(user, _ATEN.slice.Tensor, source, dim, *pieces[index], 1)
    code.erase_node(node)


Ranges = list[tuple[int, int]]


def _equal(size: int, part: int) -> Ranges | None:
    return [(i, min(i + part, size)) for i in range(0, size, part)] if part > 0 and size > 0 else None


def _given(lengths: Sequence[Any]) -> Ranges | None:
    if not _is_whole(*lengths):
        return None
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    return [(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def _by_size(size: int, arguments: Arguments) -> Ranges | None:
    part = arguments["split_size"]
    return _equal(size, part) if _is_whole(part) else None


def _by_sizes(size: int, arguments: Arguments) -> Ranges | None:
    del size
    return _given(arguments["split_sizes"] if "split_sizes" in arguments else arguments["split_size"])


def _by_count(size: int, arguments: Arguments) -> Ranges | None:
    """Of `chunk`: all but the last as long as the first."""
    return _equal(size, -(-size // arguments["chunks"])) if _is_whole(arguments["chunks"]) else None


def _by_sections(size: int, arguments: Arguments) -> Ranges | None:
    """Of `tensor_split`: the first ones longer by one."""
    count = arguments["sections"]
    if not _is_whole(count):
        return None
    return _given([size // count + (i < size % count) for i in range(count)])


def _by_indices(size: int, arguments: Arguments) -> Ranges | None:
    indices = arguments["indices"]
    if not _is_whole(*indices):
        return None
    bounds = [slice(start, end).indices(size) for start, end in zip([0, *indices], [*indices, size], strict=True)]
    return [(start, max(start, end)) for start, end, _ in bounds]


_PIECES: dict[str, Callable[[int, Arguments], Ranges | None]] = {
    "aten.split.Tensor": _by_size,
    "aten.unsafe_split.Tensor": _by_size,
    "aten.split.sizes": _by_sizes,
    "aten.split_with_sizes.default": _by_sizes,
    "aten.unsafe_split_with_sizes.default": _by_sizes,
    "aten.chunk.default": _by_count,
    "aten.unsafe_chunk.default": _by_count,
    "aten.tensor_split.sections": _by_sections,
    "aten.tensor_split.indices": _by_indices,
}


# ---- the largest, if nobody asks where it was

_LARGEST = {"aten.max.dim": _ATEN.amax.default, "aten.min.dim": _ATEN.amin.default}


def _reduce(code: Code, node: Node, name: str, arguments: Arguments) -> None:
    if any(user.args[1] != 0 for user in node.users):
        return
    for user in list(node.users):
        _become(user, _LARGEST[name], node.args[0], [arguments["dim"]], arguments["keepdim"])
    code.erase_node(node)


_WINDOWS = {f"aten.adaptive_max_pool{n}d.default": getattr(_ATEN, f"max_pool{n}d").default for n in (1, 2, 3)}


def _pool(code: Code, node: Node, name: str) -> None:
    """A pool to a given size is one over windows, if they are equal."""
    before, after = _sizes_of(node.args[0]), (node.meta.get(SIZES) or [None])[0]
    if not isinstance(after, tuple) or before is None or any(user.args[1] != 0 for user in node.users):
        return
    space = list(zip(before[2:], after[2:], strict=True))
    if any(size is None or goal is None or size % goal for size, goal in space):
        return
    windows = [(size or 0) // (goal or 1) for size, goal in space]
    for user in list(node.users):
        _become(user, _WINDOWS[name], node.args[0], windows, windows)
    code.erase_node(node)


# ---- several tensors into one

#: Dimension that is joined; stack makes a new one, the others need tensors that have it.
_STACKS = {
    "aten.stack.default": None,
    "aten.hstack.default": 1,
    "aten.column_stack.default": 1,
    "aten.vstack.default": 0,
    "aten.dstack.default": 2,
}


def _stack(code: Code, node: Node, name: str, arguments: Arguments) -> None:
    parts, dim = list(arguments["tensors"]), _STACKS[name]
    ranks = {len(_sizes_of(part) or ()) for part in parts}
    if dim is None:
        after = _sizes_of(node)
        assert after is not None
        dim = arguments["dim"] % len(after)
        parts = [_unsqueezed(code, node, part, dim) for part in parts]
    elif min(ranks) <= max(dim, 1):  # those of lower rank are given dimensions first
        return
    _become(node, _ATEN.cat.default, parts, dim)


def _unsqueezed(code: Code, node: Node, part: Node, dim: int) -> Node:
    with code.inserting_before(node):
        new = code.call_function(_ATEN.unsqueeze.default, (part, dim))
    before = _sizes_of(part)
    new.meta = {**node.meta, SIZES: None if before is None else (*before[:dim], 1, *before[dim:])}
    return new


# ---- one tensor into one

Rewritten = tuple[Any, ...] | None


def _narrow(node: Node, arguments: Arguments) -> Rewritten:
    before = _sizes_of(node.args[0])
    if before is None or not _is_whole(arguments["start"], arguments["length"]):
        return None
    dim, start = arguments["dim"] % len(before), arguments["start"]
    size = before[dim]
    if start < 0 and size is None:
        return None
    start += (size or 0) if start < 0 else 0
    return _ATEN.slice.Tensor, node.args[0], dim, start, start + arguments["length"], 1


def _squeeze(node: Node, arguments: Arguments) -> Rewritten:
    """Those that are 1 in any example; left alone, this would take a batch of 1, or a last channel, away as well."""
    before = _sizes_of(node.args[0])
    if before is None:
        return None
    given = arguments.get("dim", range(len(before)))
    dims = {d % max(len(before), 1) for d in ([given] if isinstance(given, int) else given)}
    return _ATEN.squeeze.dims, node.args[0], [d for d, size in enumerate(before) if size == 1 and d in dims]


def _viewed(node: Node, arguments: Arguments) -> Rewritten:
    """A size that is computed from the batch becomes -1, so that a cut need not know how."""
    return _unflatten(node, arguments) if any(isinstance(n, Node) for n in arguments["size"]) else None


def _reshaped(node: Node, arguments: Arguments) -> Rewritten:
    return _unflatten(node, arguments) if any(isinstance(n, Node) for n in arguments["shape"]) else None


def _unflatten(node: Node, arguments: Arguments) -> Rewritten:
    del arguments
    after = _sizes_of(node)
    if after is None or after.count(None) > 1:
        return None
    return _ATEN.reshape.default, node.args[0], [-1 if size is None else size for size in after]


def _permute(order: Callable[[int, Arguments], Sequence[int]]) -> Callable[[Node, Arguments], Rewritten]:
    def rewrite(node: Node, arguments: Arguments) -> Rewritten:
        before = _sizes_of(node.args[0])
        return None if before is None else (_ATEN.permute.default, node.args[0], list(order(len(before), arguments)))

    return rewrite


def _swapped(rank: int, one: int, other: int) -> list[int]:
    order = list(range(rank))
    if rank:
        order[one], order[other] = order[other], order[one]
    return order


def _moved(rank: int, source: Any, destination: Any) -> list[int]:
    sources = [source] if isinstance(source, int) else source
    goals = [destination] if isinstance(destination, int) else destination
    placed = {goal % rank: start % rank for start, goal in zip(sources, goals, strict=True)}
    others = iter(d for d in range(rank) if d not in placed.values())
    return [placed[d] if d in placed else next(others) for d in range(rank)]


def _plain_cat(node: Node, arguments: Arguments) -> Rewritten:
    del node
    return _ATEN.cat.default, arguments["tensors"], arguments["dim"]


_MOVED = _permute(lambda rank, a: _moved(rank, a["source"], a["destination"]))
_SWAPPED_AXES = _permute(lambda rank, a: _swapped(rank, a["axis0"], a["axis1"]))
_SWAPPED_DIMS = _permute(lambda rank, a: _swapped(rank, a["dim0"], a["dim1"]))
_LAST_TWO = _permute(lambda rank, _: _swapped(rank, -1, -2))

_VIEWS: dict[str, Callable[[Node, Arguments], Rewritten]] = {
    "aten.narrow.default": _narrow,
    "aten.squeeze.default": _squeeze,
    "aten.squeeze.dim": _squeeze,
    "aten.squeeze.dims": _squeeze,
    "aten.unflatten.int": _unflatten,
    "aten.view.default": _viewed,
    "aten._unsafe_view.default": _viewed,
    "aten.reshape.default": _reshaped,
    "aten.transpose.int": _SWAPPED_DIMS,
    "aten.swapdims.default": _SWAPPED_DIMS,
    "aten.swapaxes.default": _SWAPPED_AXES,
    "aten.movedim.int": _MOVED,
    "aten.movedim.intlist": _MOVED,
    "aten.moveaxis.int": _MOVED,
    "aten.moveaxis.intlist": _MOVED,
    "aten.mT.default": _LAST_TWO,
    "aten.t.default": _permute(lambda rank, _: list(reversed(range(rank)))),
    "aten.numpy_T.default": _permute(lambda rank, _: list(reversed(range(rank)))),
    "aten.concat.default": _plain_cat,
    "aten.concatenate.default": _plain_cat,
}
