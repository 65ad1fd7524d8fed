"""What the options of the command line mean: methods, patterns, widths, shapes, models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zerobit.api import fitting_granularity
from zerobit.cost.base import AbstractCost
from zerobit.cost.parse import make_price, parse_budgets
from zerobit.errors import BudgetError, CaptureError, FormatError, PlanError
from zerobit.formats import check_bits
from zerobit.importing import import_object
from zerobit.plan import Plan
from zerobit.search.control import Control, Count
from zerobit.search.method import AbstractMethod
from zerobit.search.methods import named_method

#: The method of who names none.
_DEFAULT = "softmax"
#: Temperature at which soft choices end, nearly hard.
_SOFT_END = 0.05


@dataclass(frozen=True)
class MethodOptions:
    """What is asked of a method; None or False where nothing is.

    Attributes:
        weight_bits: widths offered to weights, "0,2,4,8"; the one width of a fixed method.
        activation_bits: widths offered to activations.
        granularity: of widths.
        shared: the published coupled form.
        sampling: of choices.
        power_of_two: only widths of 2, 4 and 8 bit.
        plan: file of a plan.
    """

    weight_bits: str | None = None
    activation_bits: str | None = None
    granularity: str | None = None
    shared: bool = False
    sampling: str | None = None
    power_of_two: bool = False
    plan: Path | None = None

    def given(self) -> dict[str, Any]:
        """Those that were asked for."""
        return {name: value for name, value in vars(self).items() if value is not None and value is not False}


def make_method(
    name: str, asked: MethodOptions | None = None, costs: Callable[[], Sequence[AbstractCost]] = tuple
) -> AbstractMethod | None:
    """The method of a name; None for the default with nothing asked of it, which suits itself to the costs.

    Args:
        name: as on the command line.
        asked: of it.
        costs: what is charged for; a softmax has a width per layer where that suits them better.

    Raises:
        FormatError: there is none of that name, it has no such option, or a value that is not allowed.
        PlanError: the plan can't be read.
    """
    entry, given = named_method(name), (asked or MethodOptions()).given()
    for option, value in given.items():
        if option not in entry.options:
            what = "is given" if value is True else f"is {str(value)!r}"
            takes = ", ".join(_written(o) for o in entry.options)
            msg = f"`{option}` {what}; `method` {name!r} has no such option, allowed are {takes}; leave it out"
            raise FormatError(msg)
    if name == _DEFAULT and not given:
        return None
    arguments = _fixed_arguments(given) if name == "fixed" else _arguments(given)
    if name == _DEFAULT and not {"granularity", "shared"} & arguments.keys():
        arguments["granularity"] = fitting_granularity(costs())
    return entry.load()(**arguments)


def _arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a class is made with."""
    result = dict(given)
    for option in ("weight_bits", "activation_bits"):
        if option in given:
            result[option] = parse_widths(option, given[option])
    if given.get("sampling", "hard") != "hard":
        result["end_temperature"] = _SOFT_END
    if result.pop("power_of_two", False):
        result["restrict"] = "power_of_two"
    return result


def _fixed_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """What `Fixed` is made with."""
    if ("weight_bits" in given) == ("plan" in given):
        what = "neither is given" if "plan" not in given else "both are given"
        msg = f"`weight_bits` or `plan`: {what}; `method` 'fixed' takes one of them; write --weight-bits 4"
        raise FormatError(msg)
    result = _arguments(given)
    if "plan" in given:
        return {**result, "plan": _read_plan(given["plan"])}
    widths = check_bits("weight_bits", result.pop("weight_bits"), allow_zero=False)
    if len(widths) != 1:
        msg = f"`weight_bits` is {given['weight_bits']!r}; `method` 'fixed' takes one width, from 2 to 8; write one"
        raise FormatError(msg)
    return {**result, "bits": widths[0]}


def _read_plan(path: Path) -> Plan:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"`plan` {path} can't be read ({error}); it must be a plan.json of a run; give another file"
        raise PlanError(msg) from None
    return Plan.from_json(text)


def _written(option: str) -> str:
    return "--" + option.replace("_", "-")


def asked_costs(
    budget: Sequence[str] | None, max_drop: float | None, strength: str | None, targets: Sequence[str]
) -> Sequence[AbstractCost]:
    """What a command charges for.

    Raises:
        BudgetError: none or several of the first three are given, or one can't be read.
    """
    limits = parse_budgets(budget) if budget else None
    return make_price(limits, parse_strength(strength), max_drop, targets).costs


def parse_strength(text: str | None) -> tuple[str, float] | None:
    """(cost, strength) of "size=0.5".

    Raises:
        BudgetError: it can't be read.
    """
    if text is None:
        return None
    name, _, value = (part.strip() for part in text.partition("="))
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
        CaptureError: it can't be imported or called, or makes something else.
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
    try:
        model = factory()
    except Exception as error:  # a factory of the user's, or a class that wants arguments
        msg = f"`target` {target!r} can't be called without arguments ({type(error).__name__}: {error}); {advice}"
        raise CaptureError(msg) from error
    if not isinstance(model, nn.Module):
        msg = f"`target` {target!r} made a {type(model).__name__}; it must make a torch.nn.Module; {advice}"
        raise CaptureError(msg)
    return model
