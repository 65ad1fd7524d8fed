"""Runs of a program node by node: to record shapes, and with channels masked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from zerobit.graph.ir import ChannelGroup, Shape
from zerobit.graph.program import Program, fetch


class _Walk(fx.Interpreter):
    """Runs a program node by node."""

    def __init__(self, program: Program) -> None:
        super().__init__(program, graph=program.code)

    def fetch_attr(self, target: str) -> Any:
        return fetch(self.module, target)


@dataclass(frozen=True)
class Record:
    """What a run shows of the activations.

    Attributes:
        shapes: of one sample; () for a tuple of tensors.
        batched: names of the floating-point ones whose dimension 0, and no other, grows with the batch; of a program
            that fixes its batch, all floating-point ones.
    """

    shapes: Mapping[str, Shape]
    batched: frozenset[str]


def record(program: Program) -> Record:
    """Shapes of all activations, seen through slots, and which carry the batch. Found by running two batch sizes.

    Nothing is computed where torch can tell shapes alone.
    """
    try:
        return _record(program, torch.device("meta"))
    except Exception:  # an op whose shapes depend on values, or that takes real tensors only
        return _record(program, program.device)


def _record(program: Program, device: torch.device) -> Record:
    single = [x.to(device) if isinstance(x, Tensor) else x for x in program.example_inputs()]
    one = _recorded(program, single, device)
    batched = [0 in free for free in program.structure.free]
    if not any(batched):
        return Record(one.shapes, frozenset(one.floating))
    twice = [torch.cat([x, x]) if is_batched else x for x, is_batched in zip(single, batched, strict=True)]
    two = _recorded(program, twice, device)
    doubled = {name: (2 * shape[0], *shape[1:]) for name, shape in one.shapes.items() if shape}
    grown = frozenset(name for name in one.floating if doubled.get(name) == two.shapes[name])
    return Record(one.shapes, grown)


def _recorded(program: Program, inputs: Sequence[Any], device: torch.device) -> "_Recorder":
    recorder = _Recorder(program, device)
    with torch.no_grad():
        recorder.run(*inputs, enable_io_processing=False)
    return recorder


class _Recorder(_Walk):
    """Keeps the shape of every tensor, and which hold floating-point values."""

    def __init__(self, program: Program, device: torch.device) -> None:
        super().__init__(program)
        self.device = device
        self.shapes: dict[str, Shape] = {}
        self.floating: set[str] = set()

    def fetch_attr(self, target: str) -> Any:
        value = super().fetch_attr(target)
        return value.to(self.device) if isinstance(value, Tensor) else value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Slots and dropout hand on a tensor of the same shape; choices are no tensors of the network."""
        del target, kwargs
        return args[0] if args else None

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": self.device}
        return super().call_function(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.op != "get_attr":
            self.shapes[n.name] = tuple(result.shape)
            self.floating |= {n.name} if result.is_floating_point() else set()
        elif n.op == "call_function" and _holds_tensor(result):
            self.shapes[n.name] = ()
        return result


def _holds_tensor(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value)


class _Masked(_Walk):
    """Multiplies tensors by factors along a dimension."""

    def __init__(self, program: Program, masks: Mapping[str, list[tuple[int, list[int]]]]) -> None:
        super().__init__(program)
        self.masks = masks

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        tensor = str(n.target) if n.op == "get_attr" else n.name
        for dim, positions in self.masks.get(tensor, ()):
            factor = result.new_ones(result.shape[dim])
            factor[positions] = 0
            result = result * factor.reshape([-1 if d == dim else 1 for d in range(result.dim())])
        return result


def masked_run(program: Program, keep: Mapping[ChannelGroup, Tensor], *inputs: Any) -> Any:
    """Run with the tensors that the groups name as masked multiplied by keep: what a cut must equal.

    Args:
        program: without slots.
        keep: group -> [units] of 0 and 1; the tensors it names are masked along the members' dimensions.
        inputs: flat inputs.

    Returns:
        Flat results.
    """
    masks: dict[str, list[tuple[int, list[int]]]] = {}
    for group, kept in keep.items():
        gone = [unit for unit, stays in enumerate(kept.tolist()) if not stays]
        for member in group.members:
            if member.tensor in group.masked:
                positions = member.index[gone].ravel().tolist()
                masks.setdefault(member.tensor, []).append((member.dim, positions))
    return _Masked(program, masks).run(*inputs, enable_io_processing=False)
