"""From a fixed-width network to an `IntegerGraph`; nothing is left to float but the logits."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from zerobit.cut.apply import QuantNet
from zerobit.errors import ExportError
from zerobit.graph.ir import Kind, Op
from zerobit.integer import ops as integer
from zerobit.integer.ir import IntegerGraph
from zerobit.quant.placement import merged_relu

_INT32 = np.iinfo(np.int32)


def lower(net: QuantNet, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> IntegerGraph:
    """Lower a network to integers.

    Args:
        net: from `apply`, fine-tuned or not.
        mean: per-channel mean that the data was normalised with; with `std` it becomes part of the network, whose
            input is then the raw one.
        std: per-channel standard deviation.

    Returns:
        A validated graph: order, ranges, and that no accumulator can overflow.

    Raises:
        ExportError: an op that has no integer form yet; names it.
        FormatError: a value or an accumulator is out of range; names the layer.
    """
    return _Lowering(net, mean, std).run()


class _Lowering:
    """Walks a network once, collecting tensors and ops."""

    def __init__(self, net: QuantNet, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        self._net, self._graph = net, net.graph
        self._mean = None if mean is None else np.asarray(mean, np.float32)
        self._std = None if std is None else np.asarray(std, np.float32)
        self._slots = {t: name for name, a in net.plan.activations.items() for t in a.tensors}
        self._tensors: dict[str, integer.IntegerTensor] = {}
        self._ops: list[integer.Op] = []
        #: network tensor -> integer tensor that holds it
        self._held: dict[str, str] = {}

    def run(self) -> IntegerGraph:
        with torch.no_grad():
            for name in self._graph.inputs:
                self._input(name)
            for op in self._graph.ops:
                if op.name not in self._held:
                    self._lower(op)
        outputs = tuple(self._held[name] for name in self._graph.outputs)
        return IntegerGraph(tuple(self._tensors.values()), tuple(self._ops), outputs).validate()

    def _lower(self, op: Op) -> None:
        forms: dict[Kind, Callable[[Op], None]] = {
            Kind.CONV: self._affine,
            Kind.LINEAR: self._affine,
            Kind.ADD: self._add,
            Kind.RELU: self._relu,
            Kind.CONCAT: self._concat,
            Kind.MAX_POOL: self._max_pool,
            Kind.AVG_POOL: self._avg_pool,
            Kind.MEAN: self._mean_over,
            Kind.RESHAPE: self._reshape,
            Kind.PAD: self._pad,
            Kind.IDENTITY: self._identity,
        }
        if op.kind not in forms:
            raise _no_form(op, "it is kept in float")
        forms[op.kind](op)

    def _input(self, name: str) -> None:
        if name not in self._slots:
            msg = f"input `{name}` is read by no quantised op; the network can't be written in integers"
            raise ExportError(msg)
        quantised = self._tensor(name, f"{name}.quantised", self._graph.shapes[name])
        self._ops.append(integer.Quantize(name, quantised, self._mean, self._std))

    def _tensor(self, site: str | None, name: str, shape: Sequence[int]) -> str:
        """Declare an integer tensor on the grid of an activation slot, or a float one without."""
        if site is None:
            tensor = integer.IntegerTensor(name, tuple(shape[1:]), None)
        else:
            slot = self._net.activation_slot(self._slots[site])
            scale = np.float32(slot.log_step.exp().item())
            tensor = integer.IntegerTensor(name, tuple(shape[1:]), scale, slot.widths[0], slot.signed)
        self._tensors[name] = tensor
        self._held[site or name] = name
        return name

    def _result(self, op: Op) -> tuple[str, int | None]:
        """Declare an op's result, behind the ReLU that merges into it; returns (name, clip_high)."""
        relu = self._graph.consumers(op.name)[0] if merged_relu(self._graph, op) else None
        last = relu or op
        if last.name in self._slots:
            name = self._tensor(last.name, last.name, self._graph.shapes[last.name])
        elif last is op and op.name in self._graph.outputs:
            name = self._tensor(None, op.name, self._graph.shapes[op.name])
        else:
            raise _no_form(last, "its result is neither quantised nor an output of the network")
        self._held[op.name] = self._held[last.name] = name
        return name, None if relu is None else self._clip(relu, name)

    def _clip(self, relu: Op, name: str) -> int | None:
        """ReLU6 and the like as an integer limit: rounding is monotone, so clamp and round commute."""
        high = relu.attrs["high"]
        tensor = self._tensors[name]
        if high is None:
            return None
        return min(tensor.high, int(np.rint(np.float32(high) / tensor.step)))

    def _low(self, relu_merged: bool, name: str) -> int | None:
        """A ReLU in a signed tensor needs its zero said."""
        return 0 if relu_merged and self._tensors[name].signed else None

    def _passed(self, op: Op) -> str:
        """Declare a result on the grid of the op's input."""
        source = self._tensors[self._held[op.inputs[0]]]
        shape = self._graph.shapes[op.name][1:]
        self._tensors[op.name] = integer.IntegerTensor(op.name, shape, source.scale, source.bits, source.signed)
        self._held[op.name] = op.name
        return op.name

    def _affine(self, op: Op) -> None:
        source = self._held[op.inputs[0]]
        if op.kind is Kind.LINEAR and len(self._graph.shapes[op.name]) != 2:
            raise _no_form(op, f"its input has shape {self._graph.shapes[op.inputs[0]]}, not (batch, features)")
        weights = self._weights(op, self._tensors[source])
        name, high = self._result(op)
        low = self._low(merged_relu(self._graph, op), name)
        if op.kind is Kind.LINEAR:
            self._ops.append(integer.Linear(source, name, weights, low, high))
            return
        a = op.attrs
        self._ops.append(
            integer.Conv(source, name, weights, a["stride"], a["padding"], a["dilation"], a["groups"], low, high)
        )

    def _weights(self, op: Op, source: integer.IntegerTensor) -> integer.Weights:
        assert op.weight is not None
        tensors = self._net.tensors()
        slot = self._net.weight_slot(op.weight)
        values = slot.integers(tensors[op.weight]).cpu().numpy()
        step = slot.log_step.exp().reshape(-1).float().cpu().numpy()
        bias = np.zeros(len(step), np.int32)
        if op.bias is not None:
            unit = np.float64(source.step) * step.astype(np.float64)
            bias = np.rint(tensors[op.bias].detach().double().cpu().numpy() / unit)
            bias = np.clip(bias, _INT32.min, _INT32.max).astype(np.int32)
        return integer.Weights(values, np.asarray(slot.bits), step, bias)

    def _add(self, op: Op) -> None:
        left, right = (self._held[name] for name in op.inputs)
        name, high = self._result(op)
        low = self._low(merged_relu(self._graph, op), name)
        self._ops.append(integer.Add(left, right, name, low, high))

    def _relu(self, op: Op) -> None:
        source = self._held[op.inputs[0]]
        if op.name not in self._slots:
            raise _no_form(op, "its result is not quantised")
        name = self._tensor(op.name, op.name, self._graph.shapes[op.name])
        self._ops.append(integer.Rescale(source, name, self._low(True, name), self._clip(op, name)))

    def _concat(self, op: Op) -> None:
        axis = op.attrs["dim"] % len(self._graph.shapes[op.name])
        if axis == 0:
            raise _no_form(op, "it joins along the batch")
        inputs = tuple(self._held[name] for name in op.inputs)
        self._ops.append(integer.Concat(inputs, self._passed(op), axis - 1))

    def _max_pool(self, op: Op) -> None:
        a = op.attrs
        pads = tuple((p, p) for p in a["padding"])
        self._ops.append(integer.MaxPool(self._held[op.inputs[0]], self._passed(op), a["kernel"], a["stride"], pads))

    def _avg_pool(self, op: Op) -> None:
        source = self._held[op.inputs[0]]
        before, after = self._graph.shapes[op.inputs[0]][2:], self._graph.shapes[op.name][2:]
        a = op.attrs
        kernel, stride = a.get("kernel"), a.get("stride")
        padding = a.get("padding", (0,) * len(after))
        if kernel is None:
            if any(i % o for i, o in zip(before, after, strict=True)):
                raise _no_form(op, f"its windows over {before} are of unequal size for an output of {after}")
            kernel = stride = tuple(i // o for i, o in zip(before, after, strict=True))
        if kernel == before and not any(padding):
            self._ops.append(integer.Mean(source, self._averaged(op), keepdim=True))
            return
        pads, count = tuple((p, p) for p in padding), bool(a.get("count_include_pad", True))
        assert stride is not None
        self._ops.append(integer.AvgPool(source, self._averaged(op), kernel, stride, pads, count))

    def _mean_over(self, op: Op) -> None:
        rank = len(self._graph.shapes[op.inputs[0]])
        if {d % rank for d in op.attrs["dims"]} != set(range(2, rank)):
            raise _no_form(op, f"it averages over dimensions {op.attrs['dims']}, not over all of space")
        self._ops.append(integer.Mean(self._held[op.inputs[0]], self._averaged(op), op.attrs["keepdim"]))

    def _averaged(self, op: Op) -> str:
        if op.name not in self._slots:
            raise _no_form(op, "its result is not quantised")
        return self._tensor(op.name, op.name, self._graph.shapes[op.name])

    def _reshape(self, op: Op) -> None:
        source = self._held[op.inputs[0]]
        if self._tensors[source].is_float:
            raise _no_form(op, "it reshapes the float result of the network; return the layer's result itself")
        self._ops.append(integer.Reshape(source, self._passed(op)))

    def _pad(self, op: Op) -> None:
        rank = len(self._graph.shapes[op.name]) - 2
        pairs: list[Any] = [*op.attrs["pad"]]
        spatial = [pairs[i] if i < len(pairs) else (0, 0) for i in range(rank)][::-1]
        if op.attrs["value"] != 0 or any(b or e for b, e in pairs[rank:]) or min(map(min, spatial)) < 0:
            raise _no_form(op, "only zeros around space can be added")
        self._ops.append(integer.Pad(self._held[op.inputs[0]], self._passed(op), tuple(spatial)))

    def _identity(self, op: Op) -> None:
        self._held[op.name] = self._held[op.inputs[0]]


def _no_form(op: Op, why: str) -> ExportError:
    where = f" in module '{op.module}'" if op.module else ""
    return ExportError(
        f"`{op.name}` ({op.target}{where}) has no integer form: {why}; replace it in the model, or export without it"
    )
