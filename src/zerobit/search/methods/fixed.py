"""Training at given widths: a uniform width, or a plan."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from zerobit.errors import FormatError, PlanError
from zerobit.formats import check_bits
from zerobit.graph.ir import ChannelGroup
from zerobit.graph.program import fetch, slot_name
from zerobit.plan import Plan
from zerobit.quant.slot import LearnedGrid
from zerobit.search.choice import UnitRule
from zerobit.search.fits import check_fits
from zerobit.search.gates.fixed import FixedGate
from zerobit.search.method import AbstractMethod, Searched, check_widths
from zerobit.search.net import SearchNet
from zerobit.search.widths.base import GridQuantizer
from zerobit.search.widths.fixed import FixedWidth

#: Width of activations that nothing is said about, and of weights where a plan has none.
_USUAL = 8


@dataclass(frozen=True)
class Fixed(AbstractMethod):
    """Quantisation-aware training at given widths with learned steps (LSQ, Esser et al., ICLR 2020).

    Nothing is searched: the "search" trains the weights at their widths, and what comes after it is as for any method.
    Give either `bits` or `plan`. Widths of single weights can be given to `attach` or `compress` as patterns, too.

    Attributes:
        bits: of all weights, from {2..8}; nothing is pruned.
        plan: kept units and widths of every channel and activation. Its steps are not used: they are fitted to the
            network as it is, and learned anew.
        activation_bits: of all activations, one width from {2..8}; 8 if left out. With a plan, they are the plan's.
        weight_bits: the widths that occur.
        start_bits: the widest of them.
        min_channels: 1.
        plan_hash: fingerprint of the plan, which stands for it where the method is written out.

    Raises:
        FormatError: neither or both of `bits` and `plan`, or a width that does not exist.
    """

    bits: int | None = None
    plan: Plan | None = field(default=None, repr=False, hash=False)
    activation_bits: tuple[int, ...] = ()
    weight_bits: tuple[int, ...] = field(init=False, repr=False)
    start_bits: int | None = field(init=False, repr=False)
    min_channels: int = field(init=False, repr=False, default=1)
    plan_hash: str | None = field(init=False)

    def __post_init__(self) -> None:
        if isinstance(self.activation_bits, int):
            object.__setattr__(self, "activation_bits", (self.activation_bits,))
        if (self.bits is None) == (self.plan is None):
            what = "neither is given" if self.bits is None else "both are given"
            msg = f"`bits` or `plan`: {what}; allowed is one of them; write for example Fixed(bits=4)"
            raise FormatError(msg)
        if not isinstance(self.plan, Plan | None):  # pyright: ignore[reportUnnecessaryIsInstance]  # a path, say
            msg = f"`plan` is {self.plan!r}; allowed is a Plan; read one with Plan.from_json(text of a plan.json)"
            raise FormatError(msg)
        weights, activations = self._uniform() if self.plan is None else _widths_of(self.plan)
        if self.activation_bits and set(self.activation_bits) != set(activations):
            allowed = "one width" if self.plan is None else f"those of the plan, {activations}"
            msg = f"`activation_bits` is {self.activation_bits}; allowed is {allowed}; give that, or leave it out"
            raise FormatError(msg)
        object.__setattr__(self, "weight_bits", weights)
        object.__setattr__(self, "activation_bits", activations)
        object.__setattr__(self, "start_bits", max(weights))
        object.__setattr__(self, "plan_hash", None if self.plan is None else self.plan.hash)
        check_widths(self)

    def _uniform(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        assert self.bits is not None
        check_bits("bits", (self.bits,), allow_zero=False)
        return (self.bits,), self.activation_bits[:1] or (_USUAL,)

    @property
    def chooses(self) -> bool:
        """Nothing."""
        return False

    def group_choice(self, group: ChannelGroup, rule: UnitRule, *, removable: bool) -> FixedGate | None:
        """With a plan, a gate; `attached` closes it where the plan says so."""
        del rule
        return FixedGate(group.units) if removable and self.plan is not None else None

    def weight_quantizer(self, w_CK: Tensor, widths: tuple[int, ...], *, coupled: bool) -> GridQuantizer:
        """A grid; with a plan of several widths, `attached` says which channel has which."""
        del coupled
        choice = FixedWidth(len(w_CK), widths) if len(widths) > 1 else None
        return GridQuantizer(LearnedGrid(widths, w_CK), len(w_CK), choice)

    def activation_choice(self) -> FixedWidth | None:
        """As of weights."""
        return FixedWidth(1, self.activation_bits) if len(self.activation_bits) > 1 else None

    def attached(self, net: Searched) -> None:
        """Give every group, weight and activation what the plan has for it.

        Raises:
            PlanError: the plan does not fit the network, or what the user wants of it.
            FormatError: without a plan, several widths are offered to a weight.
        """
        assert isinstance(net, SearchNet)
        if self.plan is None:
            _check_single(net)
            return
        check_fits(net.graph, self.plan)
        for group in net.graph.groups:
            _set_units(net, group, self.plan.kept[group.name])
        for weight, found in self.plan.weights.items():
            _set_widths(net, weight, found.bits)
        for site in net.sites if len(self.activation_bits) > 1 else ():
            choice = fetch(net, slot_name("activation_choices", site.name))
            assert isinstance(choice, FixedWidth)
            choice.set_bits([self.plan.activations[site.name].bits])


def _widths_of(plan: Plan) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Widths of weights, 0 among them where the plan removes channels, and of activations."""
    weights = {b for weight in plan.weights.values() for b in weight.bits}
    activations = {activation.bits for activation in plan.activations.values()}
    return tuple(sorted(weights)) or (_USUAL,), tuple(sorted(activations)) or (_USUAL,)


def _check_single(net: SearchNet) -> None:
    for weight in net.graph.searched_weights:
        if len(widths := net.options.widths(weight)) > 1:
            msg = (
                f"`bits` offers {widths} to {weight!r}, but at fixed widths nothing is chosen; allowed is one width; "
                "give one, or search with another method"
            )
            raise FormatError(msg)


def _set_units(net: SearchNet, group: ChannelGroup, kept: Sequence[int]) -> None:
    gate, rule = net.group_choice(group), net.options.rules[group.name]
    if rule.nearest(len(kept), group.units) != len(kept):
        msg = (
            f"`plan` keeps {len(kept)} of {group.units} units of {group.name!r}; allowed are at least {rule.at_least}, "
            f"a multiple of {rule.multiple_of}, or all; change the plan, `min_channels` or `multiple_of`"
        )
        raise PlanError(msg)
    if gate is None and len(kept) < group.units:
        msg = (
            f"`plan` keeps {len(kept)} of {group.units} units of {group.name!r}, which can't lose any: "
            f"{net.options.fixed[group.name]}; change the plan, or what is asked of the network"
        )
        raise PlanError(msg)
    if gate is not None:
        assert isinstance(gate, FixedGate)
        gate.keep_only(kept)


def _set_widths(net: SearchNet, weight: str, bits: Sequence[int]) -> None:
    quantizer = net.weight_slot(weight).quantizer
    other = sorted({b for b in bits if b} - set(quantizer.widths))
    if other:
        msg = (
            f"`plan` has {other} bit in {weight!r}, for which `bits` allows {quantizer.widths}; "
            "change the plan, or leave that pattern out"
        )
        raise PlanError(msg)
    assert isinstance(quantizer, GridQuantizer)
    if quantizer.choice is not None:
        assert isinstance(quantizer.choice, FixedWidth)
        quantizer.choice.set_bits(bits)
