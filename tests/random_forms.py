"""What a random op is: how it is drawn, for which sizes, and how it is built.

A form is applied to sizes without the batch: (channels, height, width), (positions, channels), or whatever ops made of
them. Dimensions in settings count the batch, as torch does: the first that is drawn is 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hypothesis import strategies as st
from torch import Tensor, nn

from cases import Forward

#: Dimensions of an intermediate result, without the batch.
Size = tuple[int, ...]
#: Numbers that make a form one op: channels, kernel, dimension ...
Settings = tuple[int, ...]
#: What is drawn for operands of these sizes; None where the form doesn't fit them.
Draw = Callable[[Sequence[Size]], st.SearchStrategy[Settings] | None]


@dataclass(frozen=True)
class Form:
    """A kind of op.

    Attributes:
        build: makes the module, from the sizes of its operands and its settings.
        draw: its settings.
        reads: number of operands.
        exact: whether sums of few-digit binary values stay exact, whatever their order.
    """

    build: Callable[[Sequence[Size], Settings], nn.Module]
    draw: Draw
    reads: int = 1
    exact: bool = False


#: Numbers of channels, simplest first.
WIDTHS = (4, 1, 2, 3, 6, 8)


def divisors(number: int, start: int = 1) -> list[int]:
    """Divisors from `start` on."""
    return [n for n in range(start, number + 1) if number % n == 0]


def ints(*choices: Sequence[int]) -> st.SearchStrategy[Settings]:
    """One of each of several choices."""
    return st.tuples(*(st.sampled_from(list(c)) for c in choices))


def ranked(*ranks: int) -> Callable[[Sequence[Size]], bool]:
    """Whether the first operand has one of these numbers of dimensions."""
    return lambda sizes: len(sizes[0]) in ranks


def always(sizes: Sequence[Size]) -> bool:
    return bool(sizes)


def function(
    function: Callable[..., Tensor],
    fits: Callable[[Sequence[Size]], bool] = always,
    *choices: Sequence[int],
    reads: int = 1,
    exact: bool = False,
) -> Form:
    """A form without parameters: its settings are handed on to the function."""
    return Form(
        lambda sizes, settings: Forward(lambda m, *x: function(*x, *settings)),
        lambda sizes: ints(*choices) if fits(sizes) else None,
        reads,
        exact,
    )


def dimensions(sizes: Sequence[Size], least: int = 1) -> list[int]:
    """Dimensions of the first operand that have at least this size."""
    return [d for d, size in enumerate(sizes[0], 1) if size >= least]


def along(
    function: Callable[..., Tensor],
    numbers: Callable[[int], Sequence[int]] = lambda size: [0],
    *,
    least: int = 2,
    even: bool = False,
    exact: bool = False,
) -> Form:
    """A form that works along one dimension: function(x, dim, number), number among those that fit its size."""

    def draw(sizes: Sequence[Size]) -> st.SearchStrategy[Settings] | None:
        dims = [d for d in dimensions(sizes, least) if not (even and sizes[0][d - 1] % 2)]
        pairs = [(d, n) for d in dims for n in numbers(sizes[0][d - 1])]
        return st.sampled_from(pairs) if pairs else None

    return Form(lambda sizes, settings: Forward(lambda m, x: function(x, *settings)), draw, exact=exact)


def windows(sizes: Sequence[Size]) -> bool:
    """Whether a window of two by two fits in."""
    return len(sizes[0]) == 3 and min(sizes[0][1:]) >= 2


def grows(sizes: Sequence[Size]) -> bool:
    """Whether there is room for more positions."""
    return len(sizes[0]) == 3 and max(sizes[0][1:]) <= 4


image, sequence = ranked(3), ranked(2)
