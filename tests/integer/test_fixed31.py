"""31-bit fixed point against exact fractions, and against the float twin on equal inputs of every layer."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from integer_networks import NETWORKS
from zerobit.errors import FormatError
from zerobit.integer.ir import Conv, Linear
from zerobit.integer.twins.fixed31 import (
    PAIR_SHIFTS,
    FixedPointRule,
    fixed_point,
    logit_scale,
    paired,
    run_fixed31,
)
from zerobit.integer.twins.float32 import OnnxRuntimeRule, run_float32
from zerobit.integer.walk import compute

RATIOS = st.floats(2.0**-70, 2.0**30 - 2)


@given(RATIOS, st.integers(-(2**31), 2**31 - 1))
def test_a_ratio_is_rounded_once(ratio: float, x: int):
    point = fixed_point(ratio)
    multiplier, shift = int(point.multiplier), int(point.shift)
    assert 0 <= multiplier < 2**31
    assert 1 <= shift <= 62
    if shift < 62:
        assert multiplier >= 2**30
        assert abs(Fraction(multiplier, 2**shift) / Fraction(ratio) - 1) <= Fraction(1, 2**31)
    wanted = (Fraction(x * multiplier, 2**shift) + Fraction(1, 2)).__floor__()
    assert int(point(np.array(x))) == wanted


@given(st.floats(2.0**-40, 2.0**17), st.floats(2.0**-40, 2.0**17))
def test_two_ratios_share_a_shift(left: float, right: float):
    m_left, m_right, shift = paired(left, right)
    assert PAIR_SHIFTS[0] <= shift <= PAIR_SHIFTS[1]
    assert max(m_left, m_right) < 2**31
    for multiplier, ratio in ((m_left, left), (m_right, right)):
        assert abs(Fraction(multiplier) - Fraction(ratio) * 2**shift) <= Fraction(1, 2)


def test_scales_too_far_apart_are_refused():
    with pytest.raises(FormatError, match=r"2\^30"):
        fixed_point([1.0, 2.0**30])
    with pytest.raises(FormatError, match=r"2\^18"):
        paired(1.0, 2.0**18)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("network", NETWORKS)
def test_rules_differ_by_at_most_one_on_equal_inputs(network, seed):
    graph = network(seed).graph()
    (shape,) = graph.inputs.values()
    x = np.random.default_rng(seed).normal(0, 1.5, (8, *shape)).astype(np.float32)
    feeds = dict.fromkeys(graph.inputs, x)
    values = run_float32(graph, x, keep=True)
    for op in graph.ops:
        target = graph.by_name[op.output]
        one, other = (compute(op, graph.by_name, rule, values, feeds) for rule in (OnnxRuntimeRule(), FixedPointRule()))
        if target.is_float:
            assert isinstance(op, Conv | Linear)
            scale = logit_scale(op, graph.by_name[op.input])
            assert other.dtype == np.int32
            np.testing.assert_allclose(other * scale, one, rtol=1e-6, atol=scale)
        else:
            assert np.abs(one.astype(int) - other.astype(int)).max() <= 1, op.output


def test_logits_have_one_scale_and_room():
    graph = NETWORKS[0](0).graph(every=False)
    x = np.random.default_rng(0).normal(0, 3, (64, *next(iter(graph.inputs.values())))).astype(np.float32)
    (name,) = graph.outputs
    logits = run_fixed31(graph, x)[name]
    assert logits.dtype == np.int32
    assert 2**16 < np.abs(logits).max() <= 2**28
