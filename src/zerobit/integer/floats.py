"""Where an integer network meets real numbers: its inputs, and islands of ops that have no integer form.

Shapes leave the batch out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from zerobit.graph.ir import Rows, Shape
from zerobit.integer.tensors import Weights


def _optional_floats(values: ArrayLike | None) -> NDArray[np.float32] | None:
    if values is None:
        return None
    copy = np.array(values, np.float32)
    copy.setflags(write=False)
    return copy


@dataclass(frozen=True, eq=False)
class Quantize:
    """Turns a float32 graph input into integers: rint(((x - mean) / std) / scale), saturated.

    Attributes:
        input: name of the graph input; not an `IntegerTensor`. Its shape is the output's.
        output: an integer tensor.
        mean: float32 [C] or None; subtracted first.
        std: float32 [C] or None; divided by second.
    """

    input: str
    output: str
    mean: NDArray[np.float32] | None = None
    std: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _optional_floats(self.mean))
        object.__setattr__(self, "std", _optional_floats(self.std))


@dataclass(frozen=True, eq=False)
class Feed:
    """Hands a graph input to islands as it is, or normalised: (x - mean) / std.

    Attributes:
        input: name of the graph input.
        output: a float tensor.
        dtype: numpy type of the input.
        is_batched: whether its dimension 0 is the batch.
        mean: float32 [C] or None; subtracted first.
        std: float32 [C] or None; divided by second.
    """

    input: str
    output: str
    dtype: np.dtype[np.generic]
    is_batched: bool = True
    mean: NDArray[np.float32] | None = None
    std: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", np.dtype(self.dtype))
        object.__setattr__(self, "mean", _optional_floats(self.mean))
        object.__setattr__(self, "std", _optional_floats(self.std))


@dataclass(frozen=True)
class FloatOp:
    """One op of an island, for reports.

    Attributes:
        name: its name in the network.
        target: the operator behind it.
        module: path of the user's module it comes from, "" for the root.
        reason: why it has no integer form here.
    """

    name: str
    target: str
    module: str
    reason: str


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """A weight of an island: integers where it is stored, real values where it is computed with.

    Attributes:
        name: of the parameter.
        weights: values [O, K], one row per output channel, without a bias.
        shape: of the parameter.
        rows: how output channels lie in it.
    """

    name: str
    weights: Weights
    shape: Shape
    rows: Rows


@dataclass(frozen=True, eq=False)
class Island:
    """Neighbouring ops without an integer form, computed in float32.

    Attributes:
        name: of the island.
        inputs: tensors it reads; integers enter as real values, scale * q.
        outputs: the float tensors it makes.
        function: takes the inputs and then the real values of the weights, [O, K] each; returns a tuple, a tensor
            for each output.
        weights: its quantised weights; other parameters are inside the function.
        ops: what it computes.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    function: nn.Module
    weights: tuple[StoredWeight, ...] = ()
    ops: tuple[FloatOp, ...] = ()

    def __post_init__(self) -> None:
        for name in ("inputs", "outputs", "weights", "ops"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


@dataclass(frozen=True)
class QuantizeFloat:
    """Turns what an island made into integers: rint(x / scale), saturated.

    Attributes:
        input: a float tensor.
        output: an integer tensor of the same shape.
    """

    input: str
    output: str
