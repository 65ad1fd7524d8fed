"""Means and LayerNorm that count channels that are gone as zeros.

A channel that is masked reads as zero, but it still counts in a mean over channels. When it is cut, these ops take the
place of torch's: they are told how many channels there were. So what a network computes does not change by the cut.
They are registered under `torch.ops.zerobit` and made of plain aten calls, which is what an export sees.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("zerobit", "DEF")

#: Overloads, as nodes of a program name them.
MEAN, AMAX, AMIN, LAYER_NORM, RMS_NORM, GROUP_NORM = (
    f"zerobit.{name}.default" for name in ("mean", "amax", "amin", "layer_norm", "rms_norm", "group_norm")
)


def mean(self: Tensor, dim: Sequence[int], keepdim: bool, counts: Sequence[int]) -> Tensor:
    """Mean over dimensions as if they were larger, what is not there being zero.

    Args:
        self: any tensor.
        dim: the dimensions.
        keepdim: whether they stay, at size 1.
        counts: for each how many positions it had; 0 for as many as it has, which a size that is free needs.
    """
    count = 1
    for d, given in zip(dim, counts, strict=True):
        count = count * (given or self.shape[d])
    return self.sum(list(dim), keepdim) / count


def amax(self: Tensor, dim: Sequence[int], keepdim: bool) -> Tensor:
    """Maximum over dimensions as if one value more were zero: a channel that is gone."""
    return self.amax(list(dim), keepdim).clamp_min(0)


def amin(self: Tensor, dim: Sequence[int], keepdim: bool) -> Tensor:
    """Minimum over dimensions as if one value more were zero."""
    return self.amin(list(dim), keepdim).clamp_max(0)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    count: int,
) -> Tensor:
    """LayerNorm as if the last dimensions held `count` values, those that are not there being zero.

    Args:
        input: [..., *normalized_shape].
        normalized_shape: sizes of the dimensions that statistics are taken over, as they are now.
        weight: of that shape, or None.
        bias: of that shape, or None.
        eps: added to the variance.
        count: number of values there were.
    """
    dims = list(range(-len(normalized_shape), 0))
    centre = input.sum(dims, True) / count
    apart = input - centre
    present = 1
    for size in normalized_shape:
        present *= size
    variance = (apart.square().sum(dims, True) + (count - present) * centre.square()) / count
    result = apart * torch.rsqrt(variance + eps)
    result = result if weight is None else result * weight
    return result if bias is None else result + bias


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None, count: int
) -> Tensor:
    """RMSNorm as if the last dimensions held `count` values; arguments as for `layer_norm`.

    Without `eps` that of the input's type is added, as torch does.
    """
    dims = list(range(-len(normalized_shape), 0))
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    result = input * torch.rsqrt(input.square().sum(dims, True) / count + eps)
    return result if weight is None else result * weight


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, count: int
) -> Tensor:
    """GroupNorm with equally many channels left in each group, as if a group still held `count` of them.

    Args:
        input: [batch, channels, *space].
        num_groups: number of groups.
        weight: [channels] or None.
        bias: [channels] or None.
        eps: added to the variance.
        count: channels that each group had.
    """
    grouped = input[..., None].unflatten(1, (num_groups, -1)).flatten(3)
    values = count * grouped.shape[3]
    centre = grouped.sum((2, 3), True) / values
    apart = grouped - centre
    missing = values - grouped.shape[2] * grouped.shape[3]
    variance = (apart.square().sum((2, 3), True) + missing * centre.square()) / values
    result = (apart * torch.rsqrt(variance + eps)).reshape(input.shape)
    shape = (1, -1, *(1,) * (input.dim() - 2))
    result = result if weight is None else result * weight.reshape(shape)
    return result if bias is None else result + bias.reshape(shape)


_NORM = "Tensor? weight, Tensor? bias, float eps, int count) -> Tensor"
_SCHEMAS = {
    mean: "mean(Tensor self, int[] dim, bool keepdim, int[] counts) -> Tensor",
    amax: "amax(Tensor self, int[] dim, bool keepdim) -> Tensor",
    amin: "amin(Tensor self, int[] dim, bool keepdim) -> Tensor",
    layer_norm: f"layer_norm(Tensor input, SymInt[] normalized_shape, {_NORM}",
    rms_norm: "rms_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, float? eps, int count) -> Tensor",
    group_norm: f"group_norm(Tensor input, int num_groups, {_NORM}",
}
for _function, _schema in _SCHEMAS.items():
    _LIBRARY.define(_schema)
    _LIBRARY.impl(_function.__name__, _function, "CompositeImplicitAutograd")
