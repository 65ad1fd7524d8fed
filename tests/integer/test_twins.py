"""The exact part of the twins against independent arithmetic; tests/export compares the rounding."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zerobit.errors import ZerobitError
from zerobit.integer.accumulate import conv_accumulators, linear_accumulators
from zerobit.integer.ir import (
    Add,
    Conv,
    IntegerGraph,
    IntegerTensor,
    Linear,
    Mean,
    Quantize,
    Rescale,
    Weights,
)
from zerobit.integer.twins.float32 import fused_multiply_add, run_float32


def _random_weights(rng: np.random.Generator, *shape: int) -> Weights:
    channels = shape[0]
    values = rng.integers(-128, 128, shape)
    return Weights(values, np.full(channels, 8), np.ones(channels), rng.integers(-999, 999, channels))


@given(
    seed=st.integers(0, 2**32 - 1),
    dimensions=st.integers(1, 2),
    groups=st.sampled_from([(1, 3, 5), (1, 1, 1), (2, 2, 3), (3, 1, 1), (4, 1, 2)]),
    data=st.data(),
)
def test_convolution_equals_torch_in_float64(seed, dimensions, groups, data):
    num_groups, inputs, outputs = groups
    kernel, stride, dilation = (
        tuple(data.draw(st.lists(st.integers(1, 3), min_size=dimensions, max_size=dimensions))) for _ in range(3)
    )
    padding = tuple(data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2))) for _ in range(dimensions))
    rng = np.random.default_rng(seed)
    weights = _random_weights(rng, num_groups * outputs, inputs, *kernel)
    x = rng.integers(-128, 128, (2, num_groups * inputs, *(7, 8)[:dimensions])).astype(np.int8)
    source = IntegerTensor("x", x.shape[1:], 1.0, signed=True)
    got = conv_accumulators(x, Conv("x", "y", weights, stride, padding, dilation, num_groups), source)

    padded = torch.nn.functional.pad(torch.tensor(x).double(), [s for pair in padding[::-1] for s in pair])
    convolve = (torch.nn.functional.conv1d, torch.nn.functional.conv2d)[dimensions - 1]
    wanted = convolve(
        padded,
        torch.tensor(weights.values).double(),
        torch.tensor(weights.bias).double(),
        stride,
        0,
        dilation,
        num_groups,
    )
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, wanted.numpy())


def test_sums_beyond_float32_are_exact():
    """65,536 products of 255 * 127 pass 2^24 and stay below 2^31; float32 would lose the last bits."""
    weights = Weights(np.full((1, 65536), 127), [8], [1.0], [1])
    source = IntegerTensor("x", (65536,), 1.0)
    x = np.full((1, 65536), 255, np.uint8)
    x[0, 0] = 254
    assert linear_accumulators(x, Linear("x", "y", weights), source) == 65536 * 255 * 127 - 127 + 1


@given(
    st.integers(0, 255),
    st.floats(2.0**-20, 2.0**10, width=32),
    st.floats(-(2.0**20), 2.0**20, width=32),
)
def test_fused_multiply_add_rounds_once(a, b, c):
    got = fused_multiply_add(np.array([a], np.float32), np.float32(b), np.array([c], np.float32))[0]
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    below, above = (np.nextafter(got, np.float32(side)) for side in (-np.inf, np.inf))
    error = abs(Fraction(float(got)) - exact)
    for neighbour in (below, above):
        distance = abs(Fraction(float(neighbour)) - exact)
        assert error < distance or (error == distance and got.view(np.int32) % 2 == 0)


def test_fused_multiply_add_is_not_rounded_twice():
    """A sum 2^-70 below the middle of two float32: in float64 it is the middle, and a tie would go up."""
    product = np.array([1 + 2.0**-23], np.float32), np.float32(2.0**-24 * (1 - 2.0**-23))
    addend = np.array([1 + 2.0**-23], np.float32)
    assert fused_multiply_add(*product, addend)[0] == addend[0]
    assert np.float32(float(product[0][0]) * float(product[1]) + float(addend[0])) > addend[0]


def test_clip_limits_and_full_range():
    wide = IntegerTensor("q", (256,), 1.0, signed=True)
    narrow = IntegerTensor("r", (256,), 1.0, bits=4, signed=True)
    x = np.arange(-128, 128, dtype=np.float32)[None]
    for low, high in ((None, None), (-3, None), (None, 5), (0, 6)):
        graph = IntegerGraph((wide, narrow), (Quantize("x", "q"), Rescale("q", "r", low, high)), ("r",))
        wanted = np.clip(x, -8 if low is None else low, 7 if high is None else high)
        np.testing.assert_array_equal(run_float32(graph.validate(), x)[0], wanted)


def _network() -> IntegerGraph:
    rng = np.random.default_rng(0)
    tensors = (
        IntegerTensor("q", (3, 6, 6), 0.02, signed=True),
        IntegerTensor("c", (4, 6, 6), 8.0),
        IntegerTensor("a", (4, 6, 6), 13.0, bits=4),
        IntegerTensor("m", (4,), 9.0),
        IntegerTensor("logits", (5,), None),
    )
    ops = (
        Quantize("x", "q"),
        Conv("q", "c", _random_weights(rng, 4, 3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
        Add("c", "c", "a"),
        Mean("a", "m"),
        Linear("m", "logits", _random_weights(rng, 5, 4)),
    )
    return IntegerGraph(tensors, ops, ("logits", "c")).validate()


def test_keep_returns_every_tensor_in_its_own_type():
    graph, x = _network(), np.random.default_rng(1).normal(size=(3, 3, 6, 6)).astype(np.float32)
    kept = run_float32(graph, x, keep=True)
    logits, c = run_float32(graph, x)
    assert {name: values.dtype.name for name, values in kept.items()} == {
        "q": "int8",
        "c": "uint8",
        "a": "uint8",
        "m": "uint8",
        "logits": "float32",
    }
    assert kept["a"].max() == 15
    np.testing.assert_array_equal(kept["logits"], logits)
    np.testing.assert_array_equal(kept["c"].astype(np.float32) * np.float32(8.0), c)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_batch_size_changes_nothing(batch_size: int):
    graph, x = _network(), np.random.default_rng(1).normal(size=(7, 3, 6, 6)).astype(np.float32)
    for one, other in zip(run_float32(graph, x), run_float32(graph, x, batch_size=batch_size), strict=True):
        np.testing.assert_array_equal(one, other)


def test_infinite_input_saturates():
    x = np.full((1, 3, 6, 6), 3e38, np.float32)
    assert run_float32(_network(), x, keep=True)["q"].min() == 127
    assert run_float32(_network(), -x, keep=True)["q"].max() == -128


@pytest.mark.parametrize(
    ("x", "batch_size", "message"),
    [
        (np.zeros((1, 3, 6, 5)), 64, "must be"),
        (np.zeros((0, 3, 6, 6)), 64, "must be"),
        (np.full((1, 3, 6, 6), np.nan), 64, "NaN"),
        ({"y": np.zeros((1, 3, 6, 6))}, 64, "graph inputs"),
        (np.zeros((1, 3, 6, 6)), 0, "`batch_size` is 0"),
    ],
)
def test_wrong_input_is_named(x, batch_size, message):
    with pytest.raises(ZerobitError, match=message):
        run_float32(_network(), x, batch_size=batch_size)


def test_inputs_of_different_length_are_refused():
    tensors = (IntegerTensor("a", (2,), 1.0), IntegerTensor("b", (2,), 1.0), IntegerTensor("c", (2,), 1.0))
    graph = IntegerGraph(tensors, (Quantize("x", "a"), Quantize("y", "b"), Add("a", "b", "c")), ("c",))
    with pytest.raises(ZerobitError, match="different batch sizes"):
        run_float32(graph, {"x": np.zeros((1, 2)), "y": np.zeros((2, 2))})
