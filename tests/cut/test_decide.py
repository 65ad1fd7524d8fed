"""`decide` reads what evaluation computes, and gives one plan wherever it is called."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch

from searches import METHODS, attached, scramble
from zerobit.cost import device, liveness, memory, registry, terms
from zerobit.cost.price import Budget
from zerobit.cost.registry import named_cost
from zerobit.cut.decide import check_limits, decide, read_offer
from zerobit.errors import BudgetError
from zerobit.search.method import AbstractMethod
from zerobit.search.methods.djpq import Djpq
from zerobit.search.methods.softmax import ChannelSoftmax

#: What `decide` adds to equal preferences is smaller.
_CLEAR = 0.01


@pytest.mark.parametrize("name", ["digits", "inverted_residual"])
@pytest.mark.parametrize("method", METHODS)
def test_a_unit_is_preferred_where_the_hard_choice_keeps_it(method: str, name: str) -> None:
    """Where many stay, no rule of how many must has a say."""
    net = scramble(attached(name, method), 3)
    offer, keep = read_offer(net)
    clear = np.isfinite(offer.keep_score) & (np.abs(offer.keep_score) > _CLEAR)
    for units in offer.units.values():
        own = clear[units]
        if keep[units].sum() > net.method.min_channels:
            assert np.array_equal((offer.keep_score[units] > 0)[own], keep[units][own])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("cost", ["size", "ne16", "ram", "diana"])
def test_the_plan_is_the_same_without_gradients(cost: str, mode: Callable[[], AbstractContextManager[None]]) -> None:
    net, price = scramble(attached("inverted_residual"), 1), Budget(named_cost(cost), "80%")
    plan = decide(net, price)
    with mode():
        assert decide(net, price) == plan


@pytest.mark.parametrize("cost", ["ram", "mpic", "diana", "gap8", "cortex_m"])
def test_a_cost_that_was_first_asked_without_gradients_has_them_later(cost: str) -> None:
    for kept in (liveness._layout, memory._live, device._columns, terms._bytes):
        kept.cache_clear()
    net = scramble(attached("digits", "activations"), 1).train()
    registry._costs.cache_clear()  # some keep what they computed
    found = named_cost(cost)
    with torch.inference_mode():
        Budget(found, "60%")(net)
    Budget(found, "60%")(net).backward()
    assert any(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())


@pytest.mark.parametrize(
    ("method", "cost", "share"),
    [
        (ChannelSoftmax(weight_bits=(8,), activation_bits=(2, 4, 8)), "bops", "26%"),
        (Djpq(min_channels=4), "ram", "20%"),
    ],
)
def test_what_narrower_activations_can_reach_is_not_refused_before_a_search(
    method: AbstractMethod, cost: str, share: str
) -> None:
    net = attached("digits", method)
    check_limits(net, Budget(named_cost(cost), share))
    with pytest.raises(BudgetError, match="smallest reachable"):
        decide(net, Budget(named_cost(cost), share))  # no search has narrowed them yet
    with pytest.raises(BudgetError, match="smallest reachable"):
        check_limits(net, Budget(named_cost(cost), "1%"))
