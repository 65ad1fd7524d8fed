"""GAP8, a cluster of eight RISC-V cores with 8-bit dot products of four values.

Model: latency of the PULP-NN kernels, as in the official cost code of Motetti et al. (IEEE TC 2024). Each core computes
rows of the output, two columns and four channels at a time; im2col copies each patch, and a matrix product reads it:

    cycles = ceil(Wo / 2) * ceil(Ho / 8) * (2 * kx * ky * Ci + ceil(K / 4) * (5 + 14 * ceil(kx * ky * Ci / 4) + 10))

depthwise 4 * ceil(K / 4) * Ho * Wo * kx * ky, linear ceil(Ci / 2) * ceil(K / 4).
"""

from dataclasses import dataclass
from math import prod

from torch import Tensor

from zerobit.cost.base import AbstractCost, LayerUse, Usage, total
from zerobit.cost.device import Device, is_computed, output_size, timed, window
from zerobit.cost.staircase import ceil_div
from zerobit.graph.ir import Kind

_SOURCE = "latency of PULP-NN kernels, official cost code of Motetti et al. (IEEE TC 2024)"

_CORES, _COLUMNS, _CHANNELS, _LANES = 8, 2, 4, 4
_COPY = 2  # cycles per value that im2col copies
_BEFORE, _INNER, _AFTER = 5, 14, 10  # of the matrix product: set-up, four products of every lane, and storing


@dataclass(frozen=True)
class Gap8(AbstractCost):
    """Cycles of GAP8 per sample; everything is computed in 8 bit.

    A grouped convolution is one per group. A linear layer on a sequence is repeated for every position, a 1-D
    convolution has one row, and one of three dimensions is a sum over the depth of output and window.

    Attributes:
        storage: widths that weights are stored with.
    """

    storage: tuple[int, ...] = (8,)
    name = "gap8"
    unit = "cycle"
    channel_multiple = _CHANNELS
    per_channel = False

    def __call__(self, use: Usage) -> Tensor:
        """Cycles."""
        return total([_cycles(layer) for layer in use.layers if is_computed(layer)])


def _cycles(layer: LayerUse) -> Tensor:
    channels = layer.weight.counts[..., 1:].sum(-1)
    if layer.kind is Kind.LINEAR:
        return layer.positions * ceil_div(layer.inputs, _COLUMNS) * ceil_div(channels, _CHANNELS)
    depth, height, width = output_size(layer)
    taps = prod(window(layer))
    if layer.depthwise:
        return _CHANNELS * ceil_div(channels, _CHANNELS) * width * (depth * height * taps)
    blocks = ceil_div(channels, _CHANNELS * layer.groups)
    inputs = layer.inputs / layer.groups
    product = _BEFORE + _INNER * ceil_div(inputs * taps, _LANES) + _AFTER
    patches = depth * -(-height // _CORES) * ceil_div(width, _COLUMNS)
    return layer.groups * patches * (_COPY * taps * inputs + blocks * product)


DEVICE: Device = timed("gap8", _SOURCE, Gap8())
