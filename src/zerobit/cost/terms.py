"""Terms that the time of a layer is put together from.

Of a layer with N kept output channels that reads F weights for each of them, at P output positions, with a window of K
values over C kept inputs:

| term | is | stands for |
|---|---|---|
| `call` | 1 | the overhead of a call |
| `windows` | P K | addresses, loop overhead |
| `reads` | P F | gathering the input of each position |
| `macs` | P F N | arithmetic |
| `macs_w>b` | P F N of weights wider than b bits | arithmetic that width slows down |
| `macs_a>b` | `macs`, if the input is wider than b bits | the same for activations |
| `inputs` | C P stride a / 8 | input bytes at width a |
| `outputs` | P N | results that are rounded and written |
| `weights` | F N | weights that are unpacked when a network is loaded |
| `weight_bytes` | F N w / 8 | weights that are read at their width w |
| `tiles/t` | P K ceil(N / t) | overhead of each tile of t output channels |
| `tiled/t` | P F t ceil(N / t) | arithmetic of tiles, full or not |

Every term grows with channels and bits, so that the cost does. A width that was not measured costs what the next wider
measured one does; an input in float what the widest does. A grouped convolution is charged as "conv" with the weights
that it has, a transposed one as "conv" at its input positions; an embedding costs nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod

import torch
from torch import Tensor

from zerobit.cost.base import LayerUse
from zerobit.cost.device import stored_counts
from zerobit.cost.measurements import Measurement
from zerobit.cost.staircase import ceil_div
from zerobit.formats import GRID
from zerobit.graph.ir import Kind


@dataclass(frozen=True, eq=False)
class Amounts:
    """What terms are made of: a layer, or many measurements at once.

    Attributes:
        counts: float64 [..., W], output channels at each measured width.
        fan_in: [...], weights per output channel.
        inputs: [...], input channels.
        positions: [...], output positions.
        window: values in the window, per input channel.
        step: positions of the input per position of the output.
        activations: float64 [..., A], probability of each measured width of the input.
    """

    counts: Tensor
    fan_in: Tensor
    inputs: Tensor
    positions: Tensor
    window: float | Tensor
    step: float | Tensor
    activations: Tensor

    @cached_property
    def channels(self) -> Tensor:
        """[...], output channels."""
        return self.counts.sum(-1)

    @cached_property
    def reads(self) -> Tensor:
        """[...], weights per output channel at all positions."""
        return self.positions * self.fan_in

    @cached_property
    def macs(self) -> Tensor:
        """[...], multiplications."""
        return self.reads * self.channels


@dataclass(frozen=True)
class Widths:
    """Widths that were measured, ascending.

    Attributes:
        weights: of weights.
        activations: of inputs.
    """

    weights: tuple[int, ...]
    activations: tuple[int, ...]


def term(name: str, amounts: Amounts, widths: Widths) -> Tensor:
    """The value of a term, float64 [...].

    Args:
        name: as in the table above.
        amounts: of layers.
        widths: that were measured.
    """
    kind, mark, number = _split(name)
    if mark == "/":
        tiles = ceil_div(amounts.channels, number)
        return _TILED[kind](amounts) * tiles * (1 if kind == "tiles" else number)
    if mark == ">":
        chosen = widths.weights if kind == "macs_w" else widths.activations
        column = next(i for i, b in enumerate(chosen) if b > number)
        if kind == "macs_w":
            return amounts.counts[..., column:].sum(-1) * amounts.reads
        return amounts.macs * amounts.activations[..., column:].sum(-1)
    if kind == "weight_bytes":
        return amounts.counts @ _bytes(widths.weights, amounts.counts.device) * amounts.fan_in
    if kind == "inputs":
        size = amounts.activations @ _bytes(widths.activations, amounts.activations.device)
        return size * amounts.inputs * amounts.positions * amounts.step
    return _PLAIN[kind](amounts)


def _split(name: str) -> tuple[str, str, int]:
    for mark in "/>":
        kind, found, number = name.partition(mark)
        if found:
            return kind, mark, int(number)
    return name, "", 0


_PLAIN: dict[str, Callable[[Amounts], Tensor]] = {
    "call": lambda a: torch.ones_like(a.fan_in),
    "windows": lambda a: a.positions * a.window,
    "reads": lambda a: a.reads,
    "macs": lambda a: a.macs,
    "weights": lambda a: a.fan_in * a.channels,
    "outputs": lambda a: a.positions * a.channels,
}
_TILED = {"tiles": _PLAIN["windows"], "tiled": _PLAIN["reads"]}


@cache
@torch.inference_mode(mode=False)  # it outlives whoever asks first
def _bytes(widths: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(widths, dtype=torch.float64, device=device) / 8


def is_term(name: str, widths: Widths) -> bool:
    """Whether a text names a term.

    Args:
        name: the text.
        widths: that were measured; a term of wider weights or activations needs some.
    """
    kind, sign, number = name, "", ""
    for mark in "/>":
        if mark in name:
            kind, sign, number = name.partition(mark)
            break
    if not sign:
        return name in _PLAIN or name in ("weight_bytes", "inputs")
    if not (number.isascii() and number.isdigit() and 0 < int(number[:9]) == int(number)):
        return False
    if sign == "/":
        return kind in _TILED
    wider = {"macs_w": widths.weights, "macs_a": widths.activations}.get(kind, ())
    return any(b > int(number) for b in wider)


def op_of(layer: LayerUse) -> str:
    """The kind of measurement that a layer is charged by.

    Args:
        layer: not an embedding.
    """
    if layer.kind is Kind.LINEAR:
        return "linear"
    return "depthwise" if layer.depthwise else "conv"


def amounts_of(layer: LayerUse, widths: Widths) -> Amounts:
    """What a layer uses.

    Args:
        layer: one run of it.
        widths: that were measured.
    """
    counts = stored_counts(layer.weight.counts, widths.weights)
    step = 1 if layer.kind is Kind.CONV_TRANSPOSE else prod(layer.stride)
    p = one_hot(max(GRID)) if layer.activation is None else layer.activation.p[..., 0, :]
    activations = stored_counts(p.to(counts.device), widths.activations)
    return Amounts(
        counts, layer.weight.fan_in, layer.inputs, layer.positions, float(prod(layer.kernel)), float(step), activations
    )


def one_hot(width: int) -> Tensor:
    """[B], 1 at a width of the grid.

    Args:
        width: of the grid.
    """
    return torch.tensor([float(b == width) for b in GRID], dtype=torch.float64)


def amounts_of_rows(rows: Sequence[Measurement], widths: Widths) -> Amounts:
    """What measured layers use; N rows at once.

    Args:
        rows: of one op.
        widths: that were measured.
    """

    def column(value: Callable[[Measurement], float]) -> Tensor:
        return torch.tensor([value(row) for row in rows], dtype=torch.float64)

    counts = column(lambda r: r.out_channels)[:, None] * _columns([r.weight_bits for r in rows], widths.weights)
    window = column(lambda r: prod(r.kernel))
    read = column(lambda r: 1 if r.op == "depthwise" else r.in_channels)
    return Amounts(
        counts,
        read * window,
        column(lambda r: r.in_channels),
        column(lambda r: r.out_height * r.out_width),
        window,
        column(lambda r: prod(r.stride)),
        _columns([r.activation_bits for r in rows], widths.activations),
    )


def _columns(bits: Sequence[int], widths: Sequence[int]) -> Tensor:
    return torch.tensor([[float(b == width) for width in widths] for b in bits], dtype=torch.float64)
