"""A training that is killed after so many steps."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F


class Killed(Exception):  # noqa: N818, no mistake of anyone
    """What ends it."""


def until(calls: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss that works for so many steps."""
    left = [calls]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return F.cross_entropy(output, target)

    return loss
