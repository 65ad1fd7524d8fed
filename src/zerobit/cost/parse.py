"""Budgets and prices as users write them."""

from collections.abc import Mapping, Sequence

from zerobit.cost.analytic import Size
from zerobit.cost.base import AbstractCost
from zerobit.cost.own import load_costs
from zerobit.cost.price import AbstractPrice, Budget, Budgets, Strength
from zerobit.cost.registry import cost_names, named_cost
from zerobit.errors import BudgetError

#: Budget that preferences are learned at when the drop is limited.
_MAX_DROP_SEARCH = "25%"


def make_price(
    budget: Mapping[str, str | float] | str | float | None,
    strength: tuple[str, float] | None,
    max_drop: float | None,
    targets: Sequence[str | AbstractCost] = (),
    *,
    chooses: bool = True,
) -> AbstractPrice:
    """The price that `compress` trains against; exactly one of the first three arguments is to be given.

    Where nothing is chosen, there need not be any: the price is then nothing.

    Args:
        budget: as for `compress`.
        strength: as for `compress`.
        max_drop: as for `compress`.
        targets: costs of the user's own, which the others can name.
        chooses: whether the method has anything to choose.

    Raises:
        BudgetError: none or several are given, or one can't be read; or a drop is to be kept where nothing is chosen.
    """
    given = [x is not None for x in (budget, strength, max_drop)]
    if not chooses and max_drop is not None:
        msg = (
            f"`max_drop` is {max_drop}, but `method` has fixed widths, of which none is smaller; allowed is a budget, "
            "which is checked, or nothing; leave it out, or search with another method"
        )
        raise BudgetError(msg)
    if not chooses and not any(given):
        _own_costs(targets)
        return Strength(Size(), 0.0)
    if sum(given) != 1:
        msg = (
            f"`budget`, `strength`, `max_drop` are {budget!r}, {strength!r}, {max_drop!r}; exactly one must be given, "
            "for example budget={'size': '25%'}, which is --budget size=25% as an option"
        )
        raise BudgetError(msg)
    own = _own_costs(targets)
    if strength is not None:
        if not isinstance(strength, (tuple, list)) or len(strength) != 2:  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"`strength` is {strength!r}; allowed is (cost, number); write for example ('size', 0.5)"
            raise BudgetError(msg)
        return Strength(_cost(strength[0], own), strength[1])
    if max_drop is not None:
        if not max_drop > 0:
            msg = (
                f"`max_drop` is {max_drop}; allowed are positive numbers, 0.01 (--max-drop 1) is one point; choose one"
            )
            raise BudgetError(msg)
        return Budget(Size(), _MAX_DROP_SEARCH)
    assert budget is not None
    entries = dict(budget) if isinstance(budget, Mapping) else {"size": budget}
    budgets = [Budget(_cost(name, own), limit) for name, limit in entries.items()]
    return budgets[0] if len(budgets) == 1 else Budgets(budgets)


def _own_costs(targets: Sequence[str | AbstractCost]) -> dict[str, AbstractCost]:
    """By every name that can be written.

    Raises:
        BudgetError: one can't be read, or two have one name.
    """
    result: dict[str, AbstractCost] = {}
    for target in targets:
        named = load_costs(target) if isinstance(target, str) else {target.name: target}
        twice = next((name for name in named if name in result or name in cost_names()), None)
        if twice is not None:
            msg = f"`target` {target!r} is called {twice!r}, a name that is taken; allowed are others; rename it"
            raise BudgetError(msg)
        result |= named
    return result


def _cost(name: str, own: Mapping[str, AbstractCost]) -> AbstractCost:
    return own[name] if name in own else named_cost(name, tuple(own))


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
