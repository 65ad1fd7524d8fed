"""From a fixed-width network to an `IntegerGraph`: integers wherever an op has a form, islands of float between."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from zerobit.cut.apply import QuantNet
from zerobit.graph.extract import reads_of
from zerobit.graph.ir import Kind, Op
from zerobit.graph.rows import to_rows
from zerobit.integer import lower_moves
from zerobit.integer import ops as integer
from zerobit.integer.ir import IntegerGraph, IntegerTensor, Weights
from zerobit.integer.islands import Unit, schedule
from zerobit.integer.lower_islands import feed, island_of
from zerobit.integer.tables import table_of
from zerobit.integer.weights import weights_with_bias
from zerobit.quant.forms import merged_relu, takes_all
from zerobit.quant.placement import assign


def lower(net: QuantNet, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> IntegerGraph:
    """Lower a network to integers.

    Ops without an integer form become islands, which `IntegerGraph.islands` names.

    Args:
        net: from `apply`, fine-tuned or not.
        mean: per-channel mean that the data was normalised with; with `std` it becomes part of the network, whose
            input is then the raw one.
        std: per-channel standard deviation.

    Returns:
        A validated graph: order, ranges, and that no accumulator can overflow.

    Raises:
        FormatError: a value or an accumulator is out of range; names the layer.
    """
    return _Lowering(net, mean, std).run()


@torch.no_grad()
def settle(net: QuantNet) -> QuantNet:
    """Put the biases of a trained network, in place, on the values that integers give them.

    A bias is an integer in units of input step times weight step, which of narrow weights is coarse. Training rounds
    weights and activations but not biases; after this the network computes what its integers compute, but for values
    that lie so close to a tie that float sums decide. A bias that several layers read in different units stays.

    Args:
        net: from `apply`, trained.

    Returns:
        `net`.

    Raises:
        FormatError: as `lower`.
    """
    lowering = _Lowering(net, None, None)
    lowering.run()
    tensors = net.tensors()
    for name, found in lowering.biases.items():
        if all(np.array_equal(values, found[0]) for values in found):
            tensors[name].copy_(torch.from_numpy(found[0]).to(tensors[name]))
    return net


class _Lowering:
    """Walks a network once, collecting tensors and ops."""

    def __init__(self, net: QuantNet, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        self._net, self._graph = net, net.graph
        self._mean = None if mean is None else np.asarray(mean, np.float32)
        self._std = None if std is None else np.asarray(std, np.float32)
        self._slots = {t: name for name, a in net.plan.activations.items() for t in a.tensors}
        # The plan says what is quantised: a cut may have changed what ops are.
        self._placement = assign(net.graph, self._slots, self._slots)
        self._floats = self._placement.reasons
        self._reads = reads_of(net, net.graph.shapes)
        self._tensors: dict[str, IntegerTensor] = {}
        self._ops: list[integer.Op] = []
        #: network tensor -> tensor that holds it
        self._held: dict[str, str] = {}
        #: bias -> real values of its integers in each layer that reads it
        self.biases: dict[str, list[NDArray[np.float64]]] = {}

    def run(self) -> IntegerGraph:
        with torch.no_grad():
            for name in self._graph.inputs:
                self._input(name)
            for unit in schedule(self._graph, self._reads, self._floats, self._placement.governor):
                self._lower(unit)
        outputs = dict.fromkeys(self._held[name] for name in self._graph.outputs if name in self._graph.shapes)
        return IntegerGraph(tuple(self._tensors.values()), tuple(self._ops), tuple(outputs), self._batch()).validate()

    def _batch(self) -> int | None:
        """The only batch size that the network takes."""
        if not self._graph.inputs or any(self._net.batched_inputs.values()):
            return None
        return self._graph.shapes[self._graph.inputs[0]][0]

    def _lower(self, unit: Unit) -> None:
        op = self._graph.producer(unit[0])
        assert op is not None
        forms: dict[Kind, Callable[[Op], None]] = {
            Kind.CONV: self._layer,
            Kind.CONV_TRANSPOSE: self._layer,
            Kind.LINEAR: self._layer,
            Kind.ADD: self._pairwise,
            Kind.MUL: self._pairwise,
            Kind.NORM: self._lookup,
            Kind.POINTWISE: self._lookup,
            Kind.CHANNELWISE: self._lookup,
            Kind.RELU: self._relu,
            Kind.AVG_POOL: self._avg_pool,
            Kind.MEAN: self._mean_over,
        }
        if op.name in self._floats:
            self._island(unit)
        elif op.kind is Kind.IDENTITY or takes_all(self._graph, op):
            self._held[op.name] = self._held[op.inputs[0]]
        elif op.kind in forms:
            if op.name not in self._held:
                forms[op.kind](op)
        else:
            self._move(op)

    def _input(self, name: str) -> None:
        is_read = any(name in read for read in self._reads.values())
        if name in self._slots:
            quantised = self._tensor(name, f"{name}.quantised", self._graph.shapes[name])
            self._ops.append(integer.Quantize(name, quantised, self._mean, self._std))
        elif is_read or name in self._graph.outputs:
            op = feed(self._net, name, self._mean, self._std)
            shape = self._graph.shapes[name]
            self._tensors[op.output] = IntegerTensor(op.output, shape[1:] if op.is_batched else shape, None)
            self._held[name] = op.output
            self._ops.append(op)

    def _island(self, unit: Unit) -> None:
        """An island, and quantisation of those of its results that are read as integers."""
        part = island_of(self._net, unit, self._reads, self._held, self._placement)
        self._ops.append(part.island)
        for name, made in part.outputs.items():
            self._tensors[made] = IntegerTensor(made, self._graph.shapes[name][1:], None)
            self._held[name] = made
            if name in self._slots:
                self._ops.append(integer.QuantizeFloat(made, self._tensor(name, name, self._graph.shapes[name])))

    def _tensor(self, site: str | None, name: str, shape: Sequence[int]) -> str:
        """Declare an integer tensor on the grid of an activation slot, or a float one without."""
        if site is None:
            tensor = IntegerTensor(name, tuple(shape[1:]), None)
        else:
            slot = self._net.activation_slot(self._slots[site])
            scale = np.float32(slot.log_step.exp().item())
            tensor = IntegerTensor(name, tuple(shape[1:]), scale, slot.widths[0], slot.signed)
        self._tensors[name] = tensor
        self._held[site or name] = name
        return name

    def _result(self, op: Op) -> tuple[str, int | None, int | None]:
        """Declare an op's result, behind the ReLU that merges into it; returns (name, clip_low, clip_high)."""
        relu = self._graph.consumers(op.name)[0] if merged_relu(self._graph, op) else None
        if relu is not None and relu.name in self._floats:
            relu = None
        last = relu or op
        site = last.name if last.name in self._slots else None
        name = self._tensor(site, last.name, self._graph.shapes[last.name])
        self._held[op.name] = self._held[last.name] = name
        return name, self._low(relu, name), None if relu is None else self._clip(relu, name)

    def _clip(self, relu: Op, name: str) -> int | None:
        """ReLU6 and the like as an integer limit: rounding is monotone, so clamp and round commute."""
        high = relu.attrs["high"]
        tensor = self._tensors[name]
        if high is None:
            return None
        return min(tensor.high, int(np.rint(np.float32(high) / tensor.step)))

    def _low(self, relu: Op | None, name: str) -> int | None:
        """A ReLU in a signed tensor needs its zero said."""
        return 0 if relu is not None and self._tensors[name].signed else None

    def _layer(self, op: Op) -> None:
        source = self._held[op.inputs[0]]
        weights = self._weights(op, self._tensors[source])
        name, low, high = self._result(op)
        if op.kind is Kind.LINEAR:
            self._ops.append(integer.Linear(source, name, weights, low, high))
            return
        a, stride, padding = op.attrs, op.attrs["stride"], op.attrs["padding"]
        if op.kind is Kind.CONV_TRANSPOSE:
            source, padding = self._spread(op, source), lower_moves.transposed_padding(op)
            stride = (1,) * len(stride)
        self._ops.append(integer.Conv(source, name, weights, stride, padding, a["dilation"], a["groups"], low, high))

    def _spread(self, op: Op, source: str) -> str:
        """Zeros between the positions: a transposed convolution is a convolution over them."""
        if set(op.attrs["stride"]) == {1}:
            return source
        given = self._tensors[source]
        sizes = zip(given.shape[1:], op.attrs["stride"], strict=True)
        shape = (given.shape[0], *((size - 1) * step + 1 for size, step in sizes))
        name = f"{op.name}.spread"
        self._ops.append(integer.Spread(source, name, op.attrs["stride"]))
        self._tensors[name] = IntegerTensor(name, shape, given.scale, given.bits, given.signed)
        return name

    def _weights(self, op: Op, source: IntegerTensor) -> Weights:
        assert op.weight is not None
        slot = self._net.weight_slot(op.weight)
        values = slot.integers(self._net.tensor(op.weight)).cpu()
        if op.kind is Kind.LINEAR:
            values = to_rows(values, op.rows)
        elif op.kind is Kind.CONV_TRANSPOSE:
            kernel = values.shape[2:]
            values = to_rows(values, op.rows)
            values = values.reshape(len(values), -1, *kernel).flip(*range(2, 2 + len(kernel)))
        step = slot.log_step.exp().reshape(-1).float().cpu().numpy()
        bias = np.zeros(len(step))
        if op.bias is not None:
            bias = self._net.tensor(op.bias).detach().double().cpu().numpy()
        weights = weights_with_bias(values.numpy(), np.asarray(slot.bits), step, bias, source)
        if op.bias is not None:
            unit = np.float64(source.step) * weights.scale.astype(np.float64)
            self.biases.setdefault(op.bias, []).append(weights.bias * unit)
        return weights

    def _pairwise(self, op: Op) -> None:
        operands = op.attrs.get("operands", op.inputs)
        left, right = (self._held[name] for name in (operands * 2 if len(operands) == 1 else operands))
        name, low, high = self._result(op)
        form = integer.Multiply if op.kind is Kind.MUL else integer.Add
        if op.attrs.get("alpha", 1) == -1:
            form = integer.Subtract
        self._ops.append(form(left, right, name, low, high))

    def _lookup(self, op: Op) -> None:
        source = self._held[op.inputs[0]]
        name, low, high = self._result(op)
        target = self._tensors[name]
        limits = (target.low if low is None else low, target.high if high is None else high)
        rank = len(self._graph.shapes[op.name])
        table, axis = table_of(op, rank, self._net.tensors(), self._tensors[source], limits, target.step)
        self._ops.append(integer.Lookup(source, name, table, axis))

    def _relu(self, op: Op) -> None:
        source = self._held[op.inputs[0]]
        name = self._tensor(op.name, op.name, self._graph.shapes[op.name])
        self._ops.append(integer.Rescale(source, name, self._low(op, name), self._clip(op, name)))

    def _move(self, op: Op) -> None:
        """Ops whose result lies on the grid of their input."""
        source = self._tensors[self._held[op.inputs[0]]]
        inputs = tuple(self._held[name] for name in op.inputs)
        for made, shape in lower_moves.moves(self._graph, op, inputs):
            self._ops.append(made)
            self._tensors[made.output] = IntegerTensor(made.output, shape, source.scale, source.bits, source.signed)
        self._held[op.name] = op.name

    def _avg_pool(self, op: Op) -> None:
        source = self._held[op.inputs[0]]
        before, after = self._graph.shapes[op.inputs[0]][2:], self._graph.shapes[op.name][2:]
        a = op.attrs
        kernel, stride = a.get("kernel"), a.get("stride")
        padding = a.get("padding", (0,) * len(after))
        if kernel is None:
            kernel = stride = tuple(i // o for i, o in zip(before, after, strict=True))
        name = self._tensor(op.name, op.name, self._graph.shapes[op.name])
        if kernel == before and not any(padding):
            self._ops.append(integer.Mean(source, name, keepdim=True))
            return
        pads, count = tuple((p, p) for p in padding), bool(a.get("count_include_pad", True))
        assert stride is not None
        self._ops.append(integer.AvgPool(source, name, kernel, stride, pads, count))

    def _mean_over(self, op: Op) -> None:
        name = self._tensor(op.name, op.name, self._graph.shapes[op.name])
        self._ops.append(integer.Mean(self._held[op.inputs[0]], name, op.attrs["keepdim"]))
