"""Arm Cortex-M with generated C99 kernels: instructions per inference, and bytes of flash.

The kernels compute four channels per pass over the image, whatever their widths; two or three that are left take one
more such pass with idle rows, a single one a shorter pass of its own. Each group of a grouped convolution is computed
by itself, and each channel of a depthwise one. Weights below 8 bits are unpacked once per channel. Hence

    call * groups + P * (F * four + S * one + N * output) + rows * (F + S) * row + unpacking

for P windows in so many rows, F passes of four, S single ones and N channels, where a pass over a window takes

    window + line * lines + run * runs + value * values

for the values of the window that lie inside the input, in `lines` lines of the kernel and `runs` stretches of memory
(as many as lines, or as places where groups or dilation leave gaps). What padding adds is not computed.

All constants are fitted to counts of QEMU (cortex-m4, -O2) by benchmarks/cortex_m_fit.py, which writes them and their
errors on layers and networks that were not fitted to docs/cortex_m.md. Not in the model: ops that are no layers, and a
grouped convolution of which a single input per group is left (its channels are computed one by one).
"""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from zerobit.cost.analytic import Size
from zerobit.cost.base import AbstractCost, LayerUse, Usage, total
from zerobit.cost.device import Device, is_computed, output_size, stored_counts
from zerobit.cost.staircase import ROUNDING, floor_div, with_slope
from zerobit.formats import DEFAULT_STORAGE

_SOURCE = "counts of instructions (QEMU, cortex-m4) and of bytes of the C that zerobit exports; docs/cortex_m.md"

_PASS = 4  # channels


@dataclass(frozen=True)
class Constants:
    """Instructions of the parts of a layer.

    Attributes:
        call: for each group.
        row: for each row of outputs and pass.
        window: for each window and pass of four.
        line: for each line of the kernel in these.
        run: for each stretch of memory in these.
        value: for each input value in these.
        single_window: for each window and pass of one channel; the next three likewise.
        single_line: as `line`.
        single_run: as `run`.
        single_value: as `value`.
        output: for each output, which is scaled and stored.
        channel: for each channel.
        unpack_2: for each weight of 2 bits.
        unpack_4: for each weight of 4 bits.
    """

    call: float = 0
    row: float = 0
    window: float = 0
    line: float = 0
    run: float = 0
    value: float = 0
    single_window: float = 0
    single_line: float = 0
    single_run: float = 0
    single_value: float = 0
    output: float = 0
    channel: float = 0
    unpack_2: float = 0
    unpack_4: float = 0


#: Fitted by benchmarks/cortex_m_fit.py.
FITTED = Constants(
    call=105.5, row=39.4, window=148.6, line=31.19, run=19.04, value=10.94,
    single_window=118.9, single_line=12.74, single_run=8.032, single_value=5.004,
    output=36.8, channel=50.87, unpack_2=4.047, unpack_4=4.987,
)  # fmt: skip


@dataclass(frozen=True)
class Instructions(AbstractCost):
    """Instructions of a Cortex-M per sample; channels of all widths are computed four at a time.

    Attributes:
        constants: instructions of each part.
    """

    constants: Constants = FITTED
    name = "cortex_m"
    unit = "instruction"
    channel_multiple = _PASS
    per_channel = False

    def __call__(self, use: Usage) -> Tensor:
        """Instructions."""
        return total([self._instructions(layer) for layer in use.layers if is_computed(layer)])

    def _instructions(self, layer: LayerUse) -> Tensor:
        c = self.constants
        channels = layer.weight.counts[..., 1:].sum(-1)
        groups = 1 if layer.depthwise else layer.groups
        fours, ones = (torch.zeros_like(channels), channels) if layer.depthwise else _passes(channels / groups)
        depth, height, width = output_size(layer)
        lines, runs, share = _window(layer)
        values = layer.weight.fan_in * share
        four = c.window + c.line * lines + c.run * runs + c.value * values
        one = c.single_window + c.single_line * lines + c.single_run * runs + c.single_value * values
        windows = width * (depth * height)
        computed = windows * (groups * (fours * four + ones * one) + c.output * channels)
        rows = c.row * depth * height * groups * (fours + ones)
        return c.call * groups + computed + rows + self._unpacking(layer) + c.channel * channels

    def _unpacking(self, layer: LayerUse) -> Tensor:
        stored = stored_counts(layer.weight.counts, DEFAULT_STORAGE)
        each = stored[..., 0] * self.constants.unpack_2 + stored[..., 1] * self.constants.unpack_4
        return each * layer.weight.fan_in


def _passes(channels: Tensor) -> tuple[Tensor, Tensor]:
    """Passes of four channels and passes of one; the slope of the former is that of full passes, of the latter 0."""
    fixed = channels.detach()
    full = floor_div(fixed, _PASS)
    rest = fixed - _PASS * full
    ones = (rest > ROUNDING) & (rest <= 1 + ROUNDING)
    fours = full + (rest > 1 + ROUNDING)
    return with_slope(fours, channels, 1 / _PASS), ones.to(fixed.dtype)


def _window(layer: LayerUse) -> tuple[float, float, float]:
    """Mean lines of a window and stretches of memory in it, and the share of its values that is inside the input."""
    if not layer.kernel:
        return 1, 1, 1
    inside = layer.inside or tuple(float(width) for width in layer.kernel)
    lines = prod(inside[:-1])
    is_joined = layer.groups == 1 and layer.dilation[-1:] in ((), (1,))
    return lines, lines if is_joined else prod(inside), prod(inside) / prod(layer.kernel)


#: Bytes: bias, multiplier, shift, and the channel's place; where all channels have one width there is no place.
_PER_CHANNEL = 4 + 4 + 1 + 2


@dataclass(frozen=True)
class Flash(AbstractCost):
    """Bytes of flash: packed weights, what each channel and each call of a kernel needs, and code.

    A table of places is charged to every layer, so that the cost is linear; a layer of one width is charged 2 B per
    channel too much.

    Attributes:
        storage: widths that weights are stored with; others round up.
        call: bytes for each group of a layer; fitted by benchmarks/cortex_m_fit.py.
        code: bytes of code; likewise.
    """

    storage: tuple[int, ...] = DEFAULT_STORAGE
    call: int = 90
    code: int = 5928
    name = "cortex_m.flash"
    unit = "B"
    channel_multiple = _PASS

    def __call__(self, use: Usage) -> Tensor:
        """Bytes."""
        layers = [layer for layer in use.layers if is_computed(layer)]
        channels = total([layer.weight.counts[..., 1:].sum(-1) for layer in layers])
        calls = sum(1 if layer.depthwise else layer.groups for layer in layers)
        return Size(self.storage)(use) + channels * _PER_CHANNEL + (calls * self.call + self.code)


DEVICE: Device = Device("cortex_m", _SOURCE, {"instructions": Instructions(), "flash": Flash()})
