"""One-hot law: a hard choice, the plan and the cut network cost the same, counted three ways."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cases import CASES, ModelCase
from searches import METHODS, attached, scramble
from zerobit.cost import AbstractCost, Bops, Macs, Size
from zerobit.cost.devices.cortex_m import FITTED, Flash
from zerobit.cost.registry import named_cost
from zerobit.cost.usage import usage
from zerobit.cut.apply import QuantNet, apply
from zerobit.cut.decide import decide
from zerobit.graph.ir import Kind
from zerobit.quant.slot import ActivationSlot, FixedWeightSlot

#: MAC per cycle by activation and weight width; Ottavi et al., arXiv 2010.04073.
MPIC = {(8, 2): 2.5, (8, 4): 2.3, (8, 8): 2.1, (4, 2): 3.9, (4, 4): 3.5, (4, 8): 2.1}
#: Samples in a run.
BATCH = 2
#: Operators that multiply, and the positions of the two factors among their arguments.
PRODUCTS = {"convolution": (0, 1), "mm": (0, 1), "addmm": (1, 2), "bmm": (0, 1)}


@dataclass(frozen=True)
class _Run:
    """One run of a layer of a cut network, by the shapes that a run shows; per sample.

    Attributes:
        bits: of each output channel.
        inputs: channels.
        window: depth, height and width.
        size: depth, height and width of the output; None for a linear layer.
        positions: of the output.
        groups: of a convolution.
        macs: per output channel.
        inside: places of the window that lie inside the input, and lines of such; means over the output.
        is_dilated: along the last dimension.
    """

    bits: tuple[int, ...]
    inputs: int
    window: tuple[int, int, int]
    size: tuple[int, int, int] | None
    positions: int
    groups: int
    macs: int
    inside: tuple[float, float] = (1, 1)
    is_dilated: bool = False


@dataclass
class _Count(TorchDispatchMode):
    """Watches a run: which tensors came out of a quantizer, and what is multiplied with what."""

    weight_bits: dict[int, tuple[int, ...]] = field(default_factory=dict)
    value_bits: dict[int, int] = field(default_factory=dict)
    macs: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))
    runs: list[_Run] = field(default_factory=list)
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
        is_linear = name != "convolution"
        window = () if is_linear else tuple(w.shape[2:])
        space = None if is_linear else (1, 1, *result.shape[2:])[-3:]
        positions = result.numel() // BATCH // result.shape[-1 if is_linear else 1]
        inputs = x.shape[-1] if is_linear else x.shape[1]
        groups = 1 if is_linear else args[8]
        sizes = inputs, (1, 1, 1, *window)[-3:], space, positions, groups
        inside = () if is_linear else (_inside(x.shape[2:], window, *args[3:8]), args[5][-1] > 1)
        self.runs.append(_Run(bits, *sizes, per_channel // BATCH, *inside))


def _inside(sizes: Any, window: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, more: Any) -> Any:
    """Means of a convolution of ones with ones: over all dimensions, and over all but the last."""
    stride, padding, dilation, extra = (
        list(v) * (len(sizes) // len(v)) for v in (stride, padding, dilation, more)
    )  # one number may stand for all dimensions
    if transposed:
        sizes = [(n - 1) * s + 1 for n, s in zip(sizes, stride, strict=True)]
        padding = [d * (k - 1) - p for d, k, p in zip(dilation, window, padding, strict=True)]
        stride = [1] * len(sizes)
    else:
        extra = [0] * len(sizes)
    means = []
    for end in (len(sizes), len(sizes) - 1):
        if end == 0:
            means.append(1.0)
            continue
        x, w = (torch.ones(1, 1, *dims[:end], dtype=torch.float64) for dims in (sizes, window))
        pads = [side for p, e in zip(padding[:end], extra[:end], strict=True) for side in (p + e, p)]
        x = torch.nn.functional.pad(x, pads[::-1])
        conv = (torch.conv1d, torch.conv2d, torch.conv3d)[end - 1]
        means.append(conv(x, w, None, stride[:end], 0, dilation[:end]).mean().item())
    return tuple(means)


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


def _counted(net: QuantNet, row: ModelCase, depthwise: list[bool]) -> dict[str, float]:
    """Cost of a cut network by shapes and integers alone, per sample.

    Args:
        net: the cut network.
        row: what it is made of.
        depthwise: for each run of a layer whether it was depthwise before the cut; of a grouped one that is left with
            one input per group the shapes don't tell.
    """
    batch = BATCH
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
    layers = list(zip(count.runs, depthwise, strict=True))
    channels = sum(len(run.bits) for run in count.runs)
    calls = sum(1 if is_depthwise else run.groups for run, is_depthwise in layers)
    return {
        "ne16": sum(_ne16(*layer) for layer in layers),
        "gap8": sum(_gap8(*layer) for layer in layers),
        "diana": sum(_diana(*layer) for layer in layers),
        "cortex_m": sum(_cortex_m(*layer) for layer in layers),
        "cortex_m.flash": (size + rest) / 8 + 11 * channels + calls * Flash().call + Flash().code,
        "size": (size + rest) / 8,
        "macs": float(sum(macs.values())),
        "bops": float(sum(n * a * w for (a, w), n in macs.items())),
        "mpic": sum(n / MPIC[wide[a], wide[w]] for (a, w), n in macs.items()),
    }


def _up(a: Fraction | int, b: int) -> int:
    return math.ceil(Fraction(a) / b)


def _groups(run: _Run, widths: dict[int, int]) -> dict[int, Fraction]:
    """Channels of one group at each width; a group has its share of those of a width."""
    found = Counter(widths[b] for b in run.bits)
    return {width: Fraction(n, run.groups) for width, n in found.items()}


def _ne16(run: _Run, depthwise: bool) -> int:
    """Tile by tile: full ones of 32 channels (16 depthwise) and the rest."""

    def job(k: Fraction | int, bits: int, inputs: int, kind: str) -> Fraction | int:
        load, offset, multiply = {
            "1": (19, 6, 6 + k),
            "3": (31, 6, 6 + k * bits),
            "dw": (31, 6 + k, 6 + k * bits),
        }[kind]
        return inputs * (load + offset + multiply + 2) + (9 + k) + 13

    def latency(channels: Fraction | int, bits: int, inputs: int, kind: str) -> Fraction | int:
        full, body = 0, 16 if kind == "dw" else 32
        while channels >= body:
            full, channels = full + job(body, bits, inputs, kind), channels - body
        return full + (job(channels, bits, inputs, kind) if channels else 0)

    patches = _up(run.positions, 9) if run.size is None else run.size[0] * _up(run.size[1], 3) * _up(run.size[2], 3)
    deep, high, wide = run.window
    squares, singles = high // 3 * (wide // 3), high % 3 * wide + wide % 3 * high - high % 3 * (wide % 3)
    if depthwise:
        jobs = {"dw": deep * _up(high, 3) * _up(wide, 3)}
        found = {b: Fraction(n) for b, n in Counter(run.bits).items()}
        return int(patches * sum(n * latency(k, b, 1, kind) for b, k in found.items() for kind, n in jobs.items()))
    jobs = {"3": deep * squares, "1": deep * singles}
    inputs = _up(Fraction(run.inputs, run.groups), 16)
    per_group = _groups(run, {b: b for b in range(2, 9)})
    cycles = sum(n * latency(k, b, inputs, kind) for b, k in per_group.items() for kind, n in jobs.items())
    return int(patches * run.groups * cycles)


def _gap8(run: _Run, depthwise: bool) -> int:
    channels, taps = len(run.bits), math.prod(run.window)
    if run.size is None:
        return run.positions * _up(run.inputs, 2) * _up(channels, 4)
    if depthwise:
        return 4 * _up(channels, 4) * run.positions * taps
    inputs = Fraction(run.inputs, run.groups)
    patch = 2 * taps * inputs + _up(Fraction(channels, run.groups), 4) * (5 + 14 * _up(inputs * taps, 4) + 10)
    return int(run.groups * run.size[0] * _up(run.size[1], 8) * _up(run.size[2], 2) * patch)


def _diana(run: _Run, depthwise: bool) -> float:
    deep, high, wide = run.window
    _, rows, columns = run.size or (1, 1, run.positions)
    planes = run.positions // (rows * columns) * deep
    analog = 0 if depthwise else sum(b == 2 for b in run.bits)
    digital = len(run.bits) - analog
    moved = run.positions * (digital + run.inputs) / 8 if digital else 0
    blocks = _up(digital, 16 * run.groups)
    slow = blocks * run.inputs * _up(columns, 16) * rows * planes * high * wide + moved
    if not analog:
        return slow
    k, c = Fraction(analog, run.groups), Fraction(run.inputs, run.groups)
    fitting = [u for u in (2, 4, 8) if u * k <= 512 and (u + wide - 1) * max(64, c) * high <= 1152]
    uses = _up(k, 512) * _up(c, 128) * Fraction(rows * columns * planes * run.groups, max([1, *fitting]))
    return max(slow, float(uses) * 18.2 + 8 * run.inputs * deep * high * wide)


def _cortex_m(run: _Run, depthwise: bool) -> float:
    """Pass by pass, of each group; a row of the output after the other."""
    c, groups = FITTED, 1 if depthwise else run.groups
    channels = Fraction(len(run.bits), groups)
    fours, rest = divmod(channels, 4)
    fours, ones = (fours + 1, 0) if rest > 1 else (fours, math.ceil(rest))
    fours, ones = (0, len(run.bits)) if depthwise else (fours, ones)
    places, lines = run.inside
    runs = places if depthwise or run.groups > 1 or run.is_dilated else lines
    values = places * run.inputs / run.groups
    four = c.window + lines * c.line + runs * c.run + values * c.value
    one = c.single_window + lines * c.single_line + runs * c.single_run + values * c.single_value
    rows = 1 if run.size is None else run.size[0] * run.size[1]
    found = groups * (c.call + rows * c.row * float(fours + ones) + run.positions * float(fours * four + ones * one))
    weights = math.prod(run.window) * run.inputs // run.groups
    unpacked = sum(weights * (c.unpack_2 if b == 2 else c.unpack_4) for b in run.bits if b <= 4)
    return found + len(run.bits) * (c.output * run.positions + c.channel) + unpacked


COSTS: dict[str, AbstractCost] = {
    "size": Size(),
    "macs": Macs(),
    "bops": Bops(),
    **{name: named_cost(name) for name in ("mpic", "ne16", "gap8", "diana", "cortex_m", "cortex_m.flash")},
}
#: Costs that multiply with numbers that are not short in binary.
ROUNDED = {"mpic", "diana", "cortex_m"}
#: All networks with the default; all methods on one network with residuals.
TABLE = [(row, method) for row in CASES for method in METHODS if method == "default" or row.name == "tcn"]


@pytest.mark.parametrize(("row", "method"), TABLE, ids=lambda v: getattr(v, "name", v))
def test_choice_plan_and_cut_network_cost_the_same(row: ModelCase, method: str) -> None:
    for seed in (1, 2):
        net = scramble(attached(row.name, method), seed)
        plan = decide(net)
        small = apply(net, plan).eval()
        runs = usage(net.graph, plan.net_bits()).layers
        counted = _counted(small, row, [run.depthwise for run in runs if run.kind is not Kind.EMBEDDING])
        for name, cost in COSTS.items():
            chosen = cost(usage(net.graph, net.bits(hard=True))).item()
            planned = cost(usage(net.graph, plan.net_bits())).item()
            assert chosen == planned, name
            if name in ROUNDED:
                assert planned == pytest.approx(counted[name], rel=1e-12)
            else:
                assert planned == counted[name], name


def test_the_choices_of_this_law_are_not_all_alike() -> None:
    net = scramble(attached("digits"), 1)
    plan = decide(net)
    assert any(len(plan.kept[g.name]) < g.units for g in net.graph.groups)
    assert all(len({b for b in w.bits if b}) > 1 for w in plan.weights.values())
