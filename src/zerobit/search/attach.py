"""`attach`: put a method's slots on the edges of a captured network; `calibrate`: fit their ranges."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zerobit.errors import CaptureError
from zerobit.graph.describe import describe
from zerobit.graph.edits import insert_slot, insert_source
from zerobit.graph.ir import WEIGHTED, ChannelGroup, Op
from zerobit.graph.program import slot_name
from zerobit.graph.rows import to_rows
from zerobit.quant.placement import ActivationSite
from zerobit.quant.slot import AbstractActivationSlot
from zerobit.search.control import Control, Count, Widths, captured
from zerobit.search.method import AbstractMethod, check_method
from zerobit.search.net import SearchNet
from zerobit.search.norms import unit_norms
from zerobit.search.slots import Along, GateSlot, NoiseSlot, WeightSlot, choices_along

__all__ = ["SearchNet", "attach", "calibrate"]

#: Values per tensor that a calibration keeps, spread over the batch.
_SAMPLE = 65_536
#: Ops that end with a scale and a shift per channel, if they have parameters at all.
_NORMS = ("aten.batch_norm.default", "aten.group_norm.default", "aten.instance_norm.default")


def attach(
    model: nn.Module,
    example_inputs: Any,
    method: AbstractMethod,
    kwargs: Mapping[str, Any] | None = None,
    *,
    frozen: Sequence[str] = (),
    bits: Mapping[str, Widths] | None = None,
    min_channels: Count | None = None,
    multiple_of: Count | None = None,
    free_size: bool = False,
) -> SearchNet:
    """Give a network the choices of a method. The model is copied, never changed.

    BatchNorm is folded. Ranges are calibrated on the example inputs; `calibrate` refines them.

    Patterns are matched as file names are, against the name of a parameter and the path of any module that holds it:
    "head", "head.*" and "head.weight" all match `head.weight`.

    Args:
        model: a trained network.
        example_inputs: a tensor or a tuple of inputs, dimension 0 the batch; real data, since ranges start from it.
        method: how bits are chosen.
        kwargs: named inputs, if the model takes any.
        frozen: patterns of layers that stay as they are: in float, untrained, with all channels that they read or
            make.
        bits: pattern -> width or widths of the weights that it matches, such as {"stem.*": 8} or {"head": (4, 8)};
            0 among them lets channels go, if it is among the widths of all weights that lose them together. Where
            several patterns match, the last one holds.
        min_channels: channels that every group keeps, or pattern -> channels for the groups of the weights that it
            matches. (A group's channels go together; behind a flatten or in heads, it is units that are counted.)
        multiple_of: the number of channels that stay is a multiple of this, or all; as `min_channels`.
        free_size: whether height and width of images stay open, as far as the model allows it; costs are those of the
            example's.

    Raises:
        CaptureError: the model can't be captured, has no weight, or weights of less than 32 bits.
        FormatError: a pattern that matches nothing, a number that can't be, or no method.
    """
    check_method(method)
    control = Control.of(frozen, bits, min_channels, multiple_of)
    _check_precision(model)
    program = captured(model, example_inputs, kwargs, control, free_size=free_size)
    graph = describe(program)
    if not (graph.searched_weights or graph.float_weights):
        msg = (
            f"`model` ({type(model).__name__}) has no weight of two or more dimensions; it holds "
            f"{sorted({op.target for op in graph.ops})}; nothing can be compressed"
        )
        raise CaptureError(msg)
    net = SearchNet(program, graph, method, control.options(program, graph, method))
    coupled = _coupled_weights(net)
    for group in graph.groups:
        _attach_choice(net, group, coupled)
    _attach_gates(net)
    for weight in graph.searched_weights:
        _attach_weight(net, weight, coupled=weight in coupled)
    for site in net.sites:
        _attach_activation(net, site)
    _attach_noise(net)
    method.attached(net)
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    return calibrate(net.to(net.device), [(args, dict(kwargs or {}))])


def _check_precision(model: nn.Module) -> None:
    narrow = (f"{n!r} is {p.dtype}" for n, p in model.named_parameters() if p.dtype in (torch.float16, torch.bfloat16))
    if found := next(narrow, None):
        msg = (
            f"`model` ({type(model).__name__}): {found}; allowed are float32 and float64; call model.float(), "
            "and train with `precision` 'bf16-mixed' where less is enough"
        )
        raise CaptureError(msg)


def _coupled_weights(net: SearchNet) -> set[str]:
    """Weights whose widths their groups' choices hold: every channel lies in a group, and no width is the user's."""
    if not net.method.coupled:
        return set()
    every = {group.name for group in net.graph.groups}
    searched = [name for name in net.graph.searched_weights if name not in net.options.own]
    return {name for name in searched if _choices_of_weight(net, name, every).is_whole}


def _choices_of_weight(net: SearchNet, weight: str, only: set[str]) -> Along:
    channels = net.graph.rows[weight].count(net.graph.parameters[weight])
    return choices_along(net.graph, net.graph.row_units(weight), channels, only)


def _choices_along(net: SearchNet, tensor: str, dim: int, only: set[str]) -> Along:
    graph = net.graph
    size = graph.shape_of(tensor)[dim]
    return choices_along(graph, graph.units_along(tensor, dim), size, only)


def _attach_choice(net: SearchNet, group: ChannelGroup, coupled: set[str]) -> None:
    removable = group.name not in net.options.fixed
    holds_widths = any(group.name in net.graph.row_units(name) for name in coupled)
    if not removable and not holds_widths:
        return
    choice = net.method.group_choice(group, net.options.rules[group.name], removable=removable)
    if choice is not None:
        choice.order(unit_norms(net, group))
        insert_source(net, slot_name("groups", group.name), choice)
        net.choosing_groups.add(group.name)


def _attach_gates(net: SearchNet) -> None:
    """Gates on what an op adds and scales by; on its whole result for groups that this does not reach.

    In evaluation both zero the same values; a parameter is the cheaper place.
    """
    graph, done = net.graph, dict[str, set[str]]()
    wanted: dict[str, set[str]] = {}
    for group in graph.groups:
        for name in group.masked if group.name in net.choosing_groups else ():
            wanted.setdefault(name, set()).add(group.name)
    for name, ours in wanted.items():
        op = graph.producer(name)
        if op is not None and op.kind in WEIGHTED and op.bias is None:
            continue  # absent in is absent out, and its own channels go with the weight's gate
        if name in graph.rows:
            continue  # a searched weight takes the gate with its width
        parameters = (name,) if op is None else _gateable(net, op)
        reached = [{g for d in _dims(net, p) for g in graph.units_along(p, d)} for p in parameters]
        gated = ours.intersection(*reached) if reached else set[str]()
        for parameter in parameters:
            new = gated - done.setdefault(parameter, set())
            _gate_parameter(net, parameter, new, len(done[parameter]))
            done[parameter] |= new
        if op is not None:
            _gate_result(net, op, ours - gated)


def _gateable(net: SearchNet, op: Op) -> tuple[str, ...]:
    """Parameters whose gates are a gate on the op's result, all of them together; none if there are no such."""
    if op.kind in WEIGHTED:
        return (op.bias,) if op.bias else ()
    trained = tuple(name for name in op.parameters if name in net.graph.trained)
    scales_and_shifts = op.target in _NORMS and len(trained) == 2
    return trained if scales_and_shifts or op.attrs.get("function") == "mul" else ()


def _dims(net: SearchNet, parameter: str) -> range:
    return range(len(net.graph.parameters[parameter]))


def _gate_parameter(net: SearchNet, parameter: str, groups: set[str], number: int) -> None:
    for dim in _dims(net, parameter):
        along = _choices_along(net, parameter, dim, groups)
        if along.groups:
            name = slot_name("gates", parameter, str(dim), str(number))
            insert_slot(net, parameter, name, GateSlot(along, dim), _sources(along))
            net.gated_parameters.append((parameter, name))


def _gate_result(net: SearchNet, op: Op, groups: set[str]) -> None:
    for dim in range(len(net.graph.shapes[op.name])):
        along = _choices_along(net, op.name, dim, groups)
        if along.groups:
            name = slot_name("results", op.name, str(dim))
            scales = any(net.choice(group).scales for group in along.groups)
            insert_slot(net, op.name, name, GateSlot(along, dim, masks=scales), _sources(along))


def _attach_noise(net: SearchNet) -> None:
    """Noise on what the layers of a group compute, where the group's choice has any."""
    noisy = {group for group in net.choosing_groups if net.choice(group).is_noisy}
    for op in net.graph.ops if noisy else ():
        weights = {p for p in (op.weight, *op.parameters) if p in net.graph.searched_weights}
        ours = noisy & {group for weight in weights for group in net.graph.row_units(weight)}
        for name in _results(net, op) if ours else ():
            for dim in range(1, len(net.graph.shapes[name])):
                along = _choices_along(net, name, dim, ours)
                if along.groups:
                    insert_slot(net, name, slot_name("noise", name, str(dim)), NoiseSlot(along, dim), _sources(along))


def _sources(along: Along) -> tuple[str, ...]:
    return tuple(slot_name("groups", name) for name in along.groups)


def _results(net: SearchNet, op: Op) -> list[str]:
    """The tensor that a layer makes; those that are taken out of what a recurrent one makes."""
    return [op.name] if op.kind in WEIGHTED else [o.name for o in net.graph.ops if op.name in o.inputs]


def _attach_weight(net: SearchNet, weight: str, *, coupled: bool) -> None:
    value, layout = net.tensor(weight).detach(), net.graph.rows[weight]
    along = _choices_of_weight(net, weight, net.choosing_groups)
    widths = net.method.widths if coupled else net.options.widths(weight)
    quantizer = net.method.weight_quantizer(to_rows(value, layout), widths, coupled=coupled)
    slot = WeightSlot(quantizer, along, layout, coupled=coupled)
    insert_slot(net, weight, slot_name("weights", weight), slot, _sources(along))


def _attach_activation(net: SearchNet, site: ActivationSite) -> None:
    choice, name = net.method.activation_choice(), slot_name("activation_choices", site.name)
    if choice is not None:
        insert_source(net, name, choice)
        net.choosing_sites.add(name)
    slot = net.method.activation_slot(site.signed)
    for tensor in site.tensors:
        insert_slot(net, tensor, slot_name("activations", site.name), slot, () if choice is None else (name,))


@torch.no_grad()
def calibrate(net: SearchNet, batches: Iterable[tuple[tuple[Any, ...], Mapping[str, Any]]]) -> SearchNet:
    """Fit the activation ranges to what flows through the float network, in place.

    Args:
        net: its choices and quantizers are by-passed meanwhile.
        batches: (positional, named) inputs of a few calls.

    Returns:
        The net.

    Raises:
        CaptureError: values that are not finite.
    """
    slots = {site.name: net.activation_slot(site.name) for site in net.sites}
    seen: dict[str, list[Tensor]] = {name: [] for name in slots}
    hooks = [s.register_forward_pre_hook(_observer(seen[name])) for name, s in slots.items()]
    _set_bypass(net, True)
    training = net.training
    net.eval()
    try:
        for args, kwargs in batches:
            net(*args, **kwargs)
    finally:
        net.train(training)
        _set_bypass(net, False)
        for hook in hooks:
            hook.remove()
    found = {name: torch.cat(values) for name, values in seen.items() if values}
    for name, values in found.items():
        if not values.isfinite().all():
            msg = f"`{name}` has values that are not finite for these inputs; allowed are finite ones; look at the data"
            raise CaptureError(msg)
    for name, values in found.items():
        slots[name].fit(values)
    return net


def _set_bypass(net: SearchNet, value: bool) -> None:
    for module in net.modules():
        if isinstance(module, (WeightSlot, GateSlot, NoiseSlot, AbstractActivationSlot)):
            module.bypassed = value


def _observer(into: list[Tensor]) -> Any:
    def observe(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        del module
        flat = inputs[0].detach().reshape(-1)
        into.append(flat[:: _stride(len(flat))])

    return observe


def _stride(values: int) -> int:
    """Coprime with the number of values: one that has a factor in common with the width would see few columns only."""
    stride = max(1, math.ceil(values / _SAMPLE))
    while math.gcd(stride, values) > 1:
        stride += 1
    return stride
