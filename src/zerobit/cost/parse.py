"""Budgets and prices as users write them."""

from collections.abc import Mapping, Sequence

from zerobit.cost.analytic import Bops, Macs, Size
from zerobit.cost.base import AbstractCost
from zerobit.cost.price import AbstractPrice, Budget, Strength
from zerobit.cost.table import TableLatency, target_names
from zerobit.errors import BudgetError

#: Budget that preferences are learned at when the drop is limited.
_MAX_DROP_SEARCH = "25%"


def named_cost(name: str) -> AbstractCost:
    """The cost that a budget names: "size", "macs", "bops", or a device with a table.

    Raises:
        BudgetError: there is none of that name.
    """
    formulas: dict[str, AbstractCost] = {"size": Size(), "macs": Macs(), "bops": Bops()}
    if name in formulas:
        return formulas[name]
    if name in target_names():
        return TableLatency.load(name)
    msg = f"`budget` names the cost {name!r}; allowed are {(*formulas, *target_names())}; choose one of these"
    raise BudgetError(msg)


def make_price(
    budget: Mapping[str, str | float] | str | float | None,
    strength: tuple[str, float] | None,
    max_drop: float | None,
) -> AbstractPrice:
    """The price that `compress` trains against; exactly one argument is to be given.

    Raises:
        BudgetError: none or several are given, or one can't be read.
    """
    given = [x is not None for x in (budget, strength, max_drop)]
    if sum(given) != 1:
        msg = (
            f"`budget`, `strength`, `max_drop` are {budget!r}, {strength!r}, {max_drop!r}; exactly one must be given, "
            "for example budget={'size': '25%'}"
        )
        raise BudgetError(msg)
    if strength is not None:
        return Strength(named_cost(strength[0]), strength[1])
    if max_drop is not None:
        if not max_drop > 0:
            msg = f"`max_drop` is {max_drop}; allowed are positive numbers, 0.01 is one point; choose one"
            raise BudgetError(msg)
        return Budget(Size(), _MAX_DROP_SEARCH)
    assert budget is not None
    entries = dict(budget) if isinstance(budget, Mapping) else {"size": budget}
    if len(entries) != 1:
        msg = f"`budget` is {entries}; exactly one cost can be limited; give one, such as {{'size': '25%'}}"
        raise BudgetError(msg)
    ((name, limit),) = entries.items()
    return Budget(named_cost(name), limit)


def parse_budgets(entries: Sequence[str]) -> dict[str, str]:
    """{"size": "25%"} from "size=25%" entries.

    Raises:
        BudgetError: an entry without "=".
    """
    result = {}
    for entry in entries:
        name, equals, limit = entry.partition("=")
        if not (name and equals and limit):
            msg = f"`budget` is {entry!r}; allowed is COST=LIMIT, such as size=25% or size=64kB; write that"
            raise BudgetError(msg)
        if name.strip() in result:
            msg = f"`budget` limits {name.strip()!r} twice; once is allowed; leave one out"
            raise BudgetError(msg)
        result[name.strip()] = limit.strip()
    return result
