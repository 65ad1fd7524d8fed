"""What searched weights become: the float weights and steps from which the cut network goes on.

A fixed quantizer rounds weights to multiples of a step. What a search trained may be more than that: a function between
the weight and its levels, a factor on a unit. Both become part of the weights here, so that the cut alone changes
nothing.

A channel that gets a wider width than the search trained starts from what the narrower one computed. Trained at 2 bit,
it computes with -1, 0 and 1 times its step; its float weights only say which of these. Rounded on a finer grid they
would be other weights, and the network another function. So they are put on the levels that they were trained with, and
the step is a whole fraction of that of these levels.
Shape legend: C output channels, B = len(GRID).
"""

from collections.abc import Sequence

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
    score = torch.full((len(slot.index), len(GRID)), -torch.inf, dtype=torch.float64)
    preference = slot.quantizer.preference()
    if slot.coupled:
        preference = per_channel([net.choice(name).preference() for name in slot.groups], slot.index)
    score[:, [GRID.index(w) for w in slot.quantizer.widths]] = preference.double().cpu()
    return score


def trained_bits(net: SearchNet, weight: str) -> Tensor:
    """Int64 [C], the width that each output channel was trained with, as if it stayed."""
    return torch.tensor(GRID)[width_score(net, weight).argmax(1)]


def finer(trained: int, bits: int, *, full_range: bool) -> int:
    """Steps at a width that make one step at the trained one; 1 where the width is no wider.

    The largest number at which every level of the trained width is one of the wider width.
    """
    if bits <= trained:
        return 1
    levels = [Format(b, signed=True, full_range=full_range) for b in (trained, bits)]
    return min(levels[1].high // levels[0].high, levels[1].low // levels[0].low)


@torch.no_grad()
def final_steps(net: SearchNet, weight: str, bits: Sequence[int]) -> Tensor:
    """Float64 [C], quantisation steps at final widths; of no meaning where a width is 0."""
    slot, trained = net.weight_slot(weight), trained_bits(net, weight)
    flat = to_rows(net.tensor(weight), slot.layout)
    narrower = torch.minimum(torch.tensor(bits), trained).clamp_min(slot.quantizer.widths[0])
    step = slot.quantizer.step_at(flat, narrower.to(flat.device)).double().cpu()
    full_range = slot.quantizer.full_range
    ratio = [finer(t, b, full_range=full_range) for t, b in zip(trained.tolist(), bits, strict=True)]
    factors = _factors(net, slot.groups)
    if factors:
        step = step * per_channel(factors, slot.index).double().cpu().abs()
    return step / torch.tensor(ratio, dtype=torch.float64)


def _factors(net: SearchNet, groups: Sequence[str]) -> list[Tensor]:
    """[units] of each group, factors of units if they stay; none where all are 1."""
    choices = [net.choice(name) for name in groups]
    return [choice.factor() for choice in choices] if any(choice.scales for choice in choices) else []


@torch.no_grad()
def settle_searched(net: SearchNet, plan: Plan) -> None:
    """Make what was trained part of the parameters, in place.

    Args:
        net: a network in search; one of its own, since its parameters change.
        plan: for it.
    """
    tensors = net.tensors()
    for name, weight in plan.weights.items():
        slot, trained = net.weight_slot(name), trained_bits(net, name)
        flat = to_rows(tensors[name], slot.layout)
        settled = slot.quantizer.values(flat)
        promoted = torch.tensor(weight.bits) > trained
        if promoted.any():
            quantized = slot.quantizer.quantized(flat, trained.to(flat.device))
            settled = torch.where(promoted[:, None].to(flat.device), quantized, settled)
        if factors := _factors(net, slot.groups):
            settled = settled * per_channel(factors, slot.index)[:, None]
        if settled is not flat:
            tensors[name].copy_(from_rows(settled, tensors[name], slot.layout))
    for name, slot in net.parameter_gates():
        if factors := _factors(net, slot.groups):
            tensors[name].copy_(slot.scaled(tensors[name], factors))
