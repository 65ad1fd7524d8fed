"""Random small networks of convolutions, made of all that the rules know and some of what they don't."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

#: Channels, height and width of an intermediate result.
Size = tuple[int, int, int]

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu_in_place": lambda x: F.relu(x.clone(), inplace=True),
    "relu6": F.relu6,
    "clamp": lambda x: x.clamp(0, 4),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "max_pool": lambda x: F.max_pool2d(x, 2, 1, padding=1),
    "avg_pool": lambda x: F.avg_pool2d(x, 2, 1, padding=1),
    "pad": lambda x: F.pad(x, (0, 1, 1, 0)),
    "flip": lambda x: torch.flip(x, (2,)),  # no rule: a barrier
    "negate": lambda x: -x,  # no rule: a barrier
    "fold": lambda x: x.reshape(x.shape[0], x.shape[1], -1).reshape(x.shape),
}
KEEPS_SIZE = [name for name in UNARY if name not in ("max_pool", "avg_pool", "pad")]
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda x, y: x + y,
    "concat": lambda x, y: torch.cat([x, y], 1),
}


@dataclass(frozen=True)
class Step:
    """One op: its name, the earlier results it reads (0 is the input), and the number of its layer if it has one."""

    op: str
    reads: tuple[int, ...]
    layer: int | None = None


@dataclass(frozen=True)
class Layer:
    """A convolution (square kernel, size kept) or a BatchNorm (kernel 0)."""

    inputs: int
    outputs: int
    kernel: int
    groups: int
    bias: bool

    def build(self) -> nn.Module:
        if not self.kernel:
            return nn.BatchNorm2d(self.outputs)
        return nn.Conv2d(
            self.inputs, self.outputs, self.kernel, padding=self.kernel // 2, groups=self.groups, bias=self.bias
        )


@dataclass(frozen=True)
class Recipe:
    """A network as data; hypothesis prints and shrinks it.

    Attributes:
        layers: each may be called by several steps.
        steps: in order; the last result goes into the head.
        size: of the input.
        last: size of the last result.
        head: "flatten" or "mean", then a linear layer; or "none".
    """

    layers: tuple[Layer, ...]
    steps: tuple[Step, ...]
    size: Size
    last: Size
    head: str


class RecipeNet(nn.Module):
    """The network of a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.layers = nn.ModuleList(layer.build() for layer in recipe.layers)
        channels, height, width = recipe.last
        self.head = nn.Linear(channels * (height * width if recipe.head == "flatten" else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        results = [x]
        for step in self.recipe.steps:
            operands = [results[i] for i in step.reads]
            results.append(self._call(step)(*operands))
        last = results[-1]
        if self.recipe.head == "none":
            return last
        flat = last.flatten(1) if self.recipe.head == "flatten" else last.mean((2, 3))
        return self.head(flat)

    def _call(self, step: Step) -> Callable[..., Any]:
        if step.layer is not None:
            return self.layers[step.layer]
        return {**UNARY, **BINARY}[step.op]


@st.composite
def recipes(draw: st.DrawFn, max_steps: int = 8) -> Recipe:
    """Sequential, residual and concatenating networks, with grouped, depthwise and shared layers."""
    side = 4
    sizes: list[Size] = [(draw(st.integers(1, 4)), side, side)]
    layers: list[Layer] = []
    steps: list[Step] = []
    for _ in range(draw(st.integers(2, max_steps))):
        step, layer, size = draw(_steps(sizes, layers))
        layers += [layer] if layer is not None else []
        steps.append(step)
        sizes.append(size)
    # A mean over 16 values is exact, one over 15 is not.
    exact_mean = sizes[-1][1] * sizes[-1][2] in (16, 64)
    head = draw(st.sampled_from(["flatten", "mean", "none"] if exact_mean else ["flatten", "none"]))
    return Recipe(tuple(layers), tuple(steps), sizes[0], sizes[-1], head)


@st.composite
def _steps(draw: st.DrawFn, sizes: list[Size], layers: list[Layer]) -> tuple[Step, Layer | None, Size]:
    # Mostly the last result, so that networks are deep; sometimes an earlier one, so that they branch.
    source = draw(st.one_of(st.just(len(sizes) - 1), st.integers(0, len(sizes) - 1)))
    size = sizes[source]
    kind = draw(st.sampled_from(["conv", "conv", "conv", "unary", "binary", "again", "norm"]))
    if kind == "binary":
        found = draw(_binary(sizes, source))
        if found is not None:
            return found
    if kind == "again":
        fits = [i for i, layer in enumerate(layers) if layer.inputs == size[0]]
        if fits:
            number = draw(st.sampled_from(fits))
            return Step("layer", (source,), number), None, (layers[number].outputs, *size[1:])
    if kind == "unary":
        name = draw(st.sampled_from(list(UNARY) if size[1] < 6 else KEEPS_SIZE))
        grows = 0 if name in KEEPS_SIZE else 1
        return Step(name, (source,)), None, (size[0], size[1] + grows, size[2] + grows)
    layer = Layer(size[0], size[0], 0, 1, True) if kind == "norm" else draw(_conv(size[0]))
    return Step("layer", (source,), len(layers)), layer, (layer.outputs, *size[1:])


@st.composite
def _conv(draw: st.DrawFn, inputs: int) -> Layer:
    groups = draw(st.sampled_from([1, 1, *(g for g in range(2, inputs + 1) if inputs % g == 0)]))
    outputs = groups * draw(st.integers(1, max(1, 6 // groups)))
    return Layer(inputs, outputs, draw(st.sampled_from([1, 3])), groups, draw(st.booleans()))


@st.composite
def _binary(draw: st.DrawFn, sizes: list[Size], source: int) -> tuple[Step, None, Size] | None:
    size = sizes[source]
    same = [i for i, other in enumerate(sizes) if other == size and i != source]
    near = [i for i, other in enumerate(sizes) if other[1:] == size[1:] and other[0] + size[0] <= 12]
    if same and draw(st.booleans()):
        return Step("add", (source, draw(st.sampled_from(same)))), None, size
    if near:
        other = draw(st.sampled_from(near))
        return Step("concat", (source, other)), None, (size[0] + sizes[other][0], *size[1:])
    return None
