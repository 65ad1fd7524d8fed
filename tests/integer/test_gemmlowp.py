"""gemmlowp's double rounding against exact fractions, and against the float twin on equal inputs of every layer."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from integer_networks import NETWORKS
from zerobit.errors import FormatError
from zerobit.integer.ir import Conv, IntegerTensor, Linear, Weights
from zerobit.integer.twins.float32 import OnnxRuntimeRule, run_float32
from zerobit.integer.twins.gemmlowp import (
    GemmlowpRule,
    halves_away,
    halves_up,
    layer_multiplier,
    mean_multiplier,
    multiplier,
    product_multiplier,
    rescale_multiplier,
    run_gemmlowp,
    sum_multipliers,
)
from zerobit.integer.walk import compute

HALF = Fraction(1, 2)
INT32 = st.integers(-(2**31), 2**31 - 1)


def nearest(value: Fraction, *, ties_up: bool) -> int:
    """The nearest integer; ties up, or away from zero."""
    if ties_up or value >= 0:
        return (value + HALF).__floor__()
    return (value - HALF).__ceil__()


@given(INT32, st.integers(2**30, 2**31 - 1))
def test_the_first_rounding_takes_ties_up(x: int, m: int):
    assert int(halves_up(np.asarray(x * m))) == nearest(Fraction(x * m, 2**31), ties_up=True)


@given(INT32, st.integers(0, 31))
def test_the_second_rounding_takes_ties_away_from_zero(x: int, exponent: int):
    wanted = nearest(Fraction(x, 2**exponent), ties_up=False)
    assert int(halves_away(np.asarray(x), np.asarray(exponent))) == wanted


@pytest.mark.parametrize(("x", "up", "away"), [(-3, -1, -2), (-1, 0, -1), (1, 1, 1), (3, 2, 2), (-2, -1, -1)])
def test_ties(x, up, away):
    assert int(halves_up(np.asarray(x << 30))) == up
    assert int(halves_away(np.asarray(x), np.asarray(1))) == away


@given(st.floats(2.0**-40, 2.0**20), st.integers(-(2**11), 2**11))
def test_a_ratio_is_rounded_twice(ratio: float, x: int):
    result = multiplier(ratio)
    m, shift = int(result.multiplier), int(result.shift)
    if m == 0:
        assert ratio < 2.0**-32
        assert int(result(np.asarray(x))) == 0
        return
    assert 2**30 <= m < 2**31
    assert abs(Fraction(m, 2**31) * Fraction(2) ** shift / Fraction(ratio) - 1) <= Fraction(1, 2**31)
    first = nearest(Fraction(x * 2 ** max(shift, 0) * m, 2**31), ties_up=True)
    assert int(result(np.asarray(x))) == nearest(Fraction(first, 2 ** max(-shift, 0)), ties_up=False)


@given(st.integers(1, 100_000), st.floats(2.0**-6, 2.0**6))
def test_a_mean_divides_by_the_count(count: int, ratio: float):
    source, target = IntegerTensor("x", (1, count), ratio), IntegerTensor("m", (1,), 1.0)
    result = mean_multiplier(count, source, target)
    exact = Fraction(float(source.step)) / count
    got = Fraction(int(result.multiplier), 2**31) * Fraction(2) ** int(result.shift)
    assert -Fraction(1, 2**29) <= got / exact - 1 <= Fraction(1, 2**31)


def integer_version(graph):
    """Every tensor integer: logits become signed bytes."""
    tensors = tuple(replace(t, scale=0.05, signed=True) if t.is_float else t for t in graph.tensors)
    return replace(graph, tensors=tensors).validate()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("network", NETWORKS)
def test_rules_differ_by_at_most_one_on_equal_inputs(network, seed):
    graph = integer_version(network(seed).graph())
    (shape,) = graph.inputs.values()
    x = np.random.default_rng(seed).normal(0, 1.5, (8, *shape)).astype(np.float32)
    feeds = dict.fromkeys(graph.inputs, x)
    values = run_float32(graph, x, keep=True)
    for op in graph.ops:
        one, other = (compute(op, graph.by_name, rule, values, feeds) for rule in (OnnxRuntimeRule(), GemmlowpRule()))
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1, op.output


def test_float_logits_are_refused():
    graph = NETWORKS[0](0).graph(every=False)
    x = np.zeros((1, *next(iter(graph.inputs.values()))), np.float32)
    with pytest.raises(FormatError, match=r"'logits'.*integer_logits"):
        run_gemmlowp(graph, x)


def _tensor(name: str, scale: float) -> IntegerTensor:
    return IntegerTensor(name, (4,), scale)


def test_scales_too_far_apart_are_refused():
    """Beyond these the runtime overflows or ends the process; one step below is allowed."""
    rescale_multiplier(_tensor("x", 2.0**22), _tensor("near", 1))
    with pytest.raises(FormatError, match="'far'"):
        rescale_multiplier(_tensor("x", 2.0**23), _tensor("far", 1))
    product_multiplier(_tensor("a", 2.0**14), _tensor("b", 1), _tensor("near", 1))
    with pytest.raises(FormatError, match="'far'"):
        product_multiplier(_tensor("a", 2.0**15), _tensor("b", 1), _tensor("far", 1))
    mean_multiplier(4, _tensor("x", 2.0**22), _tensor("near", 1))
    with pytest.raises(FormatError, match="'far'"):
        mean_multiplier(4, _tensor("x", 2.0**24), _tensor("far", 1))
    sum_multipliers(_tensor("a", 2.0**18), _tensor("b", 1), _tensor("near", 1))
    with pytest.raises(FormatError, match="'far'"):
        sum_multipliers(_tensor("a", 2.0**19), _tensor("b", 1), _tensor("far", 1))


@pytest.mark.parametrize("kind", [Conv, Linear])
def test_an_accumulator_that_could_overflow_is_refused(kind):
    for bias, fits in ((0, True), (2**25, False)):
        values = np.ones((2, 4, 1, 1) if kind is Conv else (2, 4), np.int8)
        weights = Weights(values, [8, 8], [1.0, 64.0], [0, bias])
        form = ((1, 1), ((0, 0), (0, 0)), (1, 1)) if kind is Conv else ()
        op = kind("x", "far", weights, *form)
        if fits:
            layer_multiplier(op, _tensor("x", 1), _tensor("far", 1))
        else:
            with pytest.raises(FormatError, match="'far'"):
                layer_multiplier(op, _tensor("x", 1), _tensor("far", 1))
