"""`SearchNet`: a network with its choices, as `attach` makes it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zerobit.bits import BitDist, NetBits
from zerobit.formats import GRID
from zerobit.graph.ir import ChannelGroup, Graph
from zerobit.graph.program import Program, assign, fetch, slot_name
from zerobit.quant.placement import ActivationSite, activation_sites
from zerobit.quant.slot import ActivationSlot
from zerobit.search.choice import AbstractChoice
from zerobit.search.control import Options
from zerobit.search.method import AbstractMethod, start_logits
from zerobit.search.slots import WeightSlot, per_channel
from zerobit.search.widths.coupled import CoupledChoice
from zerobit.search.widths.softmax import SoftmaxWidth


class SearchNet(Program):
    """A network with its choices: trains like any module, in evaluation runs the hard choice.

    Built by `attach`. The user's parameters keep their names; ours are under `slots.`, choices end in `gate` or
    `width`.

    Attributes:
        graph: of the float network, with its channel groups.
        method: the method.
        options: what may be chosen, by the method and the user.
        sites: activation quantizers.
        progress: share of the search that is done.
        choosing_groups: names of the groups that have a choice.
    """

    def __init__(self, program: Program, graph: Graph, method: AbstractMethod, options: Options) -> None:
        super().__init__(program.code, program.tensors(), program.structure, program.example_inputs())
        for name, module in program.named_modules():
            if isinstance(module, nn.Dropout):
                assign(self, name, module)
        self.graph, self.method, self.options, self.progress = graph, method, options, 0.0
        self.sites: tuple[ActivationSite, ...] = activation_sites(graph)
        self.choosing_groups: set[str] = set()

    def param_groups(
        self, lr: float = 1e-3, choice_lr: float | None = None, weight_decay: float = 0.0
    ) -> list[dict[str, Any]]:
        """Optimizer groups: weights, quantisation ranges and choices apart.

        Args:
            lr: of weights and ranges.
            choice_lr: of gates and widths; ten times `lr` if None.
            weight_decay: on weights of two or more dimensions only, never on ranges or choices.
        """
        weights, vectors, ranges, choices = [], [], [], []
        theirs = {id(tensor) for tensor in self.tensors().values()}
        for name, parameter in self.named_parameters():
            kind = name.rsplit(".", 1)[-1]
            if id(parameter) in theirs:
                (weights if parameter.dim() > 1 else vectors).append(parameter)
            else:
                (choices if kind in ("gate", "width") else ranges).append(parameter)
        choice_lr = 10 * lr if choice_lr is None else choice_lr
        groups = [
            {"name": "weights", "params": weights, "lr": lr, "weight_decay": weight_decay},
            {"name": "vectors", "params": vectors, "lr": lr, "weight_decay": 0.0},
            {"name": "ranges", "params": ranges, "lr": lr, "weight_decay": 0.0},
            {"name": "choices", "params": choices, "lr": choice_lr, "weight_decay": 0.0},
        ]
        return [g for g in groups if g["params"]]

    @torch.no_grad()
    def start_at(self, bits: int) -> None:
        """Set all width choices of weights to start from one width, or from the nearest that they offer.

        Near a budget, a search is left the question of which channels deserve more or nothing, not the long way down.

        Args:
            bits: one of the method's widths.
        """
        for weight in self.graph.searched_weights:
            width = self.weight_slot(weight).width
            if width is not None:
                width.width.copy_(start_logits(width.widths, bits).expand_as(width.width))

    def advance(self, progress: float) -> None:
        """Move the schedule: temperature of all choices at a share of the search, 0..1."""
        self.progress = progress
        temperature = self.method.temperature(progress)
        for module in self.modules():
            if isinstance(module, AbstractChoice):
                module.temperature = temperature

    def penalty(self) -> Tensor:
        """The method's own loss term; this method has none."""
        return torch.zeros((), dtype=torch.float64, device=self.device)

    def group_choice(self, group: ChannelGroup) -> AbstractChoice | None:
        """The choice module of a channel group, if it has one."""
        if group.name not in self.choosing_groups:
            return None
        choice = fetch(self, slot_name("groups", group.name))
        assert isinstance(choice, AbstractChoice)
        return choice

    def weight_slot(self, weight: str) -> WeightSlot:
        """The slot of a weight."""
        slot = fetch(self, slot_name("weights", weight))
        assert isinstance(slot, WeightSlot)
        return slot

    def activation_slot(self, site: str) -> ActivationSlot:
        """The quantizer of an activation site."""
        slot = fetch(self, slot_name("activations", site))
        assert isinstance(slot, ActivationSlot)
        return slot

    def activation_choice(self, site: str) -> SoftmaxWidth | None:
        """The width choice of an activation site, if it has several widths."""
        if len(self.method.activation_bits) == 1:
            return None
        choice = fetch(self, slot_name("activation_choices", site))
        assert isinstance(choice, SoftmaxWidth)
        return choice

    def bits(self, *, hard: bool = False) -> NetBits:
        """The choices as distributions; differentiable and without noise, or the hard choice."""
        keep = {group.name: self._keep(group, hard=hard) for group in self.graph.groups}
        weights = {}
        for weight in self.graph.searched_weights:
            weights[weight] = self._weight_dist(weight, keep, hard=hard)
        activations = {}
        for site in self.sites:
            choice = self.activation_choice(site.name)
            widths = self.method.activation_bits
            ones = torch.ones(1, device=self.device)
            p = ones[:, None] if choice is None else _view(choice, hard=hard)
            activations.update(dict.fromkeys(site.tensors, BitDist.from_gate_and_width(ones, p, widths)))
        return NetBits(keep, weights, activations)

    def _keep(self, group: ChannelGroup, *, hard: bool) -> Tensor:
        choice = self.group_choice(group)
        if choice is None:
            return torch.ones(group.units, dtype=torch.float64, device=self.device)
        view = _view(choice, hard=hard).double()
        return 1 - view[:, 0] if isinstance(choice, CoupledChoice) else view

    def _weight_dist(self, weight: str, keep: Mapping[str, Tensor], *, hard: bool) -> BitDist:
        slot = self.weight_slot(weight)
        channels = len(slot.index)
        if slot.coupled:
            theta = per_channel([self._theta(name, hard=hard) for name in slot.groups], slot.index)
            p = theta.new_zeros(channels, len(GRID))
            columns = torch.tensor([0, *(GRID.index(w) for w in slot.grid.widths)], device=theta.device)
            return BitDist(p.index_copy(1, columns, theta))
        gate = torch.ones(channels, dtype=torch.float64, device=self.device)
        if slot.groups:
            gate = per_channel([keep[name] for name in slot.groups], slot.index)
        width = slot.width
        p = torch.ones(channels, 1, device=self.device) if width is None else _view(width, hard=hard)
        return BitDist.from_gate_and_width(gate, p, slot.grid.widths)

    def _theta(self, group: str, *, hard: bool) -> Tensor:
        choice = fetch(self, slot_name("groups", group))
        assert isinstance(choice, CoupledChoice)
        return _view(choice, hard=hard).double()


def _view(choice: AbstractChoice, *, hard: bool) -> Tensor:
    return choice.hard().double() if hard else choice.price_view()
