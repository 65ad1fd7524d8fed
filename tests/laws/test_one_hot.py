"""One-hot law: a hard choice, the plan and the cut network cost the same, counted three ways."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cases import CASES, ModelCase
from searches import METHODS, attached, scramble
from zerobit.cost import Bops, Macs, Size, TableLatency
from zerobit.cost.usage import usage
from zerobit.cut.apply import QuantNet, apply
from zerobit.cut.decide import decide
from zerobit.quant.slot import ActivationSlot, FixedWeightSlot

#: MAC per cycle by activation and weight width; Ottavi et al., arXiv 2010.04073.
MPIC = {(8, 2): 2.5, (8, 4): 2.3, (8, 8): 2.1, (4, 2): 3.9, (4, 4): 3.5, (4, 8): 2.1}
#: Operators that multiply, and the positions of the two factors among their arguments.
PRODUCTS = {"convolution": (0, 1), "mm": (0, 1), "addmm": (1, 2), "bmm": (0, 1)}


@dataclass
class _Count(TorchDispatchMode):
    """Watches a run: which tensors came out of a quantizer, and what is multiplied with what."""

    weight_bits: dict[int, tuple[int, ...]] = field(default_factory=dict)
    value_bits: dict[int, int] = field(default_factory=dict)
    macs: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))
    alive: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [a for a in torch.utils._pytree.tree_leaves(args) if isinstance(a, Tensor)]
        name = func._schema.name.removeprefix("aten::")
        if name in PRODUCTS:
            x, w = (args[i] for i in PRODUCTS[name])
            if _place(w) in self.weight_bits:
                self._multiply(x, w, result, name, args)
        widths = [self.value_bits[_place(t)] for t in tensors if _place(t) in self.value_bits]
        for made in (t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor)):
            self.alive.append(made)  # an address must not be given out twice
            if widths:
                self.value_bits.setdefault(_place(made), widths[0])
        return result

    def _multiply(self, x: Tensor, w: Tensor, result: Tensor, name: str, args: Any) -> None:
        """Each value of the result is a sum; of a transposed convolution each value of the input is spread."""
        bits = self.weight_bits[_place(w)]
        is_transposed = name == "convolution" and args[6]
        products = w[0].numel() if name == "convolution" else w.shape[-2]
        per_channel = (x if is_transposed else result).numel() * products // len(bits)
        for b in bits:
            self.macs[self.value_bits[_place(x)], b] += per_channel


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextmanager
def _counting(net: QuantNet) -> Iterator[_Count]:
    count = _Count()

    def weight(module: FixedWeightSlot, inputs: Any, output: Tensor) -> None:
        count.weight_bits[_place(output)] = module.bits

    def value(module: ActivationSlot, inputs: Any, output: Tensor) -> None:
        count.value_bits[_place(output)] = module.widths[0]

    hooks = [m.register_forward_hook(weight) for m in net.modules() if isinstance(m, FixedWeightSlot)]
    hooks += [m.register_forward_hook(value) for m in net.modules() if isinstance(m, ActivationSlot)]
    with torch.no_grad(), count:
        yield count
    for hook in hooks:
        hook.remove()


def _counted(net: QuantNet, row: ModelCase) -> dict[str, float]:
    """Cost of a cut network by shapes and integers alone, per sample."""
    batch = 2
    with _counting(net) as count:
        net(*row.inputs(batch))
    macs = {key: value // batch for key, value in count.macs.items()}
    slots = {n: m for n, m in net.named_modules() if isinstance(m, FixedWeightSlot)}
    # weights are what has a slot of its own; everything else of two or more dimensions stays in float
    tensors = {id(t): t for t in net.tensors().values() if t.dim() > 1}
    quantised: dict[int, tuple[int, ...]] = {}
    for module in slots.values():
        inputs: list[Tensor] = []
        hook = module.register_forward_pre_hook(lambda m, i, into=inputs: into.append(i[0]))
        with torch.no_grad():
            net(*row.inputs(1 if all(net.structure.free) else batch))
        hook.remove()
        quantised[id(inputs[0])] = module.bits
    stored = {b: 2 if b == 2 else 4 if b <= 4 else 8 for b in range(2, 9)}
    size = sum(stored[b] * tensors[i].numel() // len(bits) for i, bits in quantised.items() for b in bits)
    rest = sum(32 * t.numel() for i, t in tensors.items() if i not in quantised)
    wide = {b: next(w for w in (2, 4, 8) if w >= b) for b in range(2, 9)}
    return {
        "size": (size + rest) / 8,
        "macs": float(sum(macs.values())),
        "bops": float(sum(n * a * w for (a, w), n in macs.items())),
        "mpic": sum(n / MPIC[a, wide[w]] for (a, w), n in macs.items()),
    }


COSTS = {"size": Size(), "macs": Macs(), "bops": Bops(), "mpic": TableLatency.load("mpic")}
#: All networks with the default; all methods on one network with residuals.
TABLE = [(row, method) for row in CASES for method in METHODS if method == "default" or row.name == "tcn"]


@pytest.mark.parametrize(("row", "method"), TABLE, ids=lambda v: getattr(v, "name", v))
def test_choice_plan_and_cut_network_cost_the_same(row: ModelCase, method: str) -> None:
    for seed in (1, 2):
        net = scramble(attached(row.name, method), seed)
        plan = decide(net)
        small = apply(net, plan).eval()
        counted = _counted(small, row)
        for name, cost in COSTS.items():
            chosen = cost(usage(net.graph, net.bits(hard=True))).item()
            planned = cost(usage(net.graph, plan.net_bits())).item()
            assert chosen == planned, name
            if name == "mpic":  # the only one that divides
                assert planned == pytest.approx(counted[name], rel=1e-12)
            else:
                assert planned == counted[name], name


def test_the_choices_of_this_law_are_not_all_alike() -> None:
    net = scramble(attached("digits"), 1)
    plan = decide(net)
    assert any(len(plan.kept[g.name]) < g.units for g in net.graph.groups)
    assert all(len({b for b in w.bits if b}) > 1 for w in plan.weights.values())
