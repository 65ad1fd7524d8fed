"""Discrete projection: the selection of most value that keeps every limit.

Size and BOPs are bilinear in kept inputs and outputs, so that units and widths are chosen in turn: moves in order of
value per cost find how many units stay, a knapsack gives the widths to what stays, and then other units are tried.
"""

from collections.abc import Sequence

from zerobit.cost.price import Limit
from zerobit.cut.choices import Bools, Offer, Selection, preferred
from zerobit.cut.pricing import Pricing
from zerobit.cut.reach import check_reachable
from zerobit.cut.tries import improve, settle
from zerobit.graph.ir import Graph


def project(graph: Graph, limits: Sequence[Limit], offer: Offer, keep: Bools) -> Selection:
    """The selection of most value within all limits, started from the preferred one.

    Args:
        graph: of the network.
        limits: what it may cost.
        offer: what can be chosen.
        keep: [U], units that the search keeps.

    Raises:
        BudgetError: no selection is within them; names the smallest reachable value of each cost.
    """
    least = check_reachable(graph, limits, offer)
    pricing = Pricing(graph, limits)
    selection = preferred(offer, keep)
    if not settle(pricing, selection):
        selection.take(least)
        settle(pricing, selection)
    improve(pricing, selection)
    assert pricing.fits(selection)
    return selection
