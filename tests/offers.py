"""Small networks, what searches of these and of the zoo's networks offer with random preferences, and single steps."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from cases import Forward
from zerobit.bits import BitDist, NetBits
from zerobit.cost.price import Limit
from zerobit.cost.registry import named_cost
from zerobit.cost.usage import usage
from zerobit.cut.choices import Bools, Offer, Selection, smallest
from zerobit.cut.decide import read_offer
from zerobit.formats import GRID
from zerobit.graph.ir import Graph
from zerobit.search.attach import attach
from zerobit.search.methods.softmax import ChannelSoftmax
from zerobit.zoo.models import MODELS

#: Limits for the networks of the zoo.
ALL = (
    *((name,) for name in ("size", "bops", "mpic", "ne16", "ram", "gap8", "diana", "cortex_m", "cortex_m.flash")),
    *(("size", "ne16"), ("bops", "ram"), ("cortex_m.flash", "ram", "gap8")),
)


def _chain() -> nn.Module:
    return Forward(
        lambda m, x: m.fc(F.relu(m.b(F.relu(m.a(x)))).mean((2, 3))),
        a=nn.Conv2d(2, 4, 3, padding=1),
        b=nn.Conv2d(4, 3, 1),
        fc=nn.Linear(3, 2),
    )


def _residual() -> nn.Module:
    def forward(m: Forward, x: torch.Tensor) -> torch.Tensor:
        x = m.s(x)
        return m.fc((m.b(F.relu(m.a(x))) + x).mean((2, 3)))

    return Forward(
        forward, s=nn.Conv2d(2, 2, 1), a=nn.Conv2d(2, 3, 3, padding=1), b=nn.Conv2d(3, 2, 1), fc=nn.Linear(2, 2)
    )


def _depthwise() -> nn.Module:
    return Forward(
        lambda m, x: m.fc(F.relu(m.d(F.relu(m.a(x)))).mean((2, 3))),
        a=nn.Conv2d(2, 4, 1),
        d=nn.Conv2d(4, 4, 3, padding=1, groups=4),
        fc=nn.Linear(4, 2),
    )


SMALL: dict[str, Callable[[], nn.Module]] = {"chain": _chain, "residual": _residual, "depthwise": _depthwise}


@cache
def offered(name: str, method: ChannelSoftmax) -> tuple[Graph, Offer]:
    """A network's graph and what its search offers, for random preferences to be put in."""
    torch.manual_seed(0)
    zoo = MODELS.get(name)
    model = SMALL[name]() if zoo is None else zoo.build(10)
    net = attach(model.eval(), torch.zeros(1, *((2, 6, 6) if zoo is None else zoo.input_shape)), method)
    return net.graph, read_offer(net)[0]


def random_offer(name: str, seed: int, method: ChannelSoftmax | None = None) -> tuple[Graph, Offer, Bools]:
    """With random preferences; and the units that they keep, as many as the method allows."""
    graph, offer = offered(name, method or ChannelSoftmax())
    rng = np.random.default_rng(seed)
    keep_score = np.where(np.isfinite(offer.keep_score), rng.normal(1, 2, len(offer.keep_score)), np.inf)
    width_score = np.where(np.isfinite(offer.width_score), rng.normal(0, 2, offer.width_score.shape), -np.inf)
    offer = dataclasses.replace(offer, keep_score=keep_score, width_score=width_score)
    keep = keep_score > 0
    for group, place in offer.units.items():
        score = torch.from_numpy(keep_score[place])
        keep[place] = offer.rules[group].apply(torch.from_numpy(keep[place]), score).numpy()
    return graph, offer, keep


def largest(offer: Offer) -> Selection:
    widest = len(GRID) - 1 - np.isfinite(offer.width_score)[:, ::-1].argmax(1)
    return Selection(offer, np.ones(len(offer.keep_score), dtype=bool), widest)


def limits_at(graph: Graph, offer: Offer, names: Sequence[str], share: float) -> list[Limit]:
    """A share of the way from the smallest selection to the largest."""
    least, most = (usage(graph, s.net_bits()) for s in (smallest(offer), largest(offer)))
    costs = [named_cost(name) for name in names]
    return [Limit(c, float(c(least)) + share * max(0.0, float(c(most)) - float(c(least)))) for c in costs]


def with_unit(graph: Graph, bits: NetBits, group_index: int, unit: int, keep: bool) -> NetBits:
    """The same widths with one unit in or out; a unit that comes in has 4 bits."""
    group = graph.groups[group_index]
    kept = {k: v.clone() for k, v in bits.keep.items()}
    kept[group.name][unit] = float(keep)
    weights = {k: d.bits.int() for k, d in bits.weights.items()}
    for member in group.members:
        if member.tensor in weights and member.dim == graph.rows[member.tensor].dim:
            weights[member.tensor][member.index[unit].tolist()] = 4 if keep else 0
    return NetBits(kept, {k: BitDist.one_hot(w) for k, w in weights.items()}, bits.activations)
