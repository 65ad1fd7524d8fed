"""Which ops can be computed on integers, judged one by one. Those that can't are computed in float."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from zerobit.graph.ir import Graph, Kind, Op, Shape

#: Ops that move or choose among values of their input, so that the result lies on the input's integer grid.
_MOVING = (
    Kind.MAX_POOL,
    Kind.RESHAPE,
    Kind.PERMUTE,
    Kind.SLICE,
    Kind.EXPAND,
    Kind.SHUFFLE,
    Kind.RESIZE,
    Kind.IDENTITY,
)
#: Layers: what they accumulate can leave the network as it is.
LAYERS = (Kind.CONV, Kind.CONV_TRANSPOSE, Kind.LINEAR)
#: Ops whose output a following ReLU can be merged into: their result is rounded anyway.
_MERGES_RELU = (*LAYERS, Kind.ADD, Kind.MUL, Kind.NORM, Kind.CHANNELWISE)
#: Number of dimensions of sequences, images and volumes: (batch, channels, space).
_RANKS = (3, 4, 5)


def passes_grid(op: Op) -> bool:
    """Whether an op that has an integer form leaves its output on the integer grid of its input."""
    return op.kind in _MOVING or (op.kind is Kind.PAD and op.attrs["value"] == 0)


def merged_relu(graph: Graph, op: Op) -> bool:
    """Whether an op's only reader is a ReLU that becomes part of it."""
    readers = graph.consumers(op.name)
    is_only = len(readers) == 1 and readers[0].kind is Kind.RELU and op.name not in graph.outputs
    return is_only and op.kind in _MERGES_RELU


def missing_form(graph: Graph, op: Op) -> str | None:
    """Why an op can't be computed on integers, whatever its readers want; None if it can.

    Args:
        graph: of the network.
        op: one of its ops.
    """
    if op.kind is Kind.BARRIER:
        return op.reason or "it has no integer form"
    find = _FORMS.get(op.kind)
    if find is None:
        return "it has no integer form"
    if not op.inputs:
        return "it depends on no input"
    for name in (op.name, *op.inputs):
        if graph.batched is not None and name not in graph.batched:
            return "it works on tensors whose first dimension is not the batch, or which hold no real numbers"
    if op.kind not in _OF_SEVERAL and len(op.inputs) != 1:
        return "it does not read one tensor"
    return find(graph, op)


#: Functions whose values differ by orders of magnitude: parts of normalisations and losses that are written out.
_WIDE = ("exp", "exp2", "expm1", "log", "log1p", "log2", "sqrt", "rsqrt", "reciprocal", "pow", "square")
#: Kinds that read more than one tensor.
_OF_SEVERAL = (Kind.ADD, Kind.MUL, Kind.CONCAT)


def _conv(graph: Graph, op: Op) -> str | None:
    if len(graph.shapes[op.name]) not in _RANKS:
        return "it does not work on sequences, images or volumes"
    return _layer(graph, op)


def _conv_transpose(graph: Graph, op: Op) -> str | None:
    reach = [step * (width - 1) for step, width in zip(op.attrs["dilation"], op.attrs["kernel"], strict=True)]
    if any(max(pads) > most for pads, most in zip(op.attrs["padding"], reach, strict=True)):
        return "it cuts off more than its kernel adds"
    return _conv(graph, op)


def _linear(graph: Graph, op: Op) -> str | None:
    if len(graph.shapes[op.name]) < 2:
        return "its input has no batch"
    return _layer(graph, op)


def _layer(graph: Graph, op: Op) -> str | None:
    if op.weight is None or op.weight not in graph.rows:
        return "its weight is not a quantised parameter"
    if graph.rows[op.weight] != op.rows:
        return "its weight has a scale for each channel of another layer that reads it"
    channels = graph.rows[op.weight].count(graph.parameters[op.weight])
    if op.bias is not None and graph.parameters.get(op.bias) != (channels,):
        return "its bias is not one parameter per channel"
    return None


def _free(graph: Graph, op: Op) -> str | None:
    del graph, op


def _pointwise(graph: Graph, op: Op) -> str | None:
    del graph
    if op.attrs.get("function") in _WIDE:
        return "its values span a range too wide for one scale"
    is_one = not op.parameters and op.attrs.get("call") is not None
    return None if is_one else "it is not a known function of one tensor"


def _channelwise(graph: Graph, op: Op) -> str | None:
    dim = op.attrs.get("dim")
    if len(op.parameters) != 1 or op.attrs.get("call") is None:
        return "it is not a known function of one tensor and one parameter"
    if graph.shapes[op.name] != graph.shapes[op.inputs[0]]:
        return "its parameter makes the tensor larger"
    return None if dim is None or dim > 0 else "its parameter varies along several dimensions"


def _norm(graph: Graph, op: Op) -> str | None:
    return None if len(graph.shapes[op.name]) > 1 else "it normalises more than channels"


def _binary(graph: Graph, op: Op) -> str | None:
    if op.parameters or len(op.inputs) > 2 or op.attrs.get("alpha", 1) not in (1, -1):
        return "its operands are not two tensors of the network"
    ranks = {len(graph.shapes[name]) for name in (op.name, *op.inputs)}
    return None if len(ranks) == 1 else "its operands have different numbers of dimensions"


def _concat(graph: Graph, op: Op) -> str | None:
    if op.parameters or len(op.inputs) < 2:
        return "it joins parameters"
    return "it joins along the batch" if op.attrs["dim"] % len(graph.shapes[op.name]) == 0 else None


def _max_pool(graph: Graph, op: Op) -> str | None:
    if "kernel" not in op.attrs or any(int(d) != 1 for d in op.attrs.get("dilation", ())):
        return "its windows are not fixed, or spread"
    return _windows(graph, op)


def _avg_pool(graph: Graph, op: Op) -> str | None:
    before, after = graph.shapes[op.inputs[0]][2:], graph.shapes[op.name][2:]
    if op.attrs.get("divisor_override") is not None:
        return "it divides by a number of its own"
    if (reason := _windows(graph, op)) is not None:
        return reason
    if "kernel" not in op.attrs and any(i % o for i, o in zip(before, after, strict=True)):
        return f"its windows over {before} are of unequal size for an output of {after}"
    return None


def _windows(graph: Graph, op: Op) -> str | None:
    if op.attrs.get("ceil_mode"):
        return "its last window may be incomplete"
    if len(graph.shapes[op.name]) not in _RANKS:
        return "it does not work on sequences, images or volumes"
    return None if op.attrs["rank"] == len(graph.shapes[op.name]) - 2 else "its windows lie over channels or the batch"


def _mean(graph: Graph, op: Op) -> str | None:
    rank = len(graph.shapes[op.inputs[0]])
    if rank in _RANKS and {d % rank for d in op.attrs["dims"]} == set(range(2, rank)):
        return None
    return f"it averages over dimensions {tuple(op.attrs['dims'])}, not over all of space"


def _reshape(graph: Graph, op: Op) -> str | None:
    before, after = graph.shapes[op.inputs[0]], graph.shapes[op.name]
    return None if _keeps_batch(before, after) else "it mixes the batch with other dimensions"


def _keeps_batch(before: Shape, after: Shape) -> bool:
    return len(before) > 0 and len(after) > 0 and before[0] == after[0]


def _permute(graph: Graph, op: Op) -> str | None:
    del graph
    return None if tuple(op.attrs["dims"])[:1] == (0,) else "it moves the batch"


def _slice(graph: Graph, op: Op) -> str | None:
    dim = op.attrs["dim"] % len(graph.shapes[op.inputs[0]])
    return "it takes a part of the batch" if dim == 0 and not takes_all(graph, op) else None


def takes_all(graph: Graph, op: Op) -> bool:
    """Whether a slice is the whole of its input, as torch writes `x[:, 1:]` with one for the batch."""
    is_same = graph.shapes[op.name] == graph.shapes[op.inputs[0]]
    # Of a batch of 1 the first sample is all there is.
    return op.kind is Kind.SLICE and is_same and (op.attrs["dim"] > 0 or graph.batched is not None)


def _expand(graph: Graph, op: Op) -> str | None:
    before, after = graph.shapes[op.inputs[0]], graph.shapes[op.name]
    is_same = len(before) == len(after) and before[0] == after[0]
    return None if is_same and not op.parameters else "it repeats the batch, or adds dimensions"


def _shuffle(graph: Graph, op: Op) -> str | None:
    return None if len(graph.shapes[op.name]) == 4 and "factor" in op.attrs else "it does not shuffle images"


def _resize(graph: Graph, op: Op) -> str | None:
    before, after = graph.shapes[op.inputs[0]][2:], graph.shapes[op.name][2:]
    if op.attrs.get("mode") not in ("nearest", "nearest_exact"):
        return f"its interpolation is {op.attrs.get('mode')!r}, not nearest"
    factors = [o / i for i, o in zip(before, after, strict=True)]
    is_whole = len(graph.shapes[op.name]) in _RANKS and all(f.is_integer() for f in factors)
    given = list(op.attrs.get("scales") or factors)
    return None if is_whole and given == factors else f"it resizes {before} to {after}, by {given}, no whole multiple"


def _pad(graph: Graph, op: Op) -> str | None:
    rank = len(graph.shapes[op.name]) - 2
    pairs = [tuple(pair) for pair in op.attrs["pad"]]
    spatial = [side for pair in pairs[:rank] for side in pair]
    if op.attrs["value"] != 0 or any(b or e for b, e in pairs[rank:]) or not 1 <= rank <= 3 or min(spatial) < 0:
        return "only zeros around space can be added"
    return None


_FORMS: Mapping[Kind, Callable[[Graph, Op], str | None]] = {
    Kind.CONV: _conv,
    Kind.CONV_TRANSPOSE: _conv_transpose,
    Kind.LINEAR: _linear,
    Kind.NORM: _norm,
    Kind.RELU: _free,
    Kind.POINTWISE: _pointwise,
    Kind.CHANNELWISE: _channelwise,
    Kind.ADD: _binary,
    Kind.MUL: _binary,
    Kind.CONCAT: _concat,
    Kind.MAX_POOL: _max_pool,
    Kind.AVG_POOL: _avg_pool,
    Kind.MEAN: _mean,
    Kind.RESHAPE: _reshape,
    Kind.PERMUTE: _permute,
    Kind.SLICE: _slice,
    Kind.EXPAND: _expand,
    Kind.SHUFFLE: _shuffle,
    Kind.RESIZE: _resize,
    Kind.PAD: _pad,
    Kind.IDENTITY: _free,
}


def never_negative(op: Op, inputs_are: bool) -> bool:
    """Whether no value of an op's result is below zero.

    Args:
        op: the op.
        inputs_are: whether that holds for all its inputs.
    """
    if op.kind is Kind.RELU or op.target in _NEVER_NEGATIVE:
        return True
    if op.kind is Kind.POINTWISE and op.attrs.get("call") is not None:
        return _is_above_zero(op, inputs_are)
    if op.kind is Kind.PAD and op.attrs["value"] < 0:
        return False
    if op.kind is Kind.RESIZE and op.attrs.get("mode") == "bicubic":
        return False
    if op.kind is Kind.ADD and op.attrs.get("alpha", 1) < 0:
        return False
    return inputs_are and op.kind in _KEEPING_SIGN and not op.parameters


#: What is never negative by its definition.
_NEVER_NEGATIVE = ("aten.softmax.int", "aten.sigmoid.default", "aten.abs.default", "aten.exp.default")
_KEEPING_SIGN = (*_MOVING, Kind.AVG_POOL, Kind.MEAN, Kind.PAD, Kind.ADD, Kind.MUL, Kind.CONCAT)


def _is_above_zero(op: Op, inputs_are: bool) -> bool:
    """Ask the function, on a fine grid of arguments."""
    sizes = np.concatenate([[0.0], np.geomspace(1e-6, 1e6, 4001)])
    grid = sizes if inputs_are else np.concatenate([-sizes[::-1], sizes])
    values = op.attrs["call"](torch.tensor(grid, dtype=torch.float32))
    return bool((values >= 0).all())
