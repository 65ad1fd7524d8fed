"""`apply`: make a plan real. Channels physically gone, widths fixed, an ordinary trainable module."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from zerobit.cut.final import settle_searched
from zerobit.errors import PlanError
from zerobit.graph.describe import describe
from zerobit.graph.edits import cut, insert_slot, strip_slots
from zerobit.graph.ir import Graph, Rows
from zerobit.graph.program import Program, assign, fetch, slot_name
from zerobit.graph.rows import to_rows
from zerobit.plan import Plan, WeightPlan
from zerobit.quant.ranges import least_squares_step
from zerobit.quant.slot import ActivationSlot, FixedWeightSlot
from zerobit.search.fits import check_fits
from zerobit.search.net import SearchNet


class QuantNet(Program):
    """A cut network with fixed widths; fake-quantised in float, trainable, ready to be lowered to integers.

    Attributes:
        plan: what made it.
        graph: of the cut network.
    """

    def __init__(self, program: Program, plan: Plan) -> None:
        super().__init__(program.code, program.tensors(), program.structure, program.example_inputs())
        for name, module in program.named_modules():
            if isinstance(module, nn.Dropout):
                assign(self, name, module)
        self.plan = plan
        self.graph: Graph = describe(self)

    def param_groups(self, lr: float = 1e-3, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Optimizer groups: weights and quantisation ranges apart; decay on weights only.

        Args:
            lr: of all.
            weight_decay: on weights of two or more dimensions.
        """
        named = list(self.named_parameters())
        theirs = {id(tensor) for tensor in self.tensors().values()}
        ours = [p for _, p in named if id(p) not in theirs]
        weights = [p for _, p in named if id(p) in theirs and p.dim() > 1]
        vectors = [p for _, p in named if id(p) in theirs and p.dim() <= 1]
        return [
            {"name": "weights", "params": weights, "lr": lr, "weight_decay": weight_decay},
            {"name": "vectors", "params": vectors, "lr": lr, "weight_decay": 0.0},
            {"name": "ranges", "params": ours, "lr": lr, "weight_decay": 0.0},
        ]

    def weight_slot(self, weight: str) -> FixedWeightSlot:
        """The quantizer of a weight."""
        slot = fetch(self, slot_name("weights", weight))
        assert isinstance(slot, FixedWeightSlot)
        return slot

    def activation_slot(self, name: str) -> ActivationSlot:
        """The quantizer of an activation site."""
        slot = fetch(self, slot_name("activations", name))
        assert isinstance(slot, ActivationSlot)
        return slot


def apply(net: SearchNet | QuantNet, plan: Plan) -> QuantNet:
    """A network with a plan made real. Pure: `net` is left as it is; on its own result it is the identity.

    A channel that the plan makes wider than the search did starts from what the narrower width computed.

    Args:
        net: what the plan was decided for, or the network that this plan has already made.
        plan: may have been edited.

    Raises:
        PlanError: the plan is of another network, or asks for a kept channel of 0 bit.
    """
    if isinstance(net, QuantNet):
        if net.plan.hash != plan.hash:
            msg = (
                f"`net` was cut by plan {net.plan.hash} already, `plan` is {plan.hash}; "
                "apply a new plan to the network that `attach` gave"
            )
            raise PlanError(msg)
        return copy.deepcopy(net)
    check_fits(net.graph, plan)
    program = copy.deepcopy(net)
    settle_searched(program, plan)
    strip_slots(program)
    return realise(program, net.graph, plan).train(net.training)


def realise(program: Program, graph: Graph, plan: Plan) -> QuantNet:
    """Cut a float program and fix its widths; the program is used up.

    Args:
        program: without slots.
        graph: of it.
        plan: what to do.

    Raises:
        PlanError: the plan is of another network, or asks for a kept channel of 0 bit.
    """
    check_fits(graph, plan)
    device = program.device
    cut(program, graph, plan.kept)
    small = QuantNet(program, plan)
    for name in plan.weights:
        slot = _weight_slot(small.tensor(name), small.graph.rows[name], plan.weights[name])
        insert_slot(small, name, slot_name("weights", name), slot)
    for name, activation in plan.activations.items():
        slot = ActivationSlot((activation.bits,), activation.signed)
        with torch.no_grad():
            slot.log_step.fill_(torch.tensor(activation.step).log())
        for tensor in activation.tensors:
            insert_slot(small, tensor, slot_name("activations", name), slot)
    return small.to(device)


def _weight_slot(w: Tensor, layout: Rows, weight: WeightPlan) -> FixedWeightSlot:
    bits = [b for b in weight.bits if b]
    if weight.step is not None:
        step = torch.tensor([s for s, b in zip(weight.step, weight.bits, strict=True) if b])
    else:
        step = _fitted(to_rows(w.detach(), layout), bits)
    return FixedWeightSlot(bits, step, weight.full_range, layout)


def _fitted(w_CK: Tensor, bits: list[int]) -> Tensor:
    """Steps of least squared error, each row at its width."""
    step = torch.empty(len(bits))
    for width in set(bits):
        rows = [c for c, b in enumerate(bits) if b == width]
        high = 2 ** (width - 1) - 1
        step[rows] = least_squares_step(w_CK[rows], -high, high).float().cpu()
    return step
