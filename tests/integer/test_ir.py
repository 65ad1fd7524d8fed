"""What a legal integer graph is; every way to break one names the culprit."""

from dataclasses import replace

import numpy as np
import pytest

from zerobit.errors import FormatError, ZerobitError
from zerobit.integer.ir import (
    Add,
    AvgPool,
    Concat,
    Conv,
    IntegerGraph,
    IntegerTensor,
    Linear,
    MaxPool,
    Mean,
    Op,
    Pad,
    Quantize,
    Rescale,
    Reshape,
    Weights,
)


def _weights(*shape: int, value: int = 1, bits: int = 8, bias: int = 0) -> Weights:
    channels = shape[0]
    return Weights(np.full(shape, value), np.full(channels, bits), np.full(channels, 0.01), np.full(channels, bias))


def _conv(**changes: object) -> Conv:
    return replace(Conv("x", "c", _weights(3, 2, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)), **changes)


def _graph() -> IntegerGraph:
    """Every op kind once; image 2 x 6 x 6."""
    tensors = (
        IntegerTensor("x", (2, 6, 6), 0.5, signed=True),
        IntegerTensor("c", (3, 6, 6), 0.5),
        IntegerTensor("a", (3, 6, 6), 0.5),
        IntegerTensor("r", (3, 6, 6), 0.5),
        IntegerTensor("cat", (6, 6, 6), 0.5),
        IntegerTensor("max", (6, 3, 3), 0.5),
        IntegerTensor("pad", (6, 5, 4), 0.5),
        IntegerTensor("avg", (6, 2, 2), 0.25, bits=4),
        IntegerTensor("mean", (6,), 0.25),
        IntegerTensor("flat", (24,), 0.25, bits=4),
        IntegerTensor("logits", (5,), None),
    )
    ops = (
        Quantize("image", "x", np.zeros(2), np.ones(2)),
        _conv(),
        Add("c", "c", "a"),
        Rescale("a", "r", clip_high=6),
        Concat(("r", "c"), "cat"),
        MaxPool("cat", "max", (2, 2), (2, 2), ((0, 0), (0, 0))),
        Pad("max", "pad", ((1, 1), (0, 1))),
        AvgPool("pad", "avg", (2, 2), (2, 2), ((0, 0), (0, 0))),
        Mean("avg", "mean"),
        Reshape("avg", "flat"),
        Linear("flat", "logits", _weights(5, 24, bits=2)),
    )
    return IntegerGraph(tensors, ops, ("logits", "mean"))


def _with_op(position: int, op: Op) -> IntegerGraph:
    ops = list(_graph().ops)
    ops[position] = op
    return replace(_graph(), ops=tuple(ops))


def _with_tensor(which: str, **changes: object) -> IntegerGraph:
    tensors = tuple(replace(t, **changes) if t.name == which else t for t in _graph().tensors)
    return replace(_graph(), tensors=tensors)


def test_legal_graph_passes_and_knows_its_inputs_and_size():
    graph = _graph()
    assert graph.validate() is graph
    assert dict(graph.inputs) == {"image": (2, 6, 6)}
    assert graph.weight_bytes_packed == 3 * 2 * 9 + 5 * 24 * 2 / 8


def test_packed_size_counts_each_channel_at_its_own_width():
    weights = Weights(np.zeros((3, 5)), [2, 3, 8], np.ones(3), np.zeros(3))
    assert weights.packed_bits == (2 + 3 + 8) * 5


_STRUCTURE = {
    "empty name": (_with_tensor("x", name=""), "name"),
    "name twice": (replace(_graph(), tensors=(*_graph().tensors, _graph().tensors[0])), "twice"),
    "empty shape": (_with_tensor("mean", shape=()), "`shape` of tensor 'mean'"),
    "order": (replace(_graph(), ops=_graph().ops[::-1]), "before it is made"),
    "undeclared input": (_with_op(2, Add("c", "ghost", "a")), "lacks 'ghost'"),
    "undeclared output": (_with_op(2, Add("c", "c", "ghost")), "lacks 'ghost'"),
    "made twice": (_with_op(2, Add("c", "c", "c")), "'c' twice"),
    "never made": (replace(_graph(), ops=_graph().ops[:-1]), "'logits', which no op makes"),
    "never read": (replace(_graph(), outputs=("logits",)), "'mean', which nothing reads"),
    "no output": (replace(_graph(), outputs=()), "`outputs`"),
    "unknown output": (replace(_graph(), outputs=("ghost",)), "'ghost', which is no tensor"),
    "reads logits": (
        IntegerGraph(
            (*_graph().tensors, IntegerTensor("y", (5,), 1.0)),
            (*_graph().ops, Rescale("logits", "y")),
            ("y", "mean"),
        ),
        "only islands and graph outputs are float",
    ),
    "no input": (IntegerGraph((), (), ()), "`outputs`"),
    "mean length": (_with_op(0, Quantize("image", "x", np.zeros(3))), "`mean` of 'x'"),
    "two shapes of an input": (
        IntegerGraph(
            (IntegerTensor("a", (2,), 1.0), IntegerTensor("b", (3,), 1.0)),
            (Quantize("image", "a"), Quantize("image", "b")),
            ("a", "b"),
        ),
        "two shapes",
    ),
    "wrong shape": (_with_tensor("c", shape=(3, 6, 5)), r"its Conv makes \(3, 6, 6\)"),
    "float add": (_with_tensor("mean", scale=None), "only a Conv or Linear"),
    "conv rank": (_with_op(1, _conv(weights=_weights(3, 2, 3, 3, 3))), "spatial dimensions"),
    "conv stride rank": (_with_op(1, _conv(stride=(1,))), "one entry per dimension"),
    "conv stride": (_with_op(1, _conv(stride=(1, 0))), "must be 1 or more"),
    "conv padding": (_with_op(1, _conv(padding=((-1, 3), (1, 1)))), "`padding` of 'c'"),
    "conv groups": (_with_op(1, _conv(groups=2)), "`groups` of Conv 'c'"),
    "conv channels": (_with_op(1, _conv(weights=_weights(3, 1, 3, 3))), "`weights` of Conv 'c'"),
    "conv too large": (_with_op(1, _conv(dilation=(4, 1))), "larger than the padded input"),
    "linear features": (_with_op(10, Linear("flat", "logits", _weights(5, 23))), "`input` of Linear"),
    "add shapes": (_with_op(2, Add("c", "x", "a")), "must be equal"),
    "concat axis": (_with_op(4, Concat(("r", "c"), "cat", 3)), "`axis`"),
    "concat shapes": (_with_op(4, Concat(("r", "c"), "cat", 1)), r"makes \(3, 12, 6\)"),
    "concat one": (_with_op(4, Concat(("r",), "cat")), "two or more"),
    "pool rank": (_with_op(5, MaxPool("cat", "max", (2, 2), (2,), ((0, 0), (0, 0)))), "one entry per dim"),
    "pool kernel": (_with_op(5, MaxPool("cat", "max", (0, 2), (2, 2), ((0, 0), (0, 0)))), "`kernel`"),
    "pool padding": (_with_op(5, MaxPool("cat", "max", (2, 2), (2, 2), ((2, 0), (0, 0)))), "smaller than"),
    "reshape size": (_with_tensor("flat", shape=(25,)), "another number of values"),
}


@pytest.mark.parametrize(("graph", "message"), _STRUCTURE.values(), ids=_STRUCTURE.keys())
def test_broken_structure_is_named(graph: IntegerGraph, message: str):
    with pytest.raises(ZerobitError, match=message):
        graph.validate()


_HUGE_CONV = _conv(weights=replace(_weights(3, 2, 3, 3), scale=np.full(3, 3e38)))
_NUMBERS = {
    "scale zero": (_with_tensor("c", scale=0.0), "`scale` of tensor 'c'"),
    "scale not finite": (_with_tensor("c", scale=np.inf), "`scale` of tensor 'c'"),
    "scale below float32": (_with_tensor("c", scale=1e-60), "`scale` of tensor 'c'"),
    "bits": (_with_tensor("c", bits=9), "`bits` of tensor 'c' is 9"),
    "std": (_with_op(0, Quantize("image", "x", None, np.array([1.0, 0.0]))), "`std` of 'x'"),
    "clip": (_with_op(1, _conv(clip_high=256)), "`clip_high` of 'c'"),
    "clip of logits": (
        _with_op(10, Linear("flat", "logits", _weights(5, 24, bits=2), clip_high=3)),
        "float logits are not clipped",
    ),
    "shared scale": (_with_tensor("max", scale=0.25), "Rescale"),
    "shared bits": (_with_tensor("flat", bits=5), "Rescale"),
    "weight bits": (_with_op(1, _conv(weights=_weights(3, 2, 3, 3, bits=1))), "2..8 allowed"),
    "weight scale": (
        _with_op(1, _conv(weights=replace(_weights(3, 2, 3, 3), scale=[1, -1, 1]))),
        "`scale` of the weights of 'c'",
    ),
    "values too large": (_with_op(1, _conv(weights=_weights(3, 2, 3, 3, value=2, bits=2))), "-2..1"),
    "values too small": (_with_op(1, _conv(weights=_weights(3, 2, 3, 3, value=-3, bits=2))), "-2..1"),
    "factor overflows": (
        replace(_with_tensor("c", scale=1e-3), ops=(*_graph().ops[:1], _HUGE_CONV, *_graph().ops[2:])),
        "leaves float32",
    ),
}


@pytest.mark.parametrize(("graph", "message"), _NUMBERS.values(), ids=_NUMBERS.keys())
def test_number_out_of_range_is_named(graph: IntegerGraph, message: str):
    with pytest.raises(FormatError, match=message):
        graph.validate()


def test_accumulator_bound_is_exact():
    reach = 2**31 - 1 - 3 * 18 * 128  # three times the weights of 18, times the largest input

    def graph(bias: int) -> IntegerGraph:
        return _with_op(1, _conv(weights=_weights(3, 2, 3, 3, value=-3, bias=bias)))

    graph(reach).validate()
    graph(-reach).validate()
    with pytest.raises(FormatError, match=r"accumulator of 'c', channel 0, can reach 2147483648"):
        graph(reach + 1).validate()


def test_full_range_weights_are_legal():
    for bits in range(2, 9):
        graph = _with_op(1, _conv(weights=_weights(3, 2, 3, 3, value=-(2 ** (bits - 1)), bits=bits)))
        assert graph.validate() is graph


def test_weights_are_read_only_copies():
    given = np.ones((2, 3), np.int8)
    weights = Weights(given, [8, 8], [1, 1], [0, 0])
    given[:] = 5
    assert weights.values.max() == 1
    with pytest.raises(ValueError, match="read-only"):
        weights.values[0, 0] = 2


@pytest.mark.parametrize("values", [[[128.0, 0]], [[0.5, 0]], [[np.nan, 0]]])
def test_values_that_int8_cannot_hold_are_refused(values: list):
    with pytest.raises(FormatError, match="`values` holds"):
        Weights(values, [8], [1], [0])


@pytest.mark.parametrize("name", ["bits", "scale", "bias"])
def test_one_entry_per_channel(name: str):
    with pytest.raises(FormatError, match=f"`{name}` has shape"):
        replace(_weights(3, 2), **{name: [2, 2]})


def test_weights_need_two_dimensions():
    with pytest.raises(FormatError, match="two dimensions"):
        Weights([1, 2], [8, 8], [1, 1], [0, 0])
