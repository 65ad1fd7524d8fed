"""`Plan`: JSON keeps everything, the hash keeps what matters, and nothing impossible can be written down."""

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zerobit.errors import PlanError
from zerobit.formats import GRID
from zerobit.plan import ActivationPlan, Plan, WeightPlan

NAMES = st.text(min_size=1, max_size=8)
STEPS = st.floats(min_value=1e-30, max_value=1e30, exclude_min=True, allow_subnormal=False)


@st.composite
def weight_plans(draw: st.DrawFn) -> WeightPlan:
    bits = tuple(draw(st.lists(st.sampled_from(GRID), min_size=1, max_size=5)))
    steps = tuple(draw(STEPS) if b else 0.0 for b in bits)
    return WeightPlan(bits, draw(st.sampled_from([steps, None])), draw(st.booleans()))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    units = draw(st.dictionaries(NAMES, st.integers(1, 6), max_size=3))
    kept = {name: tuple(sorted(draw(st.sets(st.integers(0, count - 1), min_size=1)))) for name, count in units.items()}
    activation = st.builds(
        ActivationPlan,
        st.lists(NAMES, min_size=1, max_size=2).map(tuple),
        st.sampled_from(GRID[1:]),
        st.booleans(),
        STEPS,
    )
    return Plan(
        units,
        kept,
        draw(st.dictionaries(NAMES, weight_plans(), max_size=3)),
        draw(st.dictionaries(NAMES, activation, max_size=3)),
    )


@given(plans())
def test_json_keeps_everything(plan: Plan) -> None:
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.hash == plan.hash
    assert again.to_json() == plan.to_json()


@given(plans())
def test_net_bits_are_the_plan(plan: Plan) -> None:
    bits = plan.net_bits()
    for name, kept in plan.kept.items():
        assert torch.nonzero(bits.keep[name])[:, 0].tolist() == list(kept)
        assert len(bits.keep[name]) == plan.units[name]
    assert {name: tuple(d.bits.int().tolist()) for name, d in bits.weights.items()} == {
        name: w.bits for name, w in plan.weights.items()
    }
    assert set(bits.activations) == {t for a in plan.activations.values() for t in a.tensors}


PLAN = Plan(
    units={"conv": 3},
    kept={"conv": (0, 2)},
    weights={"conv.weight": WeightPlan((4, 0, 8), (0.5, 0.0, 0.25))},
    activations={"x": ActivationPlan(("x",), 8, True, 0.1)},
)


def _with_weight(**changes: Any) -> Plan:
    weight = dataclasses.replace(PLAN.weights["conv.weight"], **changes)
    return dataclasses.replace(PLAN, weights={"conv.weight": weight})


def _with_activation(**changes: Any) -> Plan:
    activation = dataclasses.replace(PLAN.activations["x"], **changes)
    return dataclasses.replace(PLAN, activations={"x": activation})


@pytest.mark.parametrize(
    "change",
    [
        lambda: dataclasses.replace(PLAN, kept={"conv": (0,)}),
        lambda: dataclasses.replace(PLAN, kept={"conv": (0, 1)}),
        lambda: _with_weight(bits=(4, 0, 4)),
        lambda: _with_activation(bits=4),
    ],
)
def test_hash_tells_kept_units_and_widths_apart(change: Callable[[], Plan]) -> None:
    assert change().hash != PLAN.hash


@pytest.mark.parametrize(
    "change",
    [
        lambda: _with_weight(step=(0.25, 0.0, 0.5)),
        lambda: _with_weight(step=None),
        lambda: _with_activation(step=0.2),
    ],
)
def test_hash_does_not_cover_ranges(change: Callable[[], Plan]) -> None:
    assert change() != PLAN
    assert change().hash == PLAN.hash


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: dataclasses.replace(PLAN, kept={}), "`kept`"),
        (lambda: dataclasses.replace(PLAN, kept={"other": (0,)}), "`kept`"),
        (lambda: dataclasses.replace(PLAN, kept={"conv": ()}), "`kept.conv`"),
        (lambda: dataclasses.replace(PLAN, kept={"conv": (2, 0)}), "`kept.conv`"),
        (lambda: dataclasses.replace(PLAN, kept={"conv": (0, 0)}), "`kept.conv`"),
        (lambda: dataclasses.replace(PLAN, kept={"conv": (-1, 0)}), "`kept.conv`"),
        (lambda: dataclasses.replace(PLAN, kept={"conv": (0, 3)}), "`kept.conv`"),
        (lambda: _with_weight(bits=(4, 0, 1)), "`weights.conv.weight.bits`"),
        (lambda: _with_weight(bits=(4, 0, 9)), "`weights.conv.weight.bits`"),
        (lambda: _with_weight(step=(0.5, 0.25)), "`weights.conv.weight.step`"),
        (lambda: _with_weight(step=(0.5, 0.0, 0.0)), "`weights.conv.weight.step`"),
        (lambda: _with_weight(step=(0.5, 0.0, -1.0)), "`weights.conv.weight.step`"),
        (lambda: _with_weight(step=(0.5, 0.0, math.nan)), "`weights.conv.weight.step`"),
        (lambda: _with_weight(step=(0.5, 0.0, math.inf)), "`weights.conv.weight.step`"),
        (lambda: _with_activation(bits=0), "`activations.x`"),
        (lambda: _with_activation(bits=1), "`activations.x`"),
        (lambda: _with_activation(step=0.0), "`activations.x`"),
        (lambda: _with_activation(step=math.nan), "`activations.x`"),
        (lambda: _with_activation(step=math.inf), "`activations.x`"),
    ],
)
def test_impossible_plans_are_refused_by_name(make: Callable[[], Plan], named: str) -> None:
    with pytest.raises(PlanError, match=named):
        make()


def _edited(*path: str, value: Any) -> str:
    data: dict[str, Any] = json.loads(PLAN.to_json())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        PLAN.to_json()[:-10],
        _edited("version", value=2),
        _edited("kept", value=[1, 2]),
        _edited("kept", "conv", value="all"),
        _edited("kept", "conv", value=None),
        _edited("units", "conv", value="many"),
        _edited("weights", "conv.weight", "bits", value=["four", 0, 8]),
        _edited("weights", "conv.weight", "bits", value=[4, 0, 2.5]),
        _edited("weights", "conv.weight", "bits", value=[4, 0, 12]),
        _edited("weights", "conv.weight", "step", value=["x", 0, 1]),
        _edited("weights", "conv.weight", value={}),
        _edited("activations", "x", "bits", value=None),
        _edited("activations", "x", "bits", value=7.5),
        _edited("activations", "x", "step", value=0),
        _edited("activations", "x", "step", value="wide"),
        _edited("activations", "x", "step", value=1e-50),
        _edited("activations", "x", "signed", value="false"),
        _edited("weights", "conv.weight", "full_range", value=1),
        _edited("weights", "conv.weight", "bits", value=[math.inf, 0, 8]),
        _edited("weights", "conv.weight", "step", value=[1e300, 0, 1]),
        _edited("activations", "x", "step", value=10**400),
        _edited("units", "conv", value=math.inf),
    ],
)
def test_text_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(text)


def test_a_plan_can_be_edited_by_hand() -> None:
    data = json.loads(PLAN.to_json())
    data["kept"]["conv"] = [2]
    data["weights"]["conv.weight"].update(bits=[0, 0, 2], step=None)
    plan = Plan.from_json(json.dumps(data))
    assert plan.kept["conv"] == (2,)
    assert plan.weights["conv.weight"] == WeightPlan((0, 0, 2), None)
