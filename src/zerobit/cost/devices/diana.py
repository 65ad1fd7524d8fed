"""DIANA: an analog array that computes with 2-bit weights, and a digital one with 8-bit weights, side by side.

Model: ODiMO (Risso et al., "Precision-aware Latency and Energy Balancing on Multi-Accelerator Platforms for DNN
Inference", ISLPED 2023), as in its code. With K channels of a layer on a unit, Ci inputs and an output of Wo x Ho:

    analog = ceil(K / 512) * ceil(Ci / 128) * Wo * Ho / U * 18.2 + [K > 0] * 8 * Ci * kx * ky
    digital = ceil(K / (16 * groups)) * Ci * ceil(Wo / 16) * Ho * kx * ky + [K > 0] * Wo * Ho * (K + Ci) / 8

where 18.2 cycles are 70 ns at 260 MHz, and U, the positions that the analog array computes at once, is the largest of
1, 2, 4, 8 for which U * K <= 512 columns and (U + kx - 1) * max(64, Ci) * ky <= 1152 rows. Both work at the same time,
so that a layer takes as long as the slower one.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from zerobit.cost.base import AbstractCost, LayerUse, Usage, total
from zerobit.cost.device import Device, is_computed, output_size, stored_counts, timed, window
from zerobit.cost.staircase import any_of, ceil_div, soft_maximum, with_slope

_SOURCE = "cost model of the official code of ODiMO (Risso et al., ISLPED 2023)"

_CLOCK_HZ = 260e6
_ANALOG_STEP = 70e-9 * _CLOCK_HZ  # cycles of one use of the array
_COLUMNS, _ROWS, _ROW_BLOCK, _LEAST_ROWS = 512, 1152, 128, 64
_AT_ONCE = 8  # positions at most, a power of two
_ROUNDING = 1e-6  # relative: what sums of probabilities may miss a whole number of channels by
_LOAD_ROW = 8  # cycles per row of weights that is written to the array
_DIGITAL_CHANNELS, _DIGITAL_COLUMNS = 16, 16
_BYTES = 8  # moved per cycle


@dataclass(frozen=True)
class Diana(AbstractCost):
    """Cycles of DIANA per sample: 2-bit channels on the analog array, all others in 8 bit on the digital one.

    A layer on a sequence or a 1-D convolution is an image of height 1; one of three dimensions is a sum over the depth
    of output and window. A grouped convolution uses the analog array once per group. Depthwise ones are all digital:
    the array multiplies every input with every output.

    Attributes:
        storage: widths that weights are stored with, which is where they are computed.
    """

    storage: tuple[int, ...] = (2, 8)
    name = "diana"
    unit = "cycle"
    channel_multiple = _DIGITAL_CHANNELS
    per_channel = False

    def __call__(self, use: Usage) -> Tensor:
        """Cycles."""
        return total([_cycles(layer) for layer in use.layers if is_computed(layer)])


def _cycles(layer: LayerUse) -> Tensor:
    if layer.depthwise:
        channels = layer.weight.counts[..., 1:].sum(-1)
        return _digital(layer, channels, layer.inputs)
    analog, digital = stored_counts(layer.weight.counts, (2, 8)).unbind(-1)
    both = torch.broadcast_tensors(_analog(layer, analog), _digital(layer, digital, layer.inputs))
    return soft_maximum(torch.stack(both, -1))


def _analog(layer: LayerUse, channels: Tensor) -> Tensor:
    depth, height, width = output_size(layer)
    deep, high, wide = window(layer)
    per_group, inputs = channels / layer.groups, layer.inputs / layer.groups
    uses = (
        ceil_div(per_group, _COLUMNS) * ceil_div(inputs, _ROW_BLOCK) * _uses_per_position(per_group, inputs, high, wide)
    )
    load = any_of(channels, _COLUMNS) * layer.inputs * (_LOAD_ROW * prod(window(layer)))
    return uses * width * (depth * height * deep * layer.groups * _ANALOG_STEP) + load


def _uses_per_position(channels: Tensor, inputs: Tensor, high: int, wide: int) -> Tensor:
    """[...], 1 / U; its derivative is that of the curve through the points where U changes."""
    rows = inputs.clamp_min(_LEAST_ROWS) * high
    by_rows = 1 / (_ROWS / rows - (wide - 1)).clamp_min(1)
    curve = torch.maximum(channels / _COLUMNS, by_rows).clamp(1 / _AT_ONCE, 1)
    at_most = (1 + _ROUNDING) / curve.detach()
    mantissa, _ = torch.frexp(at_most)
    return with_slope(2 * mantissa / at_most, curve, 1.0)  # one over the power of two below


def _digital(layer: LayerUse, channels: Tensor, inputs: Tensor) -> Tensor:
    depth, height, width = output_size(layer)
    filters = -(-layer.output_shape[1] // (_DIGITAL_CHANNELS * layer.groups)) if layer.depthwise else 1
    blocks = filters * ceil_div(channels, _DIGITAL_CHANNELS * layer.groups * filters)  # depthwise groups go whole
    compute = blocks * inputs * ceil_div(width, _DIGITAL_COLUMNS) * (depth * height * prod(window(layer)))
    moved = (channels + any_of(channels, _DIGITAL_CHANNELS) * inputs) * width * (depth * height / _BYTES)
    return compute + moved


DEVICE: Device = timed("diana", _SOURCE, Diana(), clock_hz=_CLOCK_HZ)
