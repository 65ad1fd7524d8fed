"""No number stops being finite, whatever the settings; `benchmarks/numerical_safety.py` is the long form."""

import math

import pytest
import torch

from extremes import draw, run
from searches import METHODS
from zerobit.cost.price import Strength
from zerobit.search.methods.softmax import ChannelSoftmax
from zerobit.search.net import SearchNet


@pytest.mark.parametrize("method", METHODS)
def test_extreme_settings_leave_every_number_finite(method: str) -> None:
    """Other settings for each method, so that together they see most."""
    extreme = draw(METHODS[method], list(METHODS).index(method), "small")
    assert run(extreme).findings == (), extreme


def _spoil_bias(price: Strength, net: SearchNet) -> None:
    del price
    net.tensors()["fc.bias"].data[0] = math.nan


def _infinite(method: ChannelSoftmax, net: SearchNet) -> torch.Tensor:
    del method, net
    return torch.tensor(math.inf)


@pytest.mark.parametrize(
    ("owner", "name", "spoiled", "found"),
    [
        (Strength, "update", _spoil_bias, "step 1: 1 of 10 values of parameter fc.bias"),
        (
            ChannelSoftmax,
            "penalty",
            _infinite,
            "`loss` is inf in search, epoch 1, step 1",
        ),
    ],
)
def test_what_is_not_finite_is_found(
    owner: type, name: str, spoiled: object, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, spoiled)
    seed = next(s for s in range(100) if draw(ChannelSoftmax(), s, "small").budget is None)
    assert run(draw(ChannelSoftmax(), seed, "small")).findings[0] == found
