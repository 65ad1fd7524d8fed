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
from zerobit.quant.slot import AbstractActivationSlot
from zerobit.search.choice import AbstractChoice, AbstractGroupChoice
from zerobit.search.control import Options
from zerobit.search.method import AbstractMethod
from zerobit.search.slots import GateSlot, WeightSlot, per_channel


class SearchNet(Program):
    """A network with its choices: trains like any module, in evaluation runs the hard choice.

    Built by `attach`. The user's parameters keep their names; ours are under `slots.`.

    Attributes:
        graph: of the float network, with its channel groups.
        method: the method.
        options: what may be chosen, by the method and the user.
        sites: activation quantizers.
        progress: share of the search that is done.
        choosing_groups: names of the groups that have a choice.
        choosing_sites: names of the choices of activations.
        gated_parameters: (parameter, name of the slot that gates it); a parameter may have several.
    """

    def __init__(self, program: Program, graph: Graph, method: AbstractMethod, options: Options) -> None:
        super().__init__(program.code, program.tensors(), program.structure, program.example_inputs())
        for name, module in program.named_modules():
            if isinstance(module, nn.Dropout):
                assign(self, name, module)
        self.graph, self.method, self.options, self.progress = graph, method, options, 0.0
        self.sites: tuple[ActivationSite, ...] = activation_sites(graph)
        self.choosing_groups: set[str] = set()
        self.choosing_sites: set[str] = set()
        self.gated_parameters: list[tuple[str, str]] = []

    def param_groups(
        self, lr: float = 1e-3, choice_lr: float | None = None, weight_decay: float = 0.0
    ) -> list[dict[str, Any]]:
        """Optimizer groups: weights, bit planes, quantisation ranges and choices apart.

        Args:
            lr: of weights, planes and ranges.
            choice_lr: of gates and widths; ten times `lr` if None.
            weight_decay: on weights of two or more dimensions only, never on what a method trains.
        """
        weights, vectors, planes, ranges, choices = [], [], [], [], []
        theirs = {id(tensor) for tensor in self.tensors().values()}
        chosen = {
            id(parameter): planes if module.is_of_weights else choices
            for module in self.modules()
            if isinstance(module, AbstractChoice)
            for parameter in module.parameters(recurse=False)
        }
        for parameter in self.parameters():
            if id(parameter) in theirs:
                (weights if parameter.dim() > 1 else vectors).append(parameter)
            else:
                chosen.get(id(parameter), ranges).append(parameter)
        choice_lr = 10 * lr if choice_lr is None else choice_lr
        groups = [
            {"name": "weights", "params": weights, "lr": lr, "weight_decay": weight_decay},
            {"name": "vectors", "params": vectors, "lr": lr, "weight_decay": 0.0},
            {"name": "planes", "params": planes, "lr": lr, "weight_decay": 0.0},
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
            self.weight_slot(weight).quantizer.start_at(bits)
        for group in self.graph.groups:
            choice = self.group_choice(group)
            if choice is not None:
                choice.start_at(bits)

    def advance(self, progress: float) -> None:
        """Move the schedule: temperature of all choices at a share of the search, 0..1, and what the method does."""
        self.progress = progress
        temperature = self.method.temperature(progress)
        for module in self.modules():
            if isinstance(module, AbstractChoice):
                module.temperature = temperature
        self.method.advance(self, progress)

    def penalty(self) -> Tensor:
        """The method's own loss term."""
        return self.method.penalty(self)

    def limit_share(self, ramp: float) -> float:
        """How far a budget's falling limit has come, 0..1; see `AbstractMethod.limit_share`."""
        return self.method.limit_share(self.progress, ramp)

    def group_choice(self, group: ChannelGroup) -> AbstractGroupChoice | None:
        """The choice module of a channel group, if it has one."""
        if group.name not in self.choosing_groups:
            return None
        return self.choice(group.name)

    def choice(self, group: str) -> AbstractGroupChoice:
        """The choice module of a channel group that has one, by name."""
        choice = fetch(self, slot_name("groups", group))
        assert isinstance(choice, AbstractGroupChoice)
        return choice

    def weight_slot(self, weight: str) -> WeightSlot:
        """The slot of a weight."""
        slot = fetch(self, slot_name("weights", weight))
        assert isinstance(slot, WeightSlot)
        return slot

    def parameter_gates(self) -> list[tuple[str, GateSlot]]:
        """Gates on parameters other than searched weights, by the parameter's name."""
        found: list[tuple[str, GateSlot]] = []
        for parameter, name in self.gated_parameters:
            slot = fetch(self, name)
            assert isinstance(slot, GateSlot)
            found.append((parameter, slot))
        return found

    def activation_slot(self, site: str) -> AbstractActivationSlot:
        """The quantizer of an activation site."""
        slot = fetch(self, slot_name("activations", site))
        assert isinstance(slot, AbstractActivationSlot)
        return slot

    def bits(self, *, hard: bool = False) -> NetBits:
        """The choices as distributions; differentiable and without noise, or the hard choice."""
        keep = {group.name: self._keep(group, hard=hard) for group in self.graph.groups}
        weights = {}
        for weight in self.graph.searched_weights:
            weights[weight] = self._weight_dist(weight, keep, hard=hard)
        activations = {}
        for site in self.sites:
            slot = self.activation_slot(site.name)
            ones = torch.ones(1, device=self.device)
            dist = BitDist.from_gate_and_width(ones, self._activation_shares(site.name, hard=hard), slot.widths)
            activations.update(dict.fromkeys(site.tensors, dist))
        return NetBits(keep, weights, activations)

    def _activation_shares(self, site: str, *, hard: bool) -> Tensor:
        """[1, A], of the widths of an activation: of its own choice, of its slot's, or of the only one."""
        name = slot_name("activation_choices", site)
        if name in self.choosing_sites:
            choice = fetch(self, name)
            assert isinstance(choice, AbstractChoice)
            return choice.view(hard=hard)
        own = self.activation_slot(site).distribution(hard=hard)
        return torch.ones(1, 1, device=self.device) if own is None else own

    def _keep(self, group: ChannelGroup, *, hard: bool) -> Tensor:
        choice = self.group_choice(group)
        if choice is None:
            return torch.ones(group.units, dtype=torch.float64, device=self.device)
        return choice.keep(hard=hard)

    def _weight_dist(self, weight: str, keep: Mapping[str, Tensor], *, hard: bool) -> BitDist:
        slot = self.weight_slot(weight)
        channels, widths = len(slot.index), slot.quantizer.widths
        if slot.coupled:
            theta = per_channel([self.choice(name).view(hard=hard) for name in slot.groups], slot.index)
            p = theta.new_zeros(channels, len(GRID))
            columns = torch.tensor([0, *(GRID.index(w) for w in widths)], device=theta.device)
            return BitDist(p.index_copy(1, columns, theta))
        gate = torch.ones(channels, dtype=torch.float64, device=self.device)
        if slot.groups:
            gate = per_channel([keep[name] for name in slot.groups], slot.index)
        return BitDist.from_gate_and_width(gate, slot.quantizer.distribution(hard=hard), widths)
