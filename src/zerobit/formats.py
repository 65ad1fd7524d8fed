"""How integers encode numbers: `Format`, and the bit grid every width lives on."""

from collections.abc import Sequence
from dataclasses import dataclass

from zerobit.errors import FormatError

#: Widths a channel can have. 0 removes it; 1 is missing because a symmetric 1-bit grid has no level but zero.
GRID: tuple[int, ...] = (0, 2, 3, 4, 5, 6, 7, 8)
#: Widths that the default targets (ONNX, packed C) store without waste.
DEFAULT_STORAGE: tuple[int, ...] = (2, 4, 8)


@dataclass(frozen=True)
class Format:
    """An integer number format.

    Attributes:
        bits: value bits, 2..8; the levels are counted by these.
        signed: whether negative levels exist.
        full_range: for signed formats, whether the lowest two's-complement level is used. Weights leave it out
            by default (2 bit: -1, 0, 1), so that the grid is symmetric.
        storage: widths that the target can hold; a value takes the smallest that fits.
    """

    bits: int
    signed: bool
    full_range: bool = False
    storage: tuple[int, ...] = DEFAULT_STORAGE

    def __post_init__(self) -> None:
        check_bits("bits", (self.bits,), allow_zero=False)
        if not any(width >= self.bits for width in self.storage):
            msg = (
                f"`bits` is {self.bits}, but the target stores at most {max(self.storage)} bits per value; "
                f"choose a width up to {max(self.storage)}"
            )
            raise FormatError(msg)

    @property
    def low(self) -> int:
        """Lowest level."""
        if not self.signed:
            return 0
        return -(2 ** (self.bits - 1)) + (0 if self.full_range else 1)

    @property
    def high(self) -> int:
        """Highest level."""
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1

    @property
    def storage_bits(self) -> int:
        """Bits that one value takes on the target."""
        return min(width for width in self.storage if width >= self.bits)


def check_bits(argument: str, widths: Sequence[int], *, allow_zero: bool) -> tuple[int, ...]:
    """Return the widths sorted and unique.

    Raises:
        FormatError: a width is not on the grid, or there is none; names `argument`.
    """
    allowed = GRID if allow_zero else GRID[1:]
    wrong = [width for width in widths if type(width) is not int or width not in allowed]
    if wrong or not any(widths):
        what = f"{wrong[0]!r} in {tuple(widths)}" if wrong else f"{tuple(widths)}"
        msg = (
            f"`{argument}` holds {what}; allowed are {allowed} "
            f"({'0 removes the channel, ' if allow_zero else ''}1 bit has no level but zero); choose from these"
        )
        raise FormatError(msg)
    return tuple(sorted(set(widths)))
