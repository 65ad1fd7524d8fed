"""Channels that get a wider width than the search trained: they start from what the narrower one computed.

A channel that was trained at 2 bit computes with -1, 0 and 1 times its step; its float weights only say which of these.
Rounded on a finer grid they would be other weights, and the network another function. So its weights are put on the
levels that it was trained with, and its step is a whole fraction of that of these levels: the promotion alone changes
nothing, and fine-tuning starts from the network that was searched.
Shape legend: C output channels, B = len(GRID).
"""

import torch
from torch import Tensor

from zerobit.formats import GRID, Format
from zerobit.graph.rows import from_rows, to_rows
from zerobit.plan import Plan
from zerobit.search.net import SearchNet
from zerobit.search.slots import per_channel


@torch.no_grad()
def width_score(net: SearchNet, weight: str) -> Tensor:
    """[C, B], log preference of each offered grid column, -inf elsewhere."""
    slot = net.weight_slot(weight)
    channels = len(slot.index)
    score = torch.full((channels, len(GRID)), -torch.inf, dtype=torch.float64)
    columns = [GRID.index(w) for w in slot.grid.widths]
    if slot.coupled:
        by_name = {g.name: net.group_choice(g) for g in net.graph.groups}
        samples = [choice.probability() for name in slot.groups if (choice := by_name[name]) is not None]
        p = per_channel(samples, slot.index).double().cpu()[:, 1:]
    elif slot.width is not None:
        p = slot.width.probability().double().cpu()
    else:
        p = torch.ones(channels, 1, dtype=torch.float64)
    score[:, columns] = p.clamp_min(1e-30).log()
    return score


def trained_bits(net: SearchNet, weight: str) -> list[int]:
    """[C], the width that each output channel was trained with, as if it stayed."""
    return [GRID[c] for c in width_score(net, weight).argmax(1).tolist()]


def finer(trained: int, bits: int, *, full_range: bool) -> int:
    """Steps at a width that make one step at the trained one; 1 where the width is no wider.

    The largest number at which every level of the trained width is one of the wider width.
    """
    if bits <= trained:
        return 1
    levels = [Format(b, signed=True, full_range=full_range) for b in (trained, bits)]
    return min(levels[1].high // levels[0].high, levels[1].low // levels[0].low)


@torch.no_grad()
def settle_promoted(net: SearchNet, plan: Plan) -> None:
    """Put the weights of promoted channels on the levels that they were trained with, in place.

    Args:
        net: a network in search; one of its own, since its weights change.
        plan: for it.
    """
    tensors = net.tensors()
    for name, weight in plan.weights.items():
        trained = torch.tensor(trained_bits(net, name))
        promoted = torch.tensor(weight.bits) > trained
        if promoted.any():
            grid, layout = net.weight_slot(name).grid, net.graph.rows[name]
            flat = to_rows(tensors[name], layout)
            choice = (trained[:, None] == torch.tensor(grid.widths)).to(flat)
            settled = torch.where(promoted[:, None].to(flat.device), grid.mix(flat, choice), flat)
            tensors[name].copy_(from_rows(settled, tensors[name], layout))
