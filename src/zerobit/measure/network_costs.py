"""What a compressed network costs: by what a budget can name, and by the compiler of an NPU."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from zerobit.bits import BitDist, NetBits
from zerobit.cost.amounts import written
from zerobit.cost.base import AbstractCost, Usage
from zerobit.cost.own import load_costs
from zerobit.cost.registry import cost_names, named_cost
from zerobit.cost.usage import usage
from zerobit.cut.apply import QuantNet
from zerobit.errors import BudgetError, ZerobitError
from zerobit.integer.lower import lower
from zerobit.integer.walk import Feeds
from zerobit.measure.npu_compiler import PREFIX, accelerators, check_accelerator, estimate, vela_version

#: What every table of costs ends with.
_FORMULAS = ("size", "macs", "ram")


@dataclass(frozen=True)
class NetworkCost:
    """A line of the table.

    Attributes:
        target: as named.
        cost: with its unit.
        sram: bytes, by a compiler; None of a formula.
        dram: bytes, by a compiler.
        flash: bytes, by a compiler.
        cpu_operators: that `cost` has nothing of, by a compiler.
        note: what the figures hold for.
    """

    target: str
    cost: str
    sram: int | None = None
    dram: int | None = None
    flash: int | None = None
    cpu_operators: int | None = None
    note: str = ""


def check_targets(targets: Sequence[str]) -> None:
    """Refuse what `network_costs` would refuse, before a network is loaded.

    Args:
        targets: as of `network_costs`.

    Raises:
        BudgetError: a name or file that is no target.
        ExportError: Vela is not installed, or does not know an accelerator.
    """
    for target in targets:
        if target.startswith(PREFIX):
            check_accelerator(target)
        else:
            _costs(target)


def network_costs(
    net: QuantNet, samples: Feeds, targets: Sequence[str], mean: Sequence[float], std: Sequence[float]
) -> tuple[NetworkCost, ...]:
    """What a network costs on each target, then its size, MACs and peak of RAM by formula.

    Args:
        net: from `apply`.
        samples: as of `zerobit.export.tflite`.
        targets: accelerators of Vela, such as "ethos-u55-128"; names of costs that a budget can name; files or
            MODULE:NAME of costs of the user's own.
        mean: per-channel mean the data was normalised with.
        std: per-channel standard deviation.

    Raises:
        BudgetError: a name or file that is no target.
        ExportError: TFLite can't hold the network, or Vela is not installed or fails.
    """
    check_targets(targets)
    use = usage(net.graph, cut_bits(net))
    compiled = [target for target in targets if target.startswith(PREFIX)]
    file = _file(net, samples, mean, std) if compiled else b""
    rows: list[NetworkCost] = []
    for target in dict.fromkeys((*targets, *_FORMULAS)):
        rows += [_compiled(file, target)] if target in compiled else _by_formula(use, target)
    return tuple(rows)


def cut_bits(net: QuantNet) -> NetBits:
    """The widths of a cut network, over the graph of what is left.

    Args:
        net: from `apply`.
    """
    return NetBits(
        {group.name: torch.ones(group.units, dtype=torch.float64) for group in net.graph.groups},
        {name: BitDist.one_hot(net.weight_slot(name).bits) for name in net.plan.weights},
        net.plan.net_bits().activations,
    )


def _costs(target: str) -> dict[str, AbstractCost]:
    """By name; several of a file that describes a device of several."""
    if target in cost_names():
        return {target: named_cost(target)}
    if target.endswith((".toml", ".csv")) or ":" in target:
        return load_costs(target)
    try:
        compiled = ", ".join(accelerators())
    except ZerobitError:
        compiled = f"those of {PREFIX}, with zerobit[npu] installed"
    msg = (
        f"`target` is {target!r}; allowed are {', '.join(cost_names())}, {compiled}, and FILE.toml, FILE.csv or "
        "MODULE:NAME of your own; choose one of these"
    )
    raise BudgetError(msg)


def _by_formula(use: Usage, target: str) -> list[NetworkCost]:
    return [NetworkCost(name, written(float(cost(use)), cost.unit)) for name, cost in _costs(target).items()]


def _file(net: QuantNet, samples: Feeds, mean: Sequence[float], std: Sequence[float]) -> bytes:
    """What `zerobit.export.tflite` writes, less the hash of the plan."""
    from zerobit.export.tflite_file import build_tflite  # tflite-micro is an extra
    from zerobit.export.tflite_logits import integer_logits

    return build_tflite(integer_logits(lower(net, mean, std), samples), "int8", {})


def _compiled(file: bytes, target: str) -> NetworkCost:
    found = estimate(file, target)
    note = f"{target}: estimates of ethos-u-vela {vela_version()} for {found.setting}"
    cost = written(found.cycles, "cycle")
    return NetworkCost(target, cost, found.sram, found.dram, found.flash, found.cpu_operators, note)
