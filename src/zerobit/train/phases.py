"""The phases of a compression: float training, search, fine-tuning, each on the one loop."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from zerobit.cost.amounts import written
from zerobit.cost.price import AbstractPrice
from zerobit.cost.usage import uniform, usage
from zerobit.cut.apply import QuantNet
from zerobit.cut.decide import commit
from zerobit.errors import TrainingError
from zerobit.graph.ir import Graph
from zerobit.search.method import check_positive
from zerobit.search.net import SearchNet
from zerobit.train.loop import Epoch, Hardware, Phase, cosine, one_cycle, run_phase
from zerobit.train.objective import Objective, evaluate


@dataclass(frozen=True)
class Recipe:
    """Epochs and learning rates of a compression.

    Search and fine-tuning share one cosine over all their epochs for all but choices. Choices have their own, at the
    end of which the network is cut: at a constant rate, channels between two widths would flip to the end. That end is
    at `commit`, and what is left of the search's epochs trains the network as it was cut. A projection to the budget
    changes channels; the sooner it is made, the longer the weights can settle for it.

    Attributes:
        search_epochs: of which the share `commit` is spent with choices, the rest on the cut network.
        finetune_epochs: of the cut network, on top of these.
        lr: of weights, bit planes and ranges (Adam).
        choice_lr: of gates and widths (Adam); raised where the search is too short for a choice to change.
        commit: share of the search's epochs after which choices stand and the network is cut.
        weight_decay: on weights.

    Raises:
        TrainingError: epochs that are no whole numbers or none.
        FormatError: a rate that is not positive.
    """

    search_epochs: int = 8
    finetune_epochs: int = 4
    lr: float = 1e-3
    choice_lr: float = 1e-2
    commit: float = 0.6
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        pair: tuple[Any, ...] = self.search_epochs, self.finetune_epochs
        if not all(isinstance(n, int) and n >= 0 for n in pair) or not any(pair):
            msg = f"`epochs` is {pair}; allowed are whole numbers, none negative, at least 1 in all; choose others"
            raise TrainingError(msg)
        check_positive("lr", self.lr)
        check_positive("choice_lr", self.choice_lr)

    @staticmethod
    def of(epochs: int | Sequence[int], *, lr: float = 1e-3, choice_lr: float = 1e-2) -> "Recipe":
        """From arguments as a user gives them.

        Args:
            epochs: (search, fine-tuning), or their sum, of which two thirds are search.
            lr: of weights, bit planes and ranges.
            choice_lr: of gates and widths.
        """
        pair = (epochs - epochs // 3, epochs // 3) if isinstance(epochs, int) else tuple(epochs)
        if len(pair) != 2:
            msg = f"`epochs` is {pair}; allowed are a number, or one of search and one of fine-tuning; write that"
            raise TrainingError(msg)
        return Recipe(*pair, lr=lr, choice_lr=choice_lr)

    @property
    def choosing_epochs(self) -> int:
        """With choices."""
        return math.ceil(self.commit * self.search_epochs)

    @property
    def tuning_epochs(self) -> int:
        """Of the cut network."""
        return self.search_epochs + self.finetune_epochs - self.choosing_epochs

    @property
    def search_share(self) -> float:
        """Share of all epochs that have choices."""
        return self.choosing_epochs / max(1, self.search_epochs + self.finetune_epochs)

    def choice_rate(self, steps: int) -> float:
        """Learning rate of choices that can move for this many steps.

        Adam moves a logit by at most its rate per step, so a rate sets how far one can travel; an open gate must be
        able to close, and a width to pass two others.
        """
        mean_of_cosine = 0.5
        travelled = max(1.0, steps * mean_of_cosine)
        return max(self.choice_lr, min(_LEAST_TRAVEL / travelled, _FASTEST_CHOICE))


#: Logits that a choice can travel within a search, at least; and the rate that is never exceeded for it.
_LEAST_TRAVEL = 5.0
_FASTEST_CHOICE = 0.1


@dataclass(frozen=True)
class Data:
    """Loaders of a training."""

    train: Iterable[Any]
    val: Iterable[Any]


def train_float(
    net: nn.Module,
    data: Data,
    objective: Objective,
    hardware: Hardware,
    *,
    epochs: int,
    lr: float = 0.2,
    checkpoint: Path | None = None,
    console: Console | None = None,
) -> list[Epoch]:
    """Train a float network in place: SGD with Nesterov momentum 0.9, weight decay 5e-4, one cycle.

    Raises:
        FormatError: a rate that is not positive.
        TrainingError: as `run_phase`.
    """
    check_positive("lr", lr)
    fabric = hardware.fabric()
    net.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    phase = Phase(
        name="float",
        epochs=epochs,
        net=net,
        optimizer=optimizer,
        loss=lambda batch: objective(net, None, batch, fabric.device),
        validate=lambda: evaluate(net, data.val, objective),
        schedule=lambda group, progress: one_cycle(progress),
    )
    settings = {"lr": lr, "seed": hardware.seed}
    return run_phase(
        phase, data.train, hardware, fabric=fabric, checkpoint=checkpoint, settings=settings, console=console
    )


def search(
    net: SearchNet,
    price: AbstractPrice,
    teacher: nn.Module | None,
    data: Data,
    objective: Objective,
    recipe: Recipe,
    hardware: Hardware,
    *,
    checkpoint: Path | None = None,
    console: Console | None = None,
) -> list[Epoch]:
    """Train weights, ranges and choices together, in place. Validation is of the hard network."""
    fabric = hardware.fabric()
    net.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = recipe.choosing_epochs * len(data.train)  # type: ignore[arg-type]
    choice_lr = recipe.choice_rate(round(net.method.choosing_share * steps))

    def note() -> str:
        with torch.no_grad():
            use = usage(net.graph, net.bits(hard=True))
            return ", ".join(f"{c.name} {written(float(c(use)), c.unit)}" for c in price.costs)

    optimizer = torch.optim.Adam(net.param_groups(recipe.lr, choice_lr, recipe.weight_decay))

    def schedule(group: str, progress: float) -> float:
        return cosine(net.method.rate_progress(progress) if group == "choices" else progress * recipe.search_share)

    phase = Phase(
        name="search",
        epochs=recipe.choosing_epochs,
        net=net,
        optimizer=optimizer,
        loss=lambda batch: objective(net, teacher, batch, fabric.device) + price(net),
        validate=lambda: evaluate(net, data.val, objective),
        schedule=schedule,
        before_step=net.advance,
        after_step=lambda: price.update(net),
        note=note,
        extra={"price": price},
    )
    settings = {"recipe": recipe, "method": net.method, "options": net.options.describe(), "price": price.describe()}
    settings |= {"costs": _figures(net.graph, price), **_shared(objective, hardware)}
    history = run_phase(
        phase, data.train, hardware, fabric=fabric, checkpoint=checkpoint, settings=settings, console=console
    )
    if steps:
        net.advance((steps - 1) / steps)  # the schedule is not in checkpoints; after a resumption it is where it ended
    commit(net, price)
    return history


def finetune(
    net: QuantNet,
    teacher: nn.Module | None,
    data: Data,
    objective: Objective,
    recipe: Recipe,
    hardware: Hardware,
    *,
    checkpoint: Path | None = None,
    console: Console | None = None,
) -> list[Epoch]:
    """Train a cut network at its fixed widths, in place, along the rest of the recipe's cosine."""
    fabric = hardware.fabric()
    net.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    start = recipe.search_share
    phase = Phase(
        name="fine-tune",
        epochs=recipe.tuning_epochs,
        net=net,
        optimizer=torch.optim.Adam(net.param_groups(recipe.lr, recipe.weight_decay)),
        loss=lambda batch: objective(net, teacher, batch, fabric.device),
        validate=lambda: evaluate(net, data.val, objective),
        schedule=lambda group, progress: cosine(start + (1 - start) * progress),
    )
    settings = {"recipe": recipe, "plan": net.plan.hash, **_shared(objective, hardware)}
    return run_phase(
        phase, data.train, hardware, fabric=fabric, checkpoint=checkpoint, settings=settings, console=console
    )


def _figures(graph: Graph, price: AbstractPrice) -> list[str]:
    """What each cost says of the network: one of the same name may be another cost."""
    uses = [usage(graph, uniform(graph, bits)) for bits in (8, 4, 2)]
    return [f"{float(cost(use)):.9g}" for cost in price.costs for use in uses]


def _shared(objective: Objective, hardware: Hardware) -> dict[str, Any]:
    """Settings that every compressing phase depends on."""
    return {
        **objective.names(),
        "distillation": objective.distillation,
        "softness": objective.softness,
        "precision": hardware.precision,
        "seed": hardware.seed,
    }
