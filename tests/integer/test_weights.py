"""Weights and bias as integers: what 32 bits can't hold is refused, and never zeroed."""

import numpy as np
import pytest

from zerobit.integer.tensors import IntegerTensor
from zerobit.integer.weights import weights_with_bias


@pytest.mark.parametrize("inputs", [66_000, 300_000])
def test_weights_that_32_bits_do_not_hold_stay_for_the_check_to_refuse(inputs: int) -> None:
    values = np.full((2, inputs), 127, np.int8)
    source = IntegerTensor("x", (inputs,), 0.01)
    found = weights_with_bias(values, np.array([8, 8]), np.full(2, 1e-3, np.float32), np.array([0.5, 0.0]), source)
    assert np.array_equal(found.values, values)
    assert found.scale.tolist() == pytest.approx([1e-3, 1e-3])
