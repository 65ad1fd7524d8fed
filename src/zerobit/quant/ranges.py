"""Steps found from data: least squared error."""

import torch
from torch import Tensor

#: Candidate clips, as shares of the largest magnitude; 2-bit weights want about a third, 8-bit ones all of it.
_SHARES = torch.linspace(0.15, 1.0, 69)
_TINY = 1e-8
#: Values that are looked at together, of rows and clips. All of a large layer, in new memory for each clip, take twenty
#: times as long; a small layer, one clip at a time, ten times as long.
_AT_ONCE = 2**17


@torch.no_grad()
def least_squares_step(x_CK: Tensor, low: int, high: int) -> Tensor:
    """Step per row that minimises the squared quantisation error over a grid of clips.

    Args:
        x_CK: [C, K].
        low: lowest level.
        high: highest level.

    Returns:
        [C], positive; a row of zeros, which may be trained to be other, gets the median of the others', and where there
        are none a range of 1.
    """
    rows = max(1, _AT_ONCE // max(1, x_CK.shape[1]))
    steps = torch.cat([_least_squares_step(part_CK, low, high) for part_CK in x_CK.split(rows)])
    is_zero = (x_CK == 0).all(1)
    usual = steps[~is_zero].median() if not is_zero.all() else 1 / high
    return torch.where(is_zero, usual, steps)


def _least_squares_step(x_CK: Tensor, low: int, high: int) -> Tensor:
    largest_C = x_CK.abs().amax(1).clamp_min(_TINY)
    shares_S = largest_C.new_tensor([share / high for share in _SHARES.tolist()])
    steps_SC = shares_S[:, None] * largest_C
    together = max(1, _AT_ONCE // max(1, x_CK.numel()))
    errors_SC = torch.cat([_squared_error(x_CK, part_SC, low, high) for part_SC in steps_SC.split(together)])
    best_1C = errors_SC.argmin(0, keepdim=True)  # the first of equal ones
    return steps_SC.gather(0, best_1C)[0]


def _squared_error(x_CK: Tensor, steps_SC: Tensor, low: int, high: int) -> Tensor:
    levels_SCK = torch.div(x_CK, steps_SC[..., None]).round_().clamp_(low, high)
    return levels_SCK.mul_(steps_SC[..., None]).sub_(x_CK).square_().sum(2)


def min_max_step(x_CK: Tensor, bits: int) -> Tensor:
    """Step 2 m / (2^bits - 1) with m the largest magnitude of a row (Motetti et al., IEEE TC 2024, official code).

    The largest weight would lie halfway between two levels, where one rounding more decides; a step smaller by 1e-5
    puts it safely on the side that ties to even put it.
    """
    span = 2 * (1 - 1e-5) * x_CK.detach().abs().amax(1)
    return torch.where(span > 0, span, torch.ones_like(span)) / (2**bits - 1)
