"""Arm Cortex-M with generated C99 kernels: bytes of flash, and instructions per inference.

Fitted to counts of QEMU (cortex-m4) on MLPerf Tiny ResNet-8, 12,501,632 multiplications, 77,360 weights, 346 output
channels, weights packed at 2, 4 and 8 bit and unpacked once per output channel:

- Instructions: 85.9 M with one channel per pass over the patch, 59.7 M with four (59.8 M packed), hence 6.871 and 4.783
  per multiplication. Both contain what there is per output (requantisation) and per patch; residual 0 at 8 bit in full
  passes with packed weights, 0.2 % (59.7 M) with unpacked ones. The narrower widths take as many instructions: weights
  are 8 bit when they are multiplied. Depthwise layers were not counted apart; as their channels share no input they are
  charged as single channels, and so is what is left of a precision group after passes of four. Three left are charged
  as a pass of four with one idle, which is shorter than three single ones.
- Flash: 87,276 B at 8 bit, 3,072 B of test input among them. Less the weights and 9 B per channel (int32 bias, int32
  multiplier, int8 shift) it leaves 3,730 B of code. MobileNetV1 0.25 for 96 x 96 pixels (208,112 weights, 2,738
  channels), 264,900 B with an input of 27,648 B, is then 768 B too small (0.3 %).
"""

from dataclasses import dataclass

from torch import Tensor

from zerobit.cost.analytic import Size
from zerobit.cost.base import AbstractCost, LayerUse, Usage, total
from zerobit.cost.device import Device, is_computed, stored_counts
from zerobit.cost.staircase import floor_div, with_slope
from zerobit.formats import DEFAULT_STORAGE

_SOURCE = "counts of instructions (QEMU, cortex-m4) and of bytes (arm-none-eabi-size) of generated C99 kernels"

_MACS = 12_501_632  # of ResNet-8
_SINGLE = 85.9e6 / _MACS  # instructions per multiplication, one channel per pass
_PACKED = 59.8e6 / _MACS  # four channels per pass
_PASS = 4  # channels
_PER_CHANNEL = 4 + 4 + 1  # bytes: bias, multiplier, shift
_CODE = 87_276 - 3_072 - 77_360 - 346 * _PER_CHANNEL  # bytes


@dataclass(frozen=True)
class Instructions(AbstractCost):
    """Instructions of a Cortex-M per sample; channels of one width are computed four at a time.

    Attributes:
        storage: widths that weights are stored with, each of which is a precision group of its own.
    """

    storage: tuple[int, ...] = DEFAULT_STORAGE
    name = "cortex_m"
    unit = "instruction"
    channel_multiple = _PASS
    per_channel = False

    def __call__(self, use: Usage) -> Tensor:
        """Instructions."""
        return total([self._instructions(layer) for layer in use.layers if is_computed(layer)])

    def _instructions(self, layer: LayerUse) -> Tensor:
        macs = layer.weight.fan_in * layer.positions
        if layer.depthwise:
            return layer.weight.counts[..., 1:].sum(-1) * macs * _SINGLE
        return _per_mac(stored_counts(layer.weight.counts, self.storage)).sum(-1) * macs


@dataclass(frozen=True)
class Flash(AbstractCost):
    """Bytes of flash: packed weights, what each channel of a layer needs, and code.

    Attributes:
        storage: widths that weights are stored with; others round up.
    """

    storage: tuple[int, ...] = DEFAULT_STORAGE
    name = "cortex_m.flash"
    unit = "B"
    channel_multiple = _PASS

    def __call__(self, use: Usage) -> Tensor:
        """Bytes."""
        channels = total([layer.weight.counts[..., 1:].sum(-1) for layer in use.layers if is_computed(layer)])
        return Size(self.storage)(use) + channels * _PER_CHANNEL + _CODE


def _per_mac(counts: Tensor) -> Tensor:
    """Instructions per multiplication of one channel, summed over channels; for each width, as `counts`."""
    fixed = counts.detach()
    rest = fixed - _PASS * floor_div(fixed, _PASS)
    exact = (fixed - rest) * _PACKED + (rest * _SINGLE).clamp_max(_PASS * _PACKED)
    return with_slope(exact, counts, _PACKED)


DEVICE: Device = Device("cortex_m", _SOURCE, {"instructions": Instructions(), "flash": Flash()})
