"""Staircases that devices work in: exact in the forward, the average slope in the backward.

A tile costs the same half empty as full, so that the true derivative is 0 nearly everywhere and infinite at the edges.
Taking that of the identity instead makes a tile of b channels b times too dear. Here a step is spread over its tile:
slope times tile is exactly what the next tile costs.
"""

import torch
from torch import Tensor

#: Channels by which a count may miss a whole number: it is a sum of float32 probabilities, and must open no tile.
ROUNDING = 1e-4


def with_slope(exact: Tensor, count: Tensor, slope: float) -> Tensor:
    """`exact`, to the last bit, with a derivative of its own choosing.

    Args:
        exact: float64 [...], without a gradient.
        count: float64 [...], what the derivative is in.
        slope: the derivative.
    """
    if not count.requires_grad:
        return exact
    return exact + (count - count.detach()) * slope


def ceil_div(count: Tensor, tile: float) -> Tensor:
    """Number of tiles that hold `count`, which may be fractional: 0 -> 0, 0.5 -> 1, tile + 0.5 -> 2.

    Args:
        count: float64 [...], not negative.
        tile: size of a tile.

    Returns:
        float64 [...] of whole numbers; its derivative is 1 / tile.
    """
    return with_slope(torch.ceil((count.detach() - ROUNDING) / tile), count, 1 / tile)


def floor_div(count: Tensor, tile: float) -> Tensor:
    """Number of tiles that `count` fills.

    Args:
        count: float64 [...], not negative; may be fractional.
        tile: size of a tile.

    Returns:
        float64 [...] of whole numbers; its derivative is 1 / tile.
    """
    return with_slope(torch.floor((count.detach() + ROUNDING) / tile), count, 1 / tile)


def any_of(count: Tensor, tile: float) -> Tensor:
    """Whether there is anything to do: 1 if `count` is above 0. For what is paid once, however many channels there are.

    Args:
        count: float64 [...], not negative; may be fractional.
        tile: channels that share the payment; the step is spread over as many.

    Returns:
        float64 [...], 0 or 1; its derivative is 1 / tile up to `tile`, and 0 beyond.
    """
    step = (count.detach() > ROUNDING).to(count.dtype)
    return with_slope(step, count.clamp_max(tile), 1 / tile)


def soft_maximum(values: Tensor, sharpness: float = 20.0) -> Tensor:
    """The largest value; its gradient goes to all that are close to it.

    With the gradient of the maximum alone, the second largest would grow unseen until it is the largest.

    Args:
        values: float64 [..., N], not negative.
        sharpness: what is a share d below the largest gets exp(-sharpness * d) of the weight of the largest.

    Returns:
        float64 [...], exactly the maximum over the last dimension.
    """
    fixed = values.detach()
    largest = fixed.amax(-1)
    if not values.requires_grad:
        return largest
    relative = fixed / largest[..., None].clamp_min(torch.finfo(fixed.dtype).tiny)
    weight = torch.softmax(sharpness * relative, -1)
    return largest + (weight * (values - fixed)).sum(-1)
