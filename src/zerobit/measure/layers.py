"""The distinct layers of a network, and the channel counts at which each is measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

from zerobit.cost.measurements import Measurement
from zerobit.graph.ir import Graph, Kind, Op
from zerobit.quant.placement import place


@dataclass(frozen=True)
class Layer:
    """A layer as a runtime sees it.

    Attributes:
        op: of `measurements.OPS`.
        in_channels: uncut.
        out_channels: uncut.
        in_size: spatial, or of a sequence; () for a vector.
        out_size: as `in_size`.
        kernel: () for linear.
        stride: () for linear.
        padding: (begin, end) per spatial dimension.
        dilation: () for linear.
    """

    op: str
    in_channels: int
    out_channels: int
    in_size: tuple[int, ...]
    out_size: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()


@dataclass(frozen=True)
class Configuration:
    """A layer at some channel counts and widths.

    Attributes:
        layer: uncut.
        in_channels: that it reads.
        out_channels: that it makes.
        weight_bits: of all weights.
        activation_bits: of input and output.
    """

    layer: Layer
    in_channels: int
    out_channels: int
    weight_bits: int
    activation_bits: int

    @property
    def macs(self) -> int:
        """Multiplications."""
        read = 1 if self.layer.op == "depthwise" else self.in_channels
        return read * self.out_channels * prod(self.layer.kernel) * prod(self.layer.out_size)

    def measured(self, value: float) -> Measurement:
        """As a row of a table.

        Args:
            value: that it took.
        """
        kernel, stride = self.layer.kernel or (1,), self.layer.stride or (1,)
        height, width = (1, prod(self.layer.out_size)) if len(self.layer.out_size) != 2 else self.layer.out_size
        return Measurement(
            self.layer.op, self.in_channels, self.out_channels, kernel, stride, height, width,
            self.weight_bits, self.activation_bits, value,
        )  # fmt: skip


def distinct_layers(graph: Graph) -> tuple[tuple[Layer, ...], dict[str, str]]:
    """Layers of a network that are computed in integers, each once.

    Args:
        graph: of the network.

    Returns:
        The layers, and op -> why it is not among them.
    """
    floats = place(graph).reasons
    found: dict[Layer, None] = {}
    left: dict[str, str] = {}
    for op in graph.weighted:
        why = floats.get(op.name) or _unlike(graph, op)
        if why is None:
            found[_layer(graph, op)] = None
        else:
            left[op.name] = why
    return tuple(found), left


def _unlike(graph: Graph, op: Op) -> str | None:
    """Why a layer is none of those that can be measured."""
    if op.kind not in (Kind.CONV, Kind.LINEAR):
        return f"a layer of the kind {op.kind.value} is not measured"
    if op.attrs.get("groups", 1) > 1 and not op.attrs.get("depthwise"):
        return "a grouped convolution is not measured"
    if op.attrs.get("depthwise") and graph.shapes[op.inputs[0]][1] != graph.shapes[op.name][1]:
        return "a depthwise convolution with several outputs per input is not measured"
    return None


def _layer(graph: Graph, op: Op) -> Layer:
    before, after = graph.shapes[op.inputs[0]], graph.shapes[op.name]
    if op.kind is Kind.LINEAR:
        return Layer("linear", before[-1], after[-1], before[1:-1], after[1:-1])
    kind = "depthwise" if op.attrs.get("depthwise") else "conv"
    settings = (tuple(op.attrs[name]) for name in ("kernel", "stride", "padding", "dilation"))
    return Layer(kind, before[1], after[1], before[2:], after[2:], *settings)


def configurations(
    layers: Sequence[Layer],
    fractions: Sequence[float],
    multiple: int,
    weight_bits: Sequence[int],
    activation_bits: Sequence[int],
) -> tuple[Configuration, ...]:
    """Every layer over a grid of channel counts and widths, each once.

    Args:
        layers: to measure.
        fractions: of all channels, for inputs and outputs alike.
        multiple: channel counts are rounded up to this, or to all channels.
        weight_bits: of the weights.
        activation_bits: of input and output.
    """
    found: dict[Configuration, None] = {}
    for layer in layers:
        outs = counts(layer.out_channels, fractions, multiple)
        ins = counts(layer.in_channels, fractions, multiple)
        pairs = [(c, c) for c in outs] if layer.op == "depthwise" else [(i, o) for i in ins for o in outs]
        for i, o in pairs:
            found.update({Configuration(layer, i, o, w, a): None for w in weight_bits for a in activation_bits})
    return tuple(found)


def counts(channels: int, fractions: Sequence[float], multiple: int) -> tuple[int, ...]:
    """Channel counts to measure, ascending.

    Args:
        channels: all of them.
        fractions: wanted, of all channels.
        multiple: as in `configurations`.
    """
    return tuple(sorted({min(channels, multiple * ceil(channels * f / multiple)) for f in fractions}))
