"""NE16, a convolution accelerator of RISC-V clusters, for 8-bit activations and weights of 2 to 8 bits.

It holds an input patch of 5 x 5 pixels x 16 channels and makes 3 x 3 pixels x 32 channels of the output at a time (16
in depthwise mode). Weights are read bit by bit: a 3 x 3 layer takes a cycle per channel and bit, a 1 x 1 layer
multiplies with all bits at once. Each width is a run of its own.

Model: cost code of Motetti et al. (IEEE TC 2024). For a tile of k output channels, with n = ceil(Ci / 16):

    cycles(k) = n * (load + offset + multiply + update) + normalise + store

The sum over tiles, floor(K / 32) * cycles(32) + [rest > 0] * cycles(rest), is a staircase for what each tile pays once,
and linear in K for the rest, since every part is affine in k.
"""

from dataclasses import dataclass

from torch import Tensor

from zerobit.cost.base import GRID_BITS, AbstractCost, LayerUse, Usage, rounded_up, total
from zerobit.cost.device import Device, is_computed, output_size, stored_counts, timed, window
from zerobit.cost.staircase import ceil_div
from zerobit.formats import GRID
from zerobit.graph.ir import Kind

_SOURCE = "cost model of the official code of Motetti et al. (IEEE TC 2024)"

_PATCH = 3  # height and width of an output tile
_INPUTS, _OUTPUTS, _DEPTHWISE_OUTPUTS = 16, 32, 16  # channels of a tile
_LATENCY = 6  # of a FIFO
_UPDATE = 2  # of the loop indices
_LOAD_1X1 = 10 + 9 * 1  # nine pixels, 16 channels of 8 bit each: 128 of the 256 bits that a cycle moves
_LOAD_3X3 = _LATENCY + 25 * 1  # 25 pixels
_OFFSET, _MULTIPLY = _LATENCY, _LATENCY  # before the first channel
_NORMALISE = 9  # before the first channel: scales of 32 bit, four multipliers, no shift and no bias
_STORE = 3 + 9 * 1 + 1  # nine pixels

_ONCE_1X1 = _LOAD_1X1 + _OFFSET + _MULTIPLY + _UPDATE  # per tile of inputs and outputs
_ONCE_3X3 = _LOAD_3X3 + _OFFSET + _MULTIPLY + _UPDATE
_ONCE_OUT = _NORMALISE + _STORE  # per tile of outputs


@dataclass(frozen=True)
class Ne16(AbstractCost):
    """Cycles of NE16 per sample.

    A window other than 3 x 3 and 1 x 1 is covered by as many 3 x 3 runs as fit and 1 x 1 runs for the rest; one of
    three dimensions is as many of two as it is deep. In depthwise mode there is only 3 x 3, so that a window is padded
    with zeros. A grouped convolution runs once for each group, each with its share of the channels of a width. A linear
    layer is a 1 x 1 convolution with its positions (words of a sequence) laid out in patches of nine, and a 1-D
    convolution of length L one over 1 x L pixels. Activations of any width, and in float, are charged as 8 bit.

    Attributes:
        storage: widths that weights are stored with; others round up.
    """

    storage: tuple[int, ...] = GRID[1:]
    name = "ne16"
    unit = "cycle"
    # no multiple: every output channel counts, and where a tile of inputs ends the projection knows from the price
    per_channel = False
    run_per_width = True

    def __call__(self, use: Usage) -> Tensor:
        """Cycles."""
        return total([self._cycles(layer) for layer in use.layers if is_computed(layer)])

    def _cycles(self, layer: LayerUse) -> Tensor:
        run = self._depthwise_run(layer) if layer.depthwise else self._dense_run(layer)
        return _patches(layer) * run

    def _dense_run(self, layer: LayerUse) -> Tensor:
        """[...], cycles per patch of all tiles of outputs and all runs over the window."""
        square, single = _runs(layer)
        counts = layer.weight.counts
        blocks = ceil_div(stored_counts(counts, self.storage), _OUTPUTS * layer.groups).sum(-1) * layer.groups
        inputs = ceil_div(layer.inputs, _INPUTS * layer.groups)
        channels, bits = _channels_and_bits(counts, self.storage)
        once = inputs * (square * _ONCE_3X3 + single * _ONCE_1X1) + (square + single) * _ONCE_OUT
        each = inputs * (square * bits + single * channels) + (square + single) * channels
        return blocks * once + each

    def _depthwise_run(self, layer: LayerUse) -> Tensor:
        """[...], the same in depthwise mode: an offset for each channel, and no loop over inputs."""
        depth, height, width = window(layer)
        runs = depth * -(-height // _PATCH) * -(-width // _PATCH)
        counts = layer.weight.counts
        blocks = ceil_div(stored_counts(counts, self.storage), _DEPTHWISE_OUTPUTS).sum(-1)
        channels, bits = _channels_and_bits(counts, self.storage)
        return runs * (blocks * (_ONCE_3X3 + _ONCE_OUT) + 2 * channels + bits)


def _channels_and_bits(counts: Tensor, storage: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Channels that stay, and the sum of their stored widths, both [...]."""
    per_width = GRID_BITS if storage == GRID[1:] else GRID_BITS.new_tensor(rounded_up(storage))
    return counts[..., 1:].sum(-1), counts @ per_width.to(counts.device)


def _runs(layer: LayerUse) -> tuple[int, int]:
    """How many 3 x 3 and how many 1 x 1 runs cover the window."""
    depth, height, width = window(layer)
    over = height % _PATCH, width % _PATCH
    square = (height // _PATCH) * (width // _PATCH)
    return depth * square, depth * (over[0] * width + over[1] * height - over[0] * over[1])


def _patches(layer: LayerUse) -> Tensor:
    """[...], tiles of the output image."""
    depth, height, width = output_size(layer)
    if layer.kind is Kind.LINEAR:
        return ceil_div(width, _PATCH * _PATCH)
    return depth * -(-height // _PATCH) * ceil_div(width, _PATCH)


DEVICE: Device = timed("ne16", _SOURCE, Ne16())
