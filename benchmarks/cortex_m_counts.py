"""Networks for cortex_m_fit.py: random layers and networks of the zoo, as C, counted by QEMU on a Cortex-M4."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from cases import randomised
from integer_networks import Builder
from searches import scramble
from zerobit.cost.base import LayerUse, Usage, WeightUse
from zerobit.cost.usage import mean_inside, usage
from zerobit.cut.apply import apply
from zerobit.cut.decide import decide
from zerobit.export.c99.library import Library
from zerobit.export.c99.toolchain import Image, run_image
from zerobit.formats import GRID
from zerobit.graph.ir import Kind
from zerobit.integer.ir import Conv, IntegerGraph, Linear, storage_bits
from zerobit.integer.lower import lower
from zerobit.integer.twins.fixed31 import layer_ratio
from zerobit.search.attach import attach
from zerobit.search.methods.softmax import ChannelSoftmax
from zerobit.zoo.models import MODELS

TARGET = "cortex-m4"
LAYERS = 8  # of an image
_WIDTHS = ((8,), (4,), (2,), (2, 4, 8), (4, 8), (2, 8))
_MOST = 1_000_000  # multiplications of a layer
_CLASSES = {"dscnn": 12}
_NONE = torch.zeros((), dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Counted:
    """A layer.

    Attributes:
        kinds: that its error is stated with.
        use: what it uses.
        instructions: that it took.
    """

    kinds: tuple[str, ...]
    use: Usage
    instructions: float


@dataclass(frozen=True, eq=False)
class CountedImage:
    """An image.

    Attributes:
        layers: in it.
        flash: bytes, without its input.
    """

    layers: tuple[Counted, ...]
    flash: int

    @property
    def use(self) -> Usage:
        """All its layers together."""
        uses = [layer.use for layer in self.layers]
        return Usage(tuple(u.weights[0] for u in uses), tuple(u.layers[0] for u in uses), _NONE)


# ---------------------------------------------------------------------------------------------- random layers


def random_network(rng: random.Random, seed: int) -> IntegerGraph:
    """Layers side by side that read one input, over an image, a signal or rows."""
    rank = rng.choice((0, 1, 1, 2, 2, 2, 2))
    channels = rng.choice((1, 2, 3, 4, 6, 8, 9, 12, 15, 16, 20, 24, 30, 32, 48))
    shape = (channels, *(rng.randint(5, 24) for _ in range(rank)))
    if rank == 0:
        shape = (rng.randint(1, 400),) if rng.random() < 0.6 else (rng.randint(2, 30), rng.randint(1, 120))
    net = Builder(shape, seed, signed=rng.random() < 0.5)
    net.rescale("image", "copied")  # what is before the first layer is counted with this
    for index in range(LAYERS):
        if rank == 0:
            net.linear("image", f"layer {index}", rng.randint(1, 48), widths=rng.choice(_WIDTHS), signed=True)
        else:
            _add_conv(net, rng, f"layer {index}")
    return net.graph(every=False)


def _add_conv(net: Builder, rng: random.Random, name: str) -> None:
    inputs, *sizes = net.tensors["image"].shape
    widths = tuple(min(rng.choice((1, 2, 3, 3, 3, 5)), size) for size in sizes)
    if rng.random() < 0.7:
        widths = (widths[0],) * len(widths) if min(sizes) >= widths[0] else widths
    dilation = 2 if rng.random() < 0.1 and 2 * max(widths) - 1 <= min(sizes) else 1
    padded = rng.random() < 0.6
    padding = tuple((dilation * (w // 2), dilation * ((w - 1) // 2)) if padded else (0, 0) for w in widths)
    divisors = [d for d in range(2, inputs) if inputs % d == 0]
    form = rng.random()
    groups = inputs if form < 0.25 else rng.choice(divisors) if form < 0.45 and divisors else 1
    stride = rng.choice((1, 1, 2))
    per_channel = math.prod(sizes) * math.prod(widths) * inputs / groups / stride ** len(sizes)
    most = max(1, min(48, int(_MOST / per_channel)) // groups)
    channels = groups * (rng.randint(1, min(most, 2)) if groups == inputs else rng.randint(1, most))
    net.conv(
        "image", name, channels, widths, stride=stride, padding=padding, dilation=dilation, groups=groups,
        widths=rng.choice(_WIDTHS), signed=True,
    )  # fmt: skip


def integer_use(graph: IntegerGraph, op: Conv | Linear) -> Usage:
    """What a layer of an integer graph uses."""
    given, shape = graph.by_name[op.input].shape, graph.by_name[op.output].shape
    stored = storage_bits(op.weights.bits)
    counts = torch.tensor([float((stored == b).sum()) for b in GRID], dtype=torch.float64)
    weight = WeightUse(op.output, counts, torch.tensor(float(op.weights.values[0].size), dtype=torch.float64))
    if isinstance(op, Linear):
        layer = LayerUse(
            op.output, Kind.LINEAR, weight, _scalar(given[-1]), _scalar(math.prod(shape[:-1])), (1, *shape), (),
            depthwise=False, groups=1, activation=None,
        )  # fmt: skip
        return Usage((weight,), (layer,), _NONE)
    before = [begin for begin, _ in op.padding]
    dimensions = zip(given[1:], shape[1:], op.kernel, op.stride, before, op.dilation, strict=True)
    layer = LayerUse(
        op.output, Kind.CONV, weight, _scalar(given[0]), _scalar(math.prod(shape[1:])), (1, *shape), tuple(op.kernel),
        depthwise=op.groups > 1 and op.weights.values.shape[1] == 1, groups=op.groups, activation=None,
        stride=tuple(op.stride), dilation=tuple(op.dilation), inside=tuple(mean_inside(*d) for d in dimensions),
    )  # fmt: skip
    return Usage((weight,), (layer,), _NONE)


def _scalar(value: float) -> torch.Tensor:
    return torch.tensor(float(value), dtype=torch.float64)


def _kinds(graph: IntegerGraph, op: Conv | Linear) -> tuple[str, ...]:
    """Its form, how many widths it has, and whether most of its results are scaled the longer way."""
    shift = layer_ratio(op, graph.by_name[op.input], graph.by_name[op.output]).shift
    widths = "several widths" if len(np.unique(storage_bits(op.weights.bits))) > 1 else "one width"
    return (_form(op), widths, *(["shifts below 33"] if np.mean(shift < 33) > 0.5 else []))


def _form(op: Conv | Linear) -> str:
    if isinstance(op, Linear):
        return "linear"
    if op.groups > 1:
        return "depthwise" if op.weights.values.shape[1] == 1 else "grouped"
    if len(op.kernel) == 1:
        return "1-D"
    return "dense 1 x 1" if max(op.kernel) == 1 else "dense, strided" if max(op.stride) > 1 else "dense"


# ---------------------------------------------------------------------------------------------- counting


def count(graph: IntegerGraph, seed: int) -> tuple[Image, dict[str, int], int]:
    """The image, instructions of each tensor, and bytes of flash without the input."""
    rng = np.random.default_rng(seed)
    feeds = {name: rng.uniform(-3, 3, (1, *shape)).astype(np.float32) for name, shape in graph.inputs.items()}
    library = Library(graph, "zb", {})
    image = run_image(library, feeds, TARGET)
    if image.different:
        msg = f"the image computes other tensors than its twin: {image.different}"
        raise RuntimeError(msg)
    spent = {name: n for (_, name), n in zip(library.traced, image.by_tensor, strict=True)}
    for op in graph.ops:  # what goes straight out is not traced; it is the rest
        if isinstance(op, Conv | Linear) and op.output not in spent:
            spent[op.output] = image.instructions[0] - sum(spent.values())
    return image, spent, image.flash - sum(math.prod(shape) for shape in graph.inputs.values())


def count_layers(images: int, seed: int) -> Iterator[CountedImage]:
    """Random layers, image by image."""
    rng = random.Random(seed)
    for index in range(images):
        graph = random_network(rng, seed + index)
        _, spent, flash = count(graph, seed + index)
        layers = [op for op in graph.ops if isinstance(op, Conv | Linear)]
        yield CountedImage(
            tuple(Counted(_kinds(graph, op), integer_use(graph, op), spent[op.output]) for op in layers), flash
        )


# ---------------------------------------------------------------------------------------------- whole networks


@dataclass(frozen=True)
class CountedNetwork:
    """A network of the zoo.

    Attributes:
        name: of the zoo.
        seed: of its plan; None for all weights at 8 bits.
        use: what it uses.
        instructions: of the image.
        in_layers: of these, in convolutions and linear layers.
        flash: bytes, without its input.
    """

    name: str
    seed: int | None
    use: Usage
    instructions: int
    in_layers: int
    flash: int


def count_network(name: str, seed: int | None) -> CountedNetwork:
    """A network of the zoo at 8 bits, or at random widths with random channels removed."""
    entry = MODELS[name]
    torch.manual_seed(0)
    model = randomised(entry.build(_CLASSES.get(name, 10))).eval()
    method = ChannelSoftmax(weight_bits=(8,)) if seed is None else ChannelSoftmax()
    net = attach(model, (torch.randn(4, *entry.input_shape),), method)
    plan = decide(net if seed is None else scramble(net, seed))
    graph = lower(apply(net, plan).eval())
    image, spent, flash = count(graph, 0)
    layers = sum(spent[op.output] for op in graph.ops if isinstance(op, Conv | Linear))
    return CountedNetwork(name, seed, usage(net.graph, plan.net_bits()), image.instructions[0], layers, flash)
