"""Lowering of what has no integer form: raw inputs and islands, with their weights as stored integers."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zerobit.cut.apply import QuantNet
from zerobit.graph.extract import extract
from zerobit.graph.ir import Rows
from zerobit.graph.rows import to_rows
from zerobit.integer.floats import Feed, FloatOp, Island, StoredWeight
from zerobit.integer.islands import Reads, Unit
from zerobit.integer.tensors import Weights
from zerobit.quant.placement import Placement


@dataclass(frozen=True, eq=False)
class LoweredIsland:
    """An island in its network.

    Attributes:
        island: the op.
        outputs: network tensor -> name of the float tensor that holds it.
    """

    island: Island
    outputs: Mapping[str, str]


def feed(net: QuantNet, name: str, mean: NDArray[np.float32] | None, std: NDArray[np.float32] | None) -> Feed:
    """A graph input that islands read; normalised if it holds real numbers."""
    batched = net.batched_inputs
    example = dict(zip(batched, net.example, strict=True))[name]
    is_batched = batched[name] or not any(batched.values())
    dtype = np.dtype(str(example.dtype).removeprefix("torch."))
    if not example.is_floating_point():
        return Feed(name, f"{name}.raw", dtype, is_batched)
    return Feed(name, f"{name}.raw", np.dtype(np.float32), is_batched, mean, std)


def island_of(net: QuantNet, unit: Unit, reads: Reads, held: Mapping[str, str], placement: Placement) -> LoweredIsland:
    """Make an island of a unit of float ops.

    Args:
        net: the network.
        unit: names of its ops, in execution order.
        reads: op -> activations it reads.
        held: network tensor -> tensor that holds it, of all that the unit reads.
        placement: what is integer and what is float.
    """
    graph, inside = net.graph, {*unit}
    ops = [op for op in graph.ops if op.name in inside]
    taken = dict.fromkeys(t for name in unit for t in reads[name] if t not in inside)
    outside = {t for name, read in reads.items() if name not in inside for t in read} | {*graph.outputs}
    made = {t: f"{t}.float" if t in placement.governor else t for t in unit if t in outside}
    weights = {n: _stored(net, n) for n in dict.fromkeys(n for op in ops for n in op.parameters) if n in graph.rows}
    layouts = {name: (weight.shape, weight.rows) for name, weight in weights.items()}
    function = extract(net, inside, (*taken,), (*made,), layouts)
    reasons = placement.reasons
    described = tuple(FloatOp(op.name, op.target, op.module, reasons[op.name]) for op in ops)
    inputs = tuple(held[t] for t in taken)
    island = Island(f"{unit[0]}.island", inputs, tuple(made.values()), function, tuple(weights.values()), described)
    return LoweredIsland(island, made)


def _stored(net: QuantNet, name: str) -> StoredWeight:
    tensor, slot = net.tensor(name), net.weight_slot(name)
    rows: Rows = net.graph.rows[name]
    values = to_rows(slot.integers(tensor).cpu(), rows).numpy()
    step = slot.log_step.exp().reshape(-1).float().cpu().numpy()
    weights = Weights(values, np.asarray(slot.bits), step, np.zeros(len(step), np.int32))
    return StoredWeight(name, weights, tuple(tensor.shape), rows)
