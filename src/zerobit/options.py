"""What the options of the command line mean: methods, patterns, widths, shapes, models."""

from collections.abc import Sequence

import torch
from torch import nn

from zerobit.cost.parse import parse_budgets
from zerobit.errors import BudgetError, CaptureError, FormatError
from zerobit.importing import import_object
from zerobit.search.control import Control, Count
from zerobit.search.method import AbstractMethod
from zerobit.search.methods.softmax import ChannelSoftmax


def make_method(name: str, *, shared: bool, sampling: str) -> AbstractMethod | None:
    """The method of a name; None for the default, which starts near the budget.

    Raises:
        FormatError: there is none of that name, or no such sampling.
    """
    if name != "softmax":
        msg = f"`method` is {name!r}; allowed are ('softmax',); choose one of these"
        raise FormatError(msg)
    if not shared and sampling == "hard":
        return None
    soft = sampling != "hard"
    return ChannelSoftmax(shared=shared, sampling=sampling, end_temperature=0.05 if soft else 1.0)  # type: ignore[arg-type]


def parse_strength(text: str | None) -> tuple[str, float] | None:
    """(cost, strength) of "size=0.5".

    Raises:
        BudgetError: it can't be read.
    """
    if text is None:
        return None
    ((name, value),) = parse_budgets([text]).items()
    try:
        return name, float(value)
    except ValueError:
        msg = f"`strength` is {text!r}; allowed is COST=NUMBER, such as size=0.5; write that"
        raise BudgetError(msg) from None


def make_control(
    frozen: Sequence[str] | None,
    bits: Sequence[str] | None,
    min_channels: Sequence[str] | None,
    multiple_of: Sequence[str] | None,
) -> Control:
    """The user's wishes from the entries of options.

    Args:
        frozen: patterns.
        bits: "PATTERN=8" or "PATTERN=4,8".
        min_channels: "8", or "PATTERN=8".
        multiple_of: as `min_channels`.

    Raises:
        FormatError: an entry that can't be read, or a number that can't be.
    """
    widths: dict[str, list[int]] = {}
    for entry in bits or ():
        pattern, _, text = entry.rpartition("=")
        parts = text.split(",")
        if not pattern or not all(part.strip().isdigit() for part in parts):
            msg = f"`bits` is {entry!r}; allowed is PATTERN=WIDTHS, such as stem.*=8 or head=4,8; write that"
            raise FormatError(msg)
        widths[pattern] = [int(part) for part in parts]
    return Control.of(frozen or (), widths, _counts("min_channels", min_channels), _counts("multiple_of", multiple_of))


def _counts(argument: str, entries: Sequence[str] | None) -> Count | None:
    """A number for all groups, or pattern -> number."""
    found: dict[str, int] = {}
    for entry in entries or ():
        pattern, _, text = entry.rpartition("=")
        if not text.strip().isdigit() or (not pattern and len(entries or ()) > 1):
            msg = (
                f"`{argument}` is {list(entries or ())}; allowed is one NUMBER, or entries PATTERN=NUMBER; "
                "write for example 8 or stem.*=8"
            )
            raise FormatError(msg)
        found[pattern] = int(text)
    return None if not found else found.get("", found)


def parse_widths(argument: str, text: str) -> tuple[int, ...]:
    """Widths of "2,4,8".

    Args:
        argument: as it is called in messages.
        text: as written.

    Raises:
        FormatError: it can't be read.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        msg = f"`{argument}` is {text!r}; allowed are widths with commas between them; write for example 2,4,8"
        raise FormatError(msg)
    return tuple(int(part) for part in parts)


def parse_input(text: str) -> tuple[str, torch.Tensor]:
    """Name, or "", and zeros of "1,3,32,32", "1,16:int64" or "tokens=1,16:int64"."""
    name, _, rest = text.rpartition("=")
    shape, _, kind = rest.partition(":")
    kinds = {"float32": torch.float32, "int64": torch.int64, "int32": torch.int32, "bool": torch.bool}
    kind = kind or "float32"
    parts = shape.replace("x", ",").split(",")
    if kind not in kinds or not all(p.strip().isdigit() and int(p) > 0 for p in parts):
        msg = (
            f"`input` is {text!r}; allowed are positive sizes with commas, behind a colon one of the types "
            f"{(*kinds,)}, before an equals sign a name; write for example 1,3,32,32 or tokens=1,16:int64"
        )
        raise CaptureError(msg)
    return name, torch.zeros([int(p) for p in parts], dtype=kinds[kind])


def make_model(target: str) -> nn.Module:
    """The model that MODULE:FACTORY makes.

    Raises:
        CaptureError: it can't be imported, or makes something else.
    """
    module_name, colon, factory_name = target.partition(":")
    advice = "write MODULE:FACTORY, such as zerobit.zoo.models:resnet8"
    if not colon:
        msg = f"`target` is {target!r}; allowed is MODULE:FACTORY; {advice}"
        raise CaptureError(msg)
    try:
        factory = import_object(module_name, factory_name)
    except (ImportError, AttributeError) as error:
        msg = f"`target` {target!r} can't be imported ({error}); {advice}"
        raise CaptureError(msg) from None
    model = factory()
    if not isinstance(model, nn.Module):
        msg = f"`target` {target!r} made a {type(model).__name__}; it must make a torch.nn.Module; {advice}"
        raise CaptureError(msg)
    return model
