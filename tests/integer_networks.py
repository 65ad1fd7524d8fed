"""Random networks of integers that tests share. A new one is one row in `NETWORKS`."""

from dataclasses import replace

import numpy as np

from zerobit.integer.ir import (
    Add,
    AvgPool,
    Concat,
    Conv,
    Expand,
    IntegerGraph,
    IntegerTensor,
    Linear,
    Lookup,
    MaxPool,
    Mean,
    Multiply,
    Op,
    Pad,
    Permute,
    Quantize,
    Repeat,
    Rescale,
    Reshape,
    Slice,
    Spread,
    Subtract,
    Weights,
    reads,
)
from zerobit.integer.shapes import window_counts


class Builder:
    """Grows a random network; scales are such that a part of every tensor saturates."""

    def __init__(self, shape, seed, *, normalise=False, **form):
        self.rng = np.random.default_rng(seed)
        self.tensors: dict[str, IntegerTensor] = {}
        self.ops: list[Op] = []
        moments = (self.rng.normal(size=shape[0]), self.rng.uniform(0.5, 2, shape[0])) if normalise else ()
        self._put("image", shape, 0.02, **form)
        self.ops.append(Quantize("x", "image", *moments))

    def graph(self, *, every: bool = True) -> IntegerGraph:
        """The network with every tensor as an output, or only those that no op reads."""
        read = {name for op in self.ops for name in reads(op)}
        names = tuple(name for name in self.tensors if every or name not in read)
        return IntegerGraph(tuple(self.tensors.values()), tuple(self.ops), names).validate()

    def _put(self, name, shape, scale, bits=8, signed=False):
        self.tensors[name] = IntegerTensor(name, shape, scale, bits, signed)

    def _new(self, op: Op, source: str, shape, bits=8, signed=False, logits=False) -> str:
        given = self.tensors[source]
        reach = given.step * max(-given.low, given.high) * self.rng.uniform(0.3, 1.1)
        scale = None if logits else reach / (2 ** (bits - signed) - 1)
        self._put(op.output, shape, scale, bits, signed)
        self.ops.append(op)
        return op.output

    def _same(self, op: Op, source: str, shape) -> str:
        self.tensors[op.output] = replace(self.tensors[source], name=op.output, shape=shape)
        self.ops.append(op)
        return op.output

    def _weights(self, shape, widths, full) -> Weights:
        bits = self.rng.choice(widths, shape[0])
        half = 2 ** (bits - 1)
        values = np.stack([self.rng.integers(-h if full else 1 - h, h, shape[1:]) for h in half])
        scale = self.rng.uniform(0.5, 2, shape[0]) / (half * np.sqrt(np.prod(shape[1:])))
        return Weights(values, bits, scale, self.rng.integers(-300, 300, shape[0]))

    def conv(self, x, name, channels, kernel, *, stride=1, padding=None, dilation=1, groups=1,
             widths=(2, 4, 8), full=False, clip_low=None, clip_high=None, **form):  # fmt: skip
        inputs, *sizes = self.tensors[x].shape
        kernel, stride, dilation = (
            value if isinstance(value, tuple) else (value,) * len(sizes) for value in (kernel, stride, dilation)
        )
        padding = padding or tuple((width // 2, width // 2) for width in kernel)
        weights = self._weights((channels, inputs // groups, *kernel), widths, full)
        shape = (channels, *window_counts(sizes, kernel, stride, padding, dilation))
        op = Conv(x, name, weights, stride, padding, dilation, groups, clip_low, clip_high)
        return self._new(op, x, shape, **form)

    def linear(self, x, name, features, *, widths=(2, 4, 8), clip_high=None, **form):
        *rows, inputs = self.tensors[x].shape
        weights = self._weights((features, inputs), widths, full=False)
        return self._new(Linear(x, name, weights, clip_high=clip_high), x, (*rows, features), **form)

    def add(self, a, b, name, *, kind=Add, clip_high=None, **form):
        shape = np.broadcast_shapes(self.tensors[a].shape, self.tensors[b].shape)
        return self._new(kind(a, b, name, clip_high=clip_high), a, shape, **form)

    def multiply(self, a, b, name, **form):
        shape = np.broadcast_shapes(self.tensors[a].shape, self.tensors[b].shape)
        other = self.tensors[b]
        reach = self.tensors[a].step * 255 * other.step * 255 * self.rng.uniform(0.1, 0.5)
        bits = form.get("bits", 8)
        self._put(name, shape, reach / 2**bits, **form)
        self.ops.append(Multiply(a, b, name))
        return name

    def lookup(self, x, name, *, axis=None, bits=8, signed=False):
        shape = self.tensors[x].shape
        self._put(name, shape, self.rng.uniform(0.01, 0.1), bits, signed)
        target = self.tensors[name]
        sizes = (256,) if axis is None else (shape[axis], 256)
        self.ops.append(Lookup(x, name, self.rng.integers(target.low, target.high + 1, sizes), axis))
        return name

    def permute(self, x, name, dims):
        return self._same(Permute(x, name, dims), x, tuple(self.tensors[x].shape[d] for d in dims))

    def slice(self, x, name, axis, start, end, step=1):
        shape = list(self.tensors[x].shape)
        shape[axis] = len(range(start, end, step))
        return self._same(Slice(x, name, axis, start, end, step), x, tuple(shape))

    def expand(self, x, name, shape):
        return self._same(Expand(x, name), x, shape)

    def repeat(self, x, name, factors):
        channels, *sizes = self.tensors[x].shape
        return self._same(
            Repeat(x, name, factors), x, (channels, *(n * f for n, f in zip(sizes, factors, strict=True)))
        )

    def spread(self, x, name, factors):
        channels, *sizes = self.tensors[x].shape
        sizes = ((n - 1) * f + 1 for n, f in zip(sizes, factors, strict=True))
        return self._same(Spread(x, name, factors), x, (channels, *sizes))

    def rescale(self, x, name, *, clip_low=None, **form):
        return self._new(Rescale(x, name, clip_low=clip_low), x, self.tensors[x].shape, **form)

    def mean(self, x, name, *, keepdim=False, **form):
        channels, *sizes = self.tensors[x].shape
        shape = (channels, *((1,) * len(sizes) if keepdim else ()))
        return self._new(Mean(x, name, keepdim), x, shape, **form)

    def _pooled(self, x, kernel, stride, padding):
        channels, *sizes = self.tensors[x].shape
        return (channels, *window_counts(sizes, kernel, stride, padding, (1,) * len(kernel)))

    def avg_pool(self, x, name, kernel, stride, padding, *, include_pad, **form):
        op = AvgPool(x, name, kernel, stride, padding, include_pad)
        return self._new(op, x, self._pooled(x, kernel, stride, padding), **form)

    def max_pool(self, x, name, kernel, stride, padding):
        op = MaxPool(x, name, kernel, stride, padding)
        return self._same(op, x, self._pooled(x, kernel, stride, padding))

    def pad(self, x, name, padding):
        channels, *sizes = self.tensors[x].shape
        grown = (size + sum(pair) for size, pair in zip(sizes, padding, strict=True))
        return self._same(Pad(x, name, padding), x, (channels, *grown))

    def reshape(self, x, name, shape):
        return self._same(Reshape(x, name), x, shape)

    def concat(self, names, name):
        channels = sum(self.tensors[other].shape[0] for other in names)
        return self._same(Concat(names, name), names[0], (channels, *self.tensors[names[0]].shape[1:]))


def residual(seed: int) -> Builder:
    """ResNet-8 at 16 x 16: normalised input, signed sums, unsorted channels of 2, 4 and 8 bits."""
    net = Builder((3, 16, 16), seed, normalise=True, signed=True)
    x = net.conv("image", "stem", 16, 3)
    for stage, (channels, stride) in enumerate([(16, 1), (32, 2), (64, 2)]):
        y = net.conv(x, f"{stage}.one", channels, 3, stride=stride, clip_high=200)
        y = net.conv(y, f"{stage}.two", channels, 3, signed=True)
        if stride == 2:
            x = net.conv(x, f"{stage}.short", channels, 1, stride=stride, padding=((0, 0),) * 2, signed=True)
        x = net.add(x, y, f"{stage}.sum")
    net.linear(net.mean(x, "mean"), "logits", 10, logits=True)
    return net


def separable(seed: int) -> Builder:
    """Depthwise-separable with 4-bit activations, in 7 and 5 channels: packed bytes have gaps."""
    net = Builder((1, 9, 10), seed, bits=8)
    x = net.conv("image", "stem", 7, 3, stride=(2, 1), widths=(2,), bits=4)
    x = net.conv(x, "dw1", 7, 3, groups=7, widths=(2, 4), bits=4)
    x = net.conv(x, "pw1", 5, 1, widths=(4,), bits=8)
    x = net.conv(x, "dw2", 10, (1, 3), groups=5, stride=(1, 2), bits=4)
    x = net.conv(x, "pw2", 3, 1, bits=2)
    x = net.mean(x, "mean", keepdim=True, bits=6)
    net.linear(net.reshape(x, "flat", (3,)), "logits", 2, widths=(8,), logits=True)
    return net


def branches(seed: int) -> Builder:
    """Concatenation, pools, paddings, groups, dilation, odd widths, rescaling, signed 4 and 5 bits."""
    net = Builder((5, 9, 8), seed, bits=6, signed=bool(seed % 2))
    a = net.conv("image", "a", 6, 3, stride=(2, 1), padding=((0, 1), (1, 2)), widths=(3, 5, 6, 7), bits=4)
    b = net.conv(a, "grouped", 9, 3, groups=3, padding=((2, 2),) * 2, dilation=2, full=True, signed=True)
    c = net.conv(b, "depthwise", 9, 3, groups=9, bits=4, signed=True, clip_low=-3, clip_high=5)
    d = net.add(b, net.rescale(c, "relu"), "add", bits=5, signed=True)
    e = net.max_pool(d, "max", (3, 2), (1, 1), ((1, 1), (0, 1)))
    f = net.concat((e, d), "concat")
    net.conv(f, "float", 4, 3, logits=True)
    g = net.conv(net.pad(e, "pad", ((1, 0), (0, 2))), "valid", 3, 3, padding=((0, 0),) * 2, signed=True)
    for include in (True, False):
        for source in (f, a):
            name = f"avg {source} {include}"
            net.avg_pool(source, name, (3, 2), (2, 1), ((1, 0), (1, 1)), include_pad=include,
                         signed=source == f, bits=8 if include else 4)  # fmt: skip
    net.linear(net.reshape(g, "flat", (3 * 3 * 9,)), "hidden", 7, widths=(4,), signed=True)
    net.linear(net.rescale("hidden", "hidden relu", signed=True, clip_low=0), "logits", 3, logits=True)
    net.mean(g, "mean", signed=True)
    return net


def one_dimensional(seed: int) -> Builder:
    """Every spatial op on [C, L]."""
    net = Builder((3, 33), seed, signed=True)
    x = net.conv("image", "stem", 8, 5, stride=2, widths=(2,))
    y = net.conv(x, "depthwise", 8, 3, groups=8, signed=True)
    z = net.conv(y, "grouped", 12, 3, groups=4, dilation=2, padding=((4, 0),))
    y = net.add(y, x, "add", signed=True)
    y = net.avg_pool(y, "avg", (3,), (2,), ((1, 0),), include_pad=bool(seed % 2), signed=True)
    y = net.pad(net.max_pool(y, "max", (2,), (2,), ((0, 1),)), "pad", ((2, 1),))
    net.conv(y, "float", 3, 3, logits=True)
    net.linear(net.mean(z, "mean"), "logits", 5, logits=True)
    return net


def crossed(seed: int) -> Builder:
    """Sums, differences and products of a square image with its own transpose: one buffer, two orders."""
    net = Builder((4, 6, 6), seed, signed=True)
    x = net.conv("image", "stem", 4, 3, signed=bool(seed % 2))
    turned = net.permute(x, "turned", (0, 2, 1))
    total = net.add(x, turned, "sum", signed=True)
    other = net.add(net.permute(total, "total turned", (0, 2, 1)), total, "difference", kind=Subtract, signed=True)
    product = net.multiply(other, net.permute(other, "other turned", (0, 2, 1)), "product", bits=8, signed=True)
    net.linear(net.mean(product, "mean"), "logits", 3, logits=True)
    return net


def perceptron(seed: int) -> Builder:
    """Linear layers only, of one feature too."""
    net = Builder((13,), seed, normalise=True, signed=bool(seed % 2), bits=5)
    x = net.linear("image", "one", 11, clip_high=99)
    x = net.linear(x, "equal", 11)
    x = net.linear(x, "two", 1, widths=(2, 3), signed=True, bits=4)
    net.linear(x, "logits", 4, logits=True)
    return net


def chain_of_rescales(seed: int) -> Builder:
    """Neighbouring quantise/dequantise pairs, which ONNX Runtime would merge into one on another scale."""
    net = Builder((9,), seed, signed=True)
    x = net.rescale("image", "relu")
    x = net.rescale(x, "signed", signed=True)
    x = net.rescale(x, "narrow", bits=4)
    net.add(x, x, "twice")
    return net


def gated(seed: int) -> Builder:
    """Squeeze and excite: a product that broadcasts over space, tables, sums that broadcast, a difference."""
    net = Builder((6, 5, 7), seed, signed=bool(seed % 2))
    x = net.conv("image", "stem", 8, 3, signed=bool(seed & 2))
    gate = net.conv(net.mean(x, "mean", keepdim=True, signed=bool(seed & 2)), "squeeze", 4, 1)
    gate = net.lookup(net.conv(gate, "excite", 8, 1, signed=True), "sigmoid")
    y = net.multiply(x, gate, "gated", signed=bool(seed % 2))
    z = net.multiply(gate, net.lookup(y, "per channel", axis=0, signed=True), "other side", signed=True, bits=5)
    w = net.add(z, gate, "shifted", signed=True)
    w = net.add(gate, w, "shifted again", signed=bool(seed % 2))
    w = net.add(w, y, "difference", kind=Subtract, signed=True)
    square = net.multiply(w, w, "square")
    net.linear(net.mean(net.lookup(square, "table", bits=4), "pooled"), "logits", 3, logits=True)
    return net


def tokens(seed: int) -> Builder:
    """Linear layers on rows, and everything that moves: as in a transformer, a U-Net and a ShuffleNet."""
    net = Builder((3, 8, 8), seed, signed=bool(seed % 2))
    x = net.conv("image", "patches", 6, 2, stride=2, padding=((0, 0),) * 2, signed=True)
    rows = net.permute(net.reshape(x, "flat", (6, 16)), "rows", (1, 0))
    y = net.linear(rows, "query", 10, signed=True)
    y = net.lookup(y, "gelu", signed=True)
    y = net.lookup(y, "norm", axis=1, signed=True, bits=6)
    y = net.linear(y, "back", 6, signed=True, clip_high=90)
    y = net.add(rows, y, "residual", signed=True)
    first = net.slice(y, "first", 0, 0, 1)
    net.linear(net.reshape(first, "token", (6,)), "class", 3, logits=True)
    net.linear(y, "every", 2, logits=True)
    y = net.add(net.expand(first, "spread", (16, 6)), y, "context", kind=Subtract)
    image = net.reshape(net.permute(y, "columns", (1, 0)), "image again", (6, 4, 4))
    image = net.repeat(net.slice(image, "odd", 0, 1, 6, 2), "larger", (2, 3))
    deep = net.permute(net.reshape(image, "split", (3, 2, 4, 3, 4)), "mixed", (1, 0, 3, 2, 4))
    net.linear(deep, "deep", 5, signed=True)
    net.conv(net.reshape(deep, "joined", (6, 12, 4)), "last", 2, 1, logits=True)
    return net


def spectrogram(seed: int) -> Builder:
    """Channels and frequencies of each moment as one row: a reshape that no stride describes, then a permutation."""
    net = Builder((1, 6, 5), seed, signed=bool(seed % 2))
    x = net.conv("image", "conv", 3, 3, signed=True)
    rows = net.permute(net.reshape(x, "features", (18, 5)), "moments", (1, 0))
    y = net.linear(rows, "hidden", 7, signed=bool(seed & 2))
    net.linear(y, "logits", 4, logits=True)
    return net


def row_perceptron(seed: int) -> Builder:
    """Linear layers on [T, F], one behind the other, without anything between."""
    net = Builder((5, 7), seed, signed=True)
    x = net.linear("image", "one", 9, clip_high=99)
    x = net.linear(x, "two", 6, signed=True, bits=4)
    net.linear(x, "logits", 4, logits=True)
    return net


def volumes(seed: int) -> Builder:
    """Every spatial op on [C, D, H, W]."""
    net = Builder((2, 5, 6, 7), seed, signed=True)
    x = net.conv("image", "stem", 6, 3, stride=(1, 2, 1), signed=bool(seed % 2))
    y = net.conv(x, "grouped", 6, (1, 3, 3), groups=3, signed=True)
    y = net.add(y, x, "add", signed=True)
    y = net.avg_pool(y, "avg", (2, 1, 2), (1, 1, 2), ((1, 0), (0, 0), (0, 1)), include_pad=bool(seed % 2), signed=True)
    y = net.pad(net.max_pool(y, "max", (2, 2, 2), (1, 1, 1), ((0, 1), (1, 0), (0, 0))), "pad", ((0, 1), (2, 0), (0, 0)))
    y = net.repeat(y, "larger", (1, 2, 2))
    net.conv(y, "float", 3, 2, logits=True)
    y = net.conv(net.spread(y, "spread", (2, 1, 3)), "transposed", 4, 3)
    net.linear(net.mean(y, "mean"), "logits", 5, logits=True)
    return net


NETWORKS = [
    residual,
    separable,
    branches,
    one_dimensional,
    perceptron,
    chain_of_rescales,
    gated,
    tokens,
    spectrogram,
    row_perceptron,
    volumes,
    crossed,
]


def some_inputs(graph: IntegerGraph, seed: int, count: int = 24) -> dict[str, np.ndarray]:
    """Random, all zero, and so large that everything saturates."""
    rng = np.random.default_rng(seed)
    result = {}
    for name, shape in graph.inputs.items():
        x = rng.normal(0, 1.5, (count, *shape)).astype(np.float32)
        x[: count // 4] *= 100
        x[-1] = 0
        result[name] = x
    return result
