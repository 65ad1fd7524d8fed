"""The trained network against its integers: how far fake quantisation in float is from the integer reference.

Shape legend: N samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zerobit.cut.apply import QuantNet
from zerobit.integer.ir import IntegerGraph
from zerobit.integer.twins.float32 import run_float32

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Agreement:
    """One quantised tensor in the trained network and in integers.

    Attributes:
        tensor: name in the integer graph.
        values: values compared.
        differences: how many differ.
        largest: largest difference, in steps of the tensor (LSB).
    """

    tensor: str
    values: int
    differences: int
    largest: int


def agreement(
    net: QuantNet, graph: IntegerGraph, inputs: Sequence[Tensor], raw: Mapping[str, Array]
) -> list[Agreement]:
    """Compare every activation quantizer's result with the integers of the float32 twin, on equal inputs.

    Differences grow along the network: the trained network rounds what it has computed in float, where sums of equal
    products may differ in the last bits, so that a value close to a tie can fall to the other side.

    Args:
        net: trained, fixed widths; left in evaluation mode.
        graph: what `lower` made of it.
        inputs: as the network takes them, [N, ...].
        raw: the same as the integer graph takes them, by name: without normalisation, where `graph` has it inside.
    """
    trained = _quantised(net, inputs)
    wanted = run_float32(graph, raw, keep=True)
    rows: list[Agreement] = []
    for tensor in graph.tensors:
        own = trained.get(tensor.name.removesuffix(".quantised"))
        if own is None or tensor.is_float:
            continue
        gap = np.abs(np.rint(own / tensor.step) - wanted[tensor.name].astype(np.float32))
        rows.append(Agreement(tensor.name, gap.size, int((gap > 0).sum()), int(gap.max(initial=0))))
    return rows


@torch.no_grad()
def _quantised(net: QuantNet, inputs: Sequence[Tensor]) -> dict[str, NDArray[np.float32]]:
    """What the quantizers make, by tensor; one that several tensors share is called for each, in order."""
    made: dict[str, NDArray[np.float32]] = {}
    hooks = [
        net.activation_slot(name).register_forward_hook(_collector(made, list(site.tensors)))
        for name, site in net.plan.activations.items()
    ]
    try:
        net.eval()(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return made


def _collector(made: dict[str, NDArray[np.float32]], names: list[str]) -> Any:
    def collect(_: nn.Module, __: Any, result: Tensor) -> None:
        made[names.pop(0)] = result.float().cpu().numpy()

    return collect
