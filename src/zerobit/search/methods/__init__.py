"""Methods: pairs of gate and width with a schedule; one file per method, imported when it is named."""

from dataclasses import dataclass
from importlib import import_module
from typing import cast

from zerobit.errors import FormatError
from zerobit.search.method import AbstractMethod


@dataclass(frozen=True)
class Entry:
    """A method that can be named.

    Attributes:
        module: in this package.
        type_name: of its class there.
        options: of the command line that it takes.
    """

    module: str
    type_name: str
    options: tuple[str, ...]

    def load(self) -> type[AbstractMethod]:
        """Its class."""
        return cast("type[AbstractMethod]", getattr(import_module(f"{__name__}.{self.module}"), self.type_name))


_WIDTHS = ("weight_bits", "activation_bits")
METHODS: dict[str, Entry] = {
    "softmax": Entry("softmax", "ChannelSoftmax", (*_WIDTHS, "granularity", "shared", "sampling")),
    "djpq": Entry("djpq", "Djpq", (*_WIDTHS, "granularity", "power_of_two")),
    "fracbits": Entry("fracbits", "FracBits", (*_WIDTHS, "granularity")),
    "bsq": Entry("bsq", "Bsq", (*_WIDTHS, "granularity")),
    "fixed": Entry("fixed", "Fixed", (*_WIDTHS, "plan")),
    "sequential": Entry("sequential", "PruneThenQuantize", (*_WIDTHS, "granularity")),
}


def named_method(name: str) -> Entry:
    """The method of a name.

    Raises:
        FormatError: there is none.
    """
    if name not in METHODS:
        msg = f"`method` is {name!r}; allowed are {tuple(METHODS)}; choose one of these"
        raise FormatError(msg)
    return METHODS[name]
