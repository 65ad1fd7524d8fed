"""Steps found from data: least squared error."""

import torch
from torch import Tensor

#: Candidate clips, as shares of the largest magnitude; 2-bit weights want about a third, 8-bit ones all of it.
_SHARES = torch.linspace(0.15, 1.0, 69)
_TINY = 1e-8
#: Values that are looked at together. All of a large layer, in new memory for each clip, take twenty times as long.
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
    largest = x_CK.abs().amax(1).clamp_min(_TINY)
    best, best_error = largest / high, torch.full_like(largest, torch.inf)
    scratch = torch.empty_like(x_CK)
    for share in _SHARES.tolist():
        step = largest * (share / high)
        torch.div(x_CK, step[:, None], out=scratch)
        error = scratch.round_().clamp_(low, high).mul_(step[:, None]).sub_(x_CK).square_().sum(1)
        better = error < best_error
        best, best_error = torch.where(better, step, best), torch.where(better, error, best_error)
    return best


def min_max_step(x_CK: Tensor, bits: int) -> Tensor:
    """Step 2 m / (2^bits - 1) with m the largest magnitude of a row (Motetti et al., IEEE TC 2024, official code).

    The largest weight would lie halfway between two levels, where one rounding more decides; a step smaller by 1e-5
    puts it safely on the side that ties to even put it.
    """
    span = 2 * (1 - 1e-5) * x_CK.detach().abs().amax(1)
    return torch.where(span > 0, span, torch.ones_like(span)) / (2**bits - 1)
