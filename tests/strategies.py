"""Random small networks as data that hypothesis prints and shrinks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from random_forms import Settings, Size
from random_ops import FAMILIES, FORMS

#: Families in the proportion in which they are drawn behind a layer; "again" calls an earlier layer once more.
_OTHERS = (
    *("function", "away", "move", "pair") * 4,
    *("norm", "block", "space") * 3,
    *("again", "again", "barrier"),
)
#: And behind one of those.
_LAYERS = ("layer", "layer", "layer", "function", "away", "move", "pair", "norm")
#: No intermediate result has more values per sample.
_LARGEST = 400


@dataclass(frozen=True)
class Step:
    """One op: its form and settings, and the numbers of the results it reads (0 is the input).

    Attributes:
        form: a name in `FORMS`.
        reads: number of each operand.
        settings: of the form.
        again: number of the earlier step whose module is called once more; None for a module of its own.
    """

    form: str
    reads: tuple[int, ...]
    settings: Settings = ()
    again: int | None = None


@dataclass(frozen=True)
class Recipe:
    """A network as data.

    Attributes:
        size: of the input.
        steps: in order; the last result goes into the head.
        head: "flatten" or "mean", then a linear layer; or "none".
    """

    size: Size
    steps: tuple[Step, ...]
    head: str

    def sizes(self) -> list[Size]:
        """Sizes of the input and of all results."""
        found = [self.size]
        for step, module in zip(self.steps, _modules(self.steps, found), strict=True):
            found.append(_run(module, [found[i] for i in step.reads]))
        return found


def _run(module: nn.Module, sizes: list[Size]) -> Size:
    """Size of a module's result, found without computing it. The module has no values afterwards."""
    with torch.device("meta"):
        return tuple(module.to("meta").eval()(*(torch.zeros(2, *size) for size in sizes)).shape[1:])


def _modules(steps: tuple[Step, ...], sizes: list[Size]) -> Iterator[nn.Module]:
    """The module of each step, made when all sizes it reads are known."""
    made: list[nn.Module] = []
    for step in steps:
        if step.again is None:
            made.append(FORMS[step.form].build([sizes[i] for i in step.reads], step.settings))
        else:
            made.append(made[step.again])
        yield made[-1]


class RecipeNet(nn.Module):
    """The network of a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        sizes = recipe.sizes()
        self.steps = nn.ModuleList(_modules(recipe.steps, sizes))
        self.head = nn.Linear(sizes[-1][0] if recipe.head == "mean" else math.prod(sizes[-1]), 3)

    def forward(self, x: Tensor) -> Tensor:
        results = [x]
        for step, module in zip(self.recipe.steps, self.steps, strict=True):
            results.append(module(*(results[i] for i in step.reads)))
        last = results[-1]
        if self.recipe.head == "none":
            return last
        return self.head(last.flatten(1) if self.recipe.head == "flatten" else last.flatten(2).mean(2))


@st.composite
def recipes(draw: st.DrawFn, max_steps: int = 8, *, exact: bool = False, weighted: bool = False) -> Recipe:
    """Networks of all forms that fit together.

    Args:
        draw: given by hypothesis.
        max_steps: number of ops at most.
        exact: only forms whose sums are exact in any order, given values of few binary digits.
        weighted: whether it ends in a layer, so that there is something to search.
    """
    sizes: list[Size] = [draw(st.sampled_from([(3, 4, 4), (1, 4, 4), (4, 4, 2), (2, 2, 4), (4, 6), (8,)]))]
    steps: list[Step] = []
    for number in range(draw(st.integers(3, max_steps))):
        families = ("layer",) if number == 0 else _OTHERS if number % 2 else _LAYERS
        step = draw(_steps(sizes, steps, families, exact=exact))
        if step is None:
            continue
        (module,) = (m for i, m in enumerate(_modules((*steps, step), sizes)) if i == len(steps))
        size = _run(module, [sizes[i] for i in step.reads])
        if size and 0 < math.prod(size) <= _LARGEST:
            steps.append(step)
            sizes.append(size)
    heads = ["flatten"] + ["mean"] * (not exact and len(sizes[-1]) > 1)
    heads += ["none"] if not weighted and draw(st.integers(0, 3)) == 3 else []
    return Recipe(sizes[0], tuple(steps), draw(st.sampled_from(heads)))


@st.composite
def _steps(
    draw: st.DrawFn, sizes: list[Size], steps: list[Step], families: tuple[str, ...], *, exact: bool
) -> Step | None:
    """One more step of one of some families, or None if nothing fits."""
    # Mostly the last result, so that networks are deep and nothing is made in vain; sometimes any, to branch.
    last = len(sizes) - 1
    source = draw(st.sampled_from([last] * 5 + [draw(st.integers(0, last))]))
    family = draw(st.sampled_from(families))
    if family == "again":
        return draw(_again(sizes, steps, source))
    choices = [
        (name, reads)
        for name, form in FAMILIES[family].items()
        if form.exact or not exact
        for reads in ([(source,)] if form.reads == 1 else [(source, other) for other in range(len(sizes))])
        if form.draw([sizes[i] for i in reads]) is not None
    ]
    if not choices:
        return None
    name = draw(st.sampled_from(list(dict.fromkeys(name for name, _ in choices))))
    reads = draw(st.sampled_from([reads for n, reads in choices if n == name]))
    settings = FORMS[name].draw([sizes[i] for i in reads])
    assert settings is not None
    return Step(name, reads, draw(settings))


@st.composite
def _again(draw: st.DrawFn, sizes: list[Size], steps: list[Step], source: int) -> Step | None:
    """An earlier layer or norm on another tensor of the size that it read."""
    fits = [
        i
        for i, step in enumerate(steps)
        if step.again is None and step.form in {**FAMILIES["layer"], **FAMILIES["norm"], **FAMILIES["block"]}
        if sizes[step.reads[0]] == sizes[source]
    ]
    if not fits:
        return None
    number = draw(st.sampled_from(fits))
    return Step(steps[number].form, (source,), steps[number].settings, number)
