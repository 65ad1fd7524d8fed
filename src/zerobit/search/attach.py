"""`attach`: put a method's slots on the edges of a captured network; `SearchNet`, what comes out."""

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zerobit.bits import BitDist, NetBits
from zerobit.errors import CaptureError
from zerobit.formats import GRID
from zerobit.graph.capture import capture
from zerobit.graph.describe import describe
from zerobit.graph.edits import insert_slot, insert_source
from zerobit.graph.folding import fold_batch_norm
from zerobit.graph.ir import ChannelGroup, Graph, Op
from zerobit.graph.program import Program, assign, fetch, slot_name
from zerobit.quant.placement import ActivationSite, activation_sites
from zerobit.quant.slot import GRIDS, AbstractWeightGrid, ActivationSlot
from zerobit.search.choice import AbstractChoice
from zerobit.search.method import AbstractMethod, start_logits
from zerobit.search.widths.coupled import CoupledChoice
from zerobit.search.widths.softmax import SoftmaxWidth

#: Values per tensor that a calibration keeps, spread over the batch.
_SAMPLE = 65_536


class WeightSlot(nn.Module):
    """Quantises a weight at its mixture of widths and applies the gates of its groups.

    A deterministic gate behind conv + bias is the same function as a gate on weight and bias; here it costs no pass
    over an activation.

    Args:
        grid: levels and steps.
        width: the weight's own choice, or None.
        along: choices of the groups along its output channels.
        coupled: whether these hold the widths.
    """

    rows: Tensor

    def __init__(self, grid: AbstractWeightGrid, width: SoftmaxWidth | None, along: "Along", *, coupled: bool) -> None:
        super().__init__()
        self.grid, self.width, self.coupled, self.groups = grid, width, coupled, along.groups
        self.register_buffer("rows", along.rows, persistent=False)
        self.bypassed = False

    def forward(self, w: Tensor, *samples: Tensor) -> Tensor:
        """Effective weight.

        Args:
            w: [C, ...].
            samples: of the groups' choices: [units] gates, or [units, P] shares in the coupled form.
        """
        if self.bypassed:
            return w
        flat = w.flatten(1)
        choice = self.width() if self.width is not None else flat.new_ones(len(flat), len(self.grid.widths))
        if self.coupled:
            choice = per_channel(samples, self.rows)
        elif samples:
            choice = choice * per_channel([_gate(s) for s in samples], self.rows)[:, None]
        return self.grid.mix(flat, choice.to(flat)).reshape(w.shape)


class GateSlot(nn.Module):
    """Multiplies a bias, the scale and shift of an unfolded norm, or an activation, by the gates of its groups.

    Args:
        along: choices of the groups along a dimension.
        dim: that dimension.
    """

    rows: Tensor

    def __init__(self, along: "Along", dim: int = 0) -> None:
        super().__init__()
        self.register_buffer("rows", along.rows, persistent=False)
        self.dim, self.bypassed = dim, False

    def forward(self, value: Tensor, *samples: Tensor) -> Tensor:
        """The value times the gate; in the coupled form the gate is the sum of shares."""
        if self.bypassed:
            return value
        gate = per_channel([_gate(s) for s in samples], self.rows).to(value)
        return value * gate.reshape([-1 if d == self.dim else 1 for d in range(value.dim())])


@dataclass(frozen=True, eq=False)
class Along:
    """Choices of the groups that lie along a dimension of a tensor.

    Attributes:
        groups: their names.
        rows: int64 [C], for each position the row of its unit in the groups' samples, one after another; behind the
            last where it belongs to none.
        is_whole: whether every position belongs to one of them.
    """

    groups: tuple[str, ...]
    rows: Tensor
    is_whole: bool


def per_channel(samples: Sequence[Tensor], rows: Tensor) -> Tensor:
    """Samples of several groups, a row per channel; ones where a channel belongs to no group."""
    return torch.cat([*samples, torch.ones_like(samples[0][:1])]).index_select(0, rows)


def _gate(sample: Tensor) -> Tensor:
    return sample if sample.dim() == 1 else sample.sum(1)


class SearchNet(Program):
    """A network with its choices: trains like any module, in evaluation runs the hard choice.

    Built by `attach`. The user's parameters keep their names; ours are under `slots.`, choices end in `gate` or
    `width`.

    Attributes:
        graph: of the float network, with its channel groups.
        method: the method.
        sites: activation quantizers.
        progress: share of the search that is done.
        choosing_groups: names of the groups that have a choice.
    """

    def __init__(self, program: Program, graph: Graph, method: AbstractMethod) -> None:
        super().__init__(program.code, program.tensors(), program.structure, program.example_inputs())
        for name, module in program.named_modules():
            if isinstance(module, nn.Dropout):
                assign(self, name, module)
        self.graph, self.method, self.progress = graph, method, 0.0
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
        """Set all width choices of weights to start from one width.

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
        channels = self.graph.parameters[weight][0]
        if slot.coupled:
            theta = per_channel([self._theta(name, hard=hard) for name in slot.groups], slot.rows)
            p = theta.new_zeros(channels, len(GRID))
            columns = torch.tensor([0, *(GRID.index(w) for w in self.method.widths)], device=theta.device)
            return BitDist(p.index_copy(1, columns, theta))
        gate = torch.ones(channels, dtype=torch.float64, device=self.device)
        if slot.groups:
            gate = per_channel([keep[name] for name in slot.groups], slot.rows)
        width = slot.width
        p = torch.ones(channels, 1, device=self.device) if width is None else _view(width, hard=hard)
        return BitDist.from_gate_and_width(gate, p, self.method.widths)

    def _theta(self, group: str, *, hard: bool) -> Tensor:
        choice = fetch(self, slot_name("groups", group))
        assert isinstance(choice, CoupledChoice)
        return _view(choice, hard=hard).double()


def _view(choice: AbstractChoice, *, hard: bool) -> Tensor:
    return choice.hard().double() if hard else choice.price_view()


def units_along(graph: Graph, tensor: str, dim: int = 0) -> dict[str, Tensor]:
    """Group name -> int64 [size], the unit at each position along a tensor's dimension, -1 where it has none."""
    size = {**graph.shapes, **graph.parameters}[tensor][dim]
    found = {}
    for group in graph.groups:
        member = next((m for m in group.members if m.tensor == tensor and m.dim == dim), None)
        if member is not None:
            units = torch.full((size,), -1, dtype=torch.int64)
            index = torch.as_tensor(member.index)
            units[index.reshape(-1)] = torch.arange(group.units).repeat_interleave(index.shape[1])
            found[group.name] = units
    return found


def _choices_along(net: SearchNet, tensor: str, dim: int, only: Container[str]) -> Along:
    """The groups of `only` along a tensor's dimension that have a choice."""
    units = {name: u for name, u in units_along(net.graph, tensor, dim).items() if name in only}
    count = {g.name: g.units for g in net.graph.groups}
    total = sum(count[name] for name in units)
    rows = torch.full(({**net.graph.shapes, **net.graph.parameters}[tensor][dim],), total, dtype=torch.int64)
    start = 0
    for name, unit in units.items():
        rows = torch.where(unit >= 0, unit + start, rows)
        start += count[name]
    return Along(tuple(units), rows, bool((rows < total).all()))


def _sources(along: Along) -> tuple[str, ...]:
    return tuple(slot_name("groups", name) for name in along.groups)


def attach(
    model: nn.Module, example_inputs: Any, method: AbstractMethod, kwargs: Mapping[str, Any] | None = None
) -> SearchNet:
    """Give a network the choices of a method. The model is copied, never changed.

    BatchNorm is folded. Ranges are calibrated on the example inputs; `calibrate` refines them.

    Args:
        model: a trained network.
        example_inputs: a tensor or a tuple of inputs, dimension 0 the batch; real data, since ranges start from it.
        method: how bits are chosen.
        kwargs: named inputs, if the model takes any.

    Raises:
        CaptureError: the model can't be captured, or has no layer to search.
    """
    program = fold_batch_norm(capture(model, example_inputs, kwargs))
    graph = describe(program)
    if not graph.weighted:
        msg = (
            f"`model` ({type(model).__name__}) has no convolution or linear layer that zerobit knows; "
            f"it holds {sorted({op.target for op in graph.ops})}; nothing can be compressed"
        )
        raise CaptureError(msg)
    net = SearchNet(program, graph, method)
    for group in graph.groups:
        _attach_choice(net, group)
    _attach_gates(net)
    for weight in graph.searched_weights:
        _attach_weight(net, weight)
    for site in net.sites:
        _attach_activation(net, site)
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    return calibrate(net, [(args, dict(kwargs or {}))])


def _attach_choice(net: SearchNet, group: ChannelGroup) -> None:
    choice = net.method.group_choice(group.units, removable=group.frozen is None and group.units > 1)
    if choice is not None:
        insert_source(net, slot_name("groups", group.name), choice)
        net.choosing_groups.add(group.name)


def _attach_gates(net: SearchNet) -> None:
    """Gates on biases and unfolded norms; on a whole result where its bias lies across the units."""
    weights = net.graph.searched_weights
    done: set[str] = set()
    for op in net.graph.ops:
        ours = {g.name for g in net.graph.groups if op.name in g.affine} & net.choosing_groups
        gated: set[str] = set()
        for name in (op.weight, op.bias):
            if name is None or name in weights:
                continue
            along = _choices_along(net, name, 0, ours)
            gated |= {*along.groups}
            if along.groups and name not in done:
                insert_slot(net, name, slot_name("weights", name), GateSlot(along), _sources(along))
                done.add(name)
        if op.bias is not None and ours - gated:
            _gate_result(net, op, ours - gated)


def _gate_result(net: SearchNet, op: Op, groups: set[str]) -> None:
    for dim in range(len(net.graph.shapes[op.name])):
        along = _choices_along(net, op.name, dim, groups)
        if along.groups:
            insert_slot(net, op.name, slot_name("results", op.name), GateSlot(along, dim), _sources(along))


def _attach_weight(net: SearchNet, weight: str) -> None:
    value = net.tensors()[weight].detach()
    along = _choices_along(net, weight, 0, net.choosing_groups)
    coupled = net.method.coupled and along.is_whole
    grid = GRIDS[net.method.grid](net.method.widths, value.flatten(1))
    width = None if coupled else net.method.width_choice(value.shape[0])
    slot = WeightSlot(grid, width, along, coupled=coupled)
    insert_slot(net, weight, slot_name("weights", weight), slot, _sources(along))


def _attach_activation(net: SearchNet, site: ActivationSite) -> None:
    choice = net.method.activation_choice()
    sources = () if choice is None else (insert_source(net, slot_name("activation_choices", site.name), choice),)
    slot = ActivationSlot(net.method.activation_bits, site.signed)
    for tensor in site.tensors:
        insert_slot(net, tensor, slot_name("activations", site.name), slot, sources)


@torch.no_grad()
def calibrate(net: SearchNet, batches: Iterable[tuple[tuple[Any, ...], Mapping[str, Any]]]) -> SearchNet:
    """Fit the activation ranges to what flows through the float network, in place.

    Args:
        net: its choices and quantizers are by-passed meanwhile.
        batches: (positional, named) inputs of a few calls.

    Returns:
        The net.
    """
    slots = {site.name: net.activation_slot(site.name) for site in net.sites}
    seen: dict[str, list[Tensor]] = {name: [] for name in slots}
    hooks = [s.register_forward_pre_hook(_observer(seen[name])) for name, s in slots.items()]
    _set_bypass(net, True)
    training = net.training
    net.eval()
    for args, kwargs in batches:
        net(*args, **kwargs)
    net.train(training)
    _set_bypass(net, False)
    for hook in hooks:
        hook.remove()
    for name, slot in slots.items():
        if seen[name]:
            slot.fit(torch.cat(seen[name]))
    return net


def _set_bypass(net: SearchNet, value: bool) -> None:
    for module in net.modules():
        if isinstance(module, (WeightSlot, GateSlot, ActivationSlot)):
            module.bypassed = value


def _observer(into: list[Tensor]) -> Any:
    def observe(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        del module
        flat = inputs[0].detach().reshape(-1)
        into.append(flat[:: max(1, math.ceil(len(flat) / _SAMPLE))])

    return observe
