"""Short searches at settings that nobody would choose: does every number stay finite?

Learning rates, prices, the methods' own strengths and the scales of the trained weights are drawn at random; ten steps
of search, then the cut network is trained for two. A loss may grow as it likes, as long as it is a number.
"""

import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from zerobit.bits import NetBits
from zerobit.cost import Bops, Size
from zerobit.cost.base import AbstractCost
from zerobit.cost.price import AbstractPrice, Budget, Searched, Strength
from zerobit.cost.usage import usage
from zerobit.cut.apply import QuantNet, apply
from zerobit.cut.decide import check_limits, decide
from zerobit.errors import BudgetError, TrainingError
from zerobit.search.attach import attach, calibrate
from zerobit.search.method import AbstractMethod
from zerobit.search.net import SearchNet
from zerobit.train.loop import Hardware
from zerobit.train.objective import Objective
from zerobit.train.phases import Data, Recipe, finetune, search, train_float
from zerobit.zoo.data import Batches
from zerobit.zoo.models import digits_net
from zerobit.zoo.tasks import load_task

STEPS = 10
_TUNING_STEPS = 2
_BATCH = 16
_HARDWARE = Hardware("cpu", progress=False)

_RATES = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
_CHOICE_RATES = (1e-3, 1e-2, 0.1, 1.0, 10.0)
_STRENGTHS = (0.0, 1e-2, 1.0, 1e2, 1e4)
_BUDGETS = ("10%", "30%", "60%")
#: Fields of methods that are weights of a loss term.
_OWN_STRENGTHS = ("information", "strength")
#: Name -> what the weights of a layer are multiplied by.
_SCALES = {"dead": 0.0, "x 1e-4": 1e-4, "x 1e4": 1e4}


class SmallNet(nn.Module):
    """A residual network for digits that is captured quickly."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        x = (self.norm2(self.conv2(x)) + x).relu()
        return self.fc(x.mean((2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"digits": digits_net, "small": SmallNet}


@dataclass(frozen=True)
class Extreme:
    """Settings of one search.

    Attributes:
        seed: of the draw and of the training.
        network: key of `NETWORKS`.
        method: with a strength of its own, where it has one.
        lr: of weights and ranges.
        choice_lr: of choices.
        budget: of the cost in percent; or None.
        strength: of the cost, where there is no budget.
        cost: what is charged for.
        damage: name of `_SCALES`, or "silent" for a layer that puts out zeros; or "".
        layer: which one it is; -1 for all.
        start: which of the widths is started from, -1 for the method's start.
    """

    seed: int
    network: str
    method: AbstractMethod
    lr: float
    choice_lr: float
    budget: str | None
    strength: float
    cost: AbstractCost
    damage: str
    layer: int
    start: int


@dataclass(frozen=True)
class Outcome:
    """What a search came to.

    Attributes:
        findings: what was not finite, the first of each kind.
        largest_loss: mean of an epoch.
    """

    findings: tuple[str, ...]
    largest_loss: float


def draw(method: AbstractMethod, seed: int, network: str = "digits") -> Extreme:
    """Random settings."""
    draws = random.Random(seed)
    own = {f.name: draws.choice(_STRENGTHS) for f in fields(method) if f.name in _OWN_STRENGTHS and f.init}
    return Extreme(
        seed=seed,
        network=network,
        method=replace(method, **own),
        lr=draws.choice(_RATES),
        choice_lr=draws.choice(_CHOICE_RATES),
        budget=draws.choice((None, *_BUDGETS)),
        strength=draws.choice(_STRENGTHS),
        cost=draws.choice((Size(), Bops())),
        damage=draws.choice(("", *_SCALES, "silent")),
        layer=draws.randrange(-1, len(_layers(NETWORKS[network]()))),
        start=draws.randrange(-1, len(method.widths)),
    )


def run(extreme: Extreme) -> Outcome:
    """Search, cut, train the cut network, and look at all numbers after every step."""
    data = Data(_batches()[:STEPS], _batches()[:1])
    teacher = _damaged(extreme)
    torch.manual_seed(extreme.seed)
    net = calibrate(attach(teacher, data.train[0][0], extreme.method), [((x,), {}) for x, _ in data.train[:4]])
    if extreme.start >= 0:
        net.start_at(extreme.method.widths[extreme.start])
    price = Watched(_price(net, extreme))
    recipe = Recipe(search_epochs=1, finetune_epochs=1, lr=extreme.lr, choice_lr=extreme.choice_lr, commit=1.0)
    hardware = replace(_HARDWARE, seed=extreme.seed)
    losses: list[float] = []
    try:
        losses += [e.loss for e in search(net, price, teacher, data, Objective(), recipe, hardware)]
        price.look_at("committed", _numbers(net))
        small = apply(net, decide(net, price))
        price.look_at("cut", _tensors(small))
        tuning = Data(data.train[:_TUNING_STEPS], data.val)
        losses += [e.loss for e in finetune(small, teacher, tuning, Objective(), recipe, hardware)]
        price.look_at("fine-tuned", {**_tensors(small), "output": _output(small)})
    except TrainingError as error:
        price.findings.setdefault("loss", str(error).partition("; it must")[0])
    return Outcome(tuple(price.findings.values()), max(losses, default=math.nan))


class Watched(AbstractPrice):
    """A price that looks at all numbers of a network once per step.

    Attributes:
        findings: kind -> the first that was not finite.
    """

    def __init__(self, price: AbstractPrice) -> None:
        self.price, self.costs = price, price.costs
        self.findings: dict[str, str] = {}
        self._step = 0

    def limits(self, graph: Any) -> Any:
        return self.price.limits(graph)

    def __call__(self, net: Searched) -> Tensor:
        return self.price(net)

    def update(self, net: Searched) -> None:
        self.price.update(net)
        self._step += 1
        assert isinstance(net, SearchNet)
        self.look_at(f"step {self._step}", _numbers(net))
        kept = {f"price {n}": torch.tensor(float(v)) for n, v in self.state_dict().items() if v is not None}
        cost = {"cost": self.costs[0](usage(net.graph, net.bits()))}
        self.look_at(f"step {self._step}", {**kept, **cost, "price": self.price(net)})

    def look_at(self, when: str, numbers: Mapping[str, Tensor]) -> None:
        """Note what is not finite."""
        for name, tensor in numbers.items():
            bad = tensor.numel() - int(tensor.isfinite().sum())
            if bad:
                kind = name.split(" ")[0]
                self.findings.setdefault(kind, f"{when}: {bad} of {tensor.numel()} values of {name}")

    def describe(self) -> str:
        return self.price.describe()

    def state_dict(self) -> dict[str, Any]:
        return self.price.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.price.load_state_dict(state)


def _numbers(net: SearchNet) -> dict[str, Tensor]:
    """Parameters, buffers, gradients and choices of a network in search."""
    grads = {f"gradient of {n}": p.grad for n, p in net.named_parameters() if p.grad is not None}
    choices = {f"choice {n}": t for hard in (False, True) for n, t in _parts(net.bits(hard=hard))}
    return {**_tensors(net), **grads, **choices}


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    return {f"parameter {n}": t for n, t in net.state_dict().items() if t.is_floating_point()}


def _parts(bits: NetBits) -> Iterator[tuple[str, Tensor]]:
    yield from bits.keep.items()
    for dists in (bits.weights, bits.activations):
        yield from ((name, dist.p) for name, dist in dists.items())


@torch.no_grad()
def _output(net: QuantNet) -> Tensor:
    return net.eval()(_batches()[0][0])


def _price(net: SearchNet, extreme: Extreme) -> AbstractPrice:
    """The budget, if it can be kept; else the strength."""
    if extreme.budget is not None:
        budget = Budget(extreme.cost, extreme.budget)
        try:
            check_limits(net, budget)
        except BudgetError:
            pass  # methods that don't prune have no network this small
        else:
            return budget
    return Strength(extreme.cost, extreme.strength)


@cache
def _batches() -> list[tuple[Tensor, Tensor]]:
    task = load_task("digits")
    return list(Batches(task.train, task, _BATCH, shuffle=True))


@cache
def _trained(network: str) -> nn.Module:
    torch.manual_seed(0)
    net = NETWORKS[network]()
    train_float(net, Data(_batches(), _batches()[:1]), Objective(), _HARDWARE, epochs=1)
    return net.eval()


def _layers(net: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def _damaged(extreme: Extreme) -> nn.Module:
    """A copy of a trained network with one or all layers scaled, or with a layer that puts out zeros."""
    net = copy.deepcopy(_trained(extreme.network))
    layers = _layers(net)
    with torch.no_grad():
        if extreme.damage in _SCALES:
            for layer in layers if extreme.layer < 0 else [layers[extreme.layer]]:
                layer.weight.mul_(_SCALES[extreme.damage])
        if extreme.damage == "silent":
            norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
            norm = norms[extreme.layer % len(norms)]
            norm.weight.zero_()
            norm.bias.zero_()
    return net
