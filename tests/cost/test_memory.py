"""Peak RAM: values computed by hand, an independent count on the integer network, laws."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import CASES, Forward, ModelCase, captured, case
from searches import attached, scramble
from zerobit.bits import BitDist, NetBits
from zerobit.cost.liveness import buffers
from zerobit.cost.memory import PeakRam
from zerobit.cost.usage import uniform, usage
from zerobit.cut.apply import apply
from zerobit.cut.decide import decide
from zerobit.formats import GRID
from zerobit.graph.capture import capture
from zerobit.graph.describe import describe
from zerobit.graph.folding import fold_batch_norm
from zerobit.graph.ir import Graph
from zerobit.integer import ir
from zerobit.integer.lower import lower
from zerobit.zoo.models import model as zoo_model

RAM = PeakRam()


def _ram(graph: Graph, bits: NetBits) -> float:
    return float(RAM(usage(graph, bits)).detach())


def _graph(model: nn.Module, *shapes: tuple[int, ...]) -> Graph:
    examples = tuple(torch.zeros(2, *shape) for shape in shapes)
    return describe(fold_batch_norm(capture(model.eval(), examples)))


def _zoo(name: str, classes: int) -> Graph:
    definition = zoo_model(name)
    return _graph(definition.build(classes), definition.input_shape)


@pytest.mark.parametrize("activations", [8, 4, 2])
def test_resnet8_holds_three_maps_of_the_first_block(activations: int) -> None:
    """16 channels of 32 x 32: the block's input, kept for the sum, and what its second convolution reads and writes.

    The sum overwrites one of them. In the second block it is 16 * 32 * 32 + 2 * 32 * 16 * 16, two thirds of that.
    """
    graph = _zoo("resnet8", 10)
    assert _ram(graph, uniform(graph, 8, activations)) == 3 * 16 * 32 * 32 * activations / 8 == 6144 * activations


def test_dscnn_holds_what_a_layer_reads_and_writes() -> None:
    """64 channels of 25 x 5 in every block, against 49 * 10 + 64 * 25 * 5 in the first layer."""
    graph = _zoo("dscnn", 12)
    assert _ram(graph, uniform(graph, 8)) == 2 * 64 * 25 * 5 == 16_000


@pytest.mark.parametrize(
    ("name", "worst"),
    [
        # fc1: 16 + 12; fc2: 12 + 8; fc3: 8 and 3 accumulators of 4 bytes, 20
        ("mlp", 28),
        # concat: (4 + 6) * 16 twice, the members and the copy; conv after it (10 + 5) * 16 = 240
        ("concat_branches", 320),
        # second depthwise: 6 * 16 for the sum, 8 * 16 read, 8 * 16 written; the first has no sum, 256
        ("inverted_residual", 352),
    ],
)
def test_values_computed_by_hand(name: str, worst: int) -> None:
    graph = describe(fold_batch_norm(captured(case(name))[1]))
    assert _ram(graph, uniform(graph, 8)) == worst


def _sum_of_two(m: nn.Module, x: Tensor) -> Tensor:
    return m.get_submodule("last")(m.get_submodule("a")(x) + m.get_submodule("b")(x))


def _conv(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 1)


def test_a_sum_overwrites_what_nobody_reads_any_more() -> None:
    """Of 16 positions: b reads 2 channels while a's 10 wait and writes 10; a third map of 10 would make 30."""
    graph = _graph(Forward(_sum_of_two, a=_conv(2, 10), b=_conv(2, 10), last=_conv(10, 2)), (2, 4, 4))
    assert _ram(graph, uniform(graph, 8)) == (2 + 10 + 10) * 16


def test_a_sum_spares_what_is_read_again() -> None:
    """At the first sum a and b are live, as each is read again, and so is the sum; the second overwrites one."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        a, b = m.get_submodule("a")(x), m.get_submodule("b")(x)
        return m.get_submodule("last")((a + b) + (a - b))

    graph = _graph(Forward(forward, a=_conv(2, 10), b=_conv(2, 10), last=_conv(10, 2)), (2, 4, 4))
    assert _ram(graph, uniform(graph, 8)) == 3 * 10 * 16


def test_a_buffer_is_as_wide_as_the_widest_that_it_holds() -> None:
    graph = _graph(Forward(_sum_of_two, a=_conv(2, 10), b=_conv(2, 10), last=_conv(10, 2)), (2, 4, 4))
    bits = uniform(graph, 8, 2)
    (total,) = (op.name for op in graph.ops if op.kind.value == "add")
    wide = NetBits(bits.keep, bits.weights, {**bits.activations, total: BitDist.one_hot([8])})
    # last reads the sum of 8 bits and writes 2 accumulators of 32; the sum lies where one of a and b lay
    assert _ram(graph, wide) == max(16 * (10 + 2 * 4), 16 * (10 + 10 * 2 / 8))


def test_what_is_returned_early_stays() -> None:
    """While d reads 5 channels of a byte and writes 1 of four, the 4 of b, of four bytes each, wait for the end."""

    def forward(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(m.get_submodule("a")(x))
        return m.get_submodule("b")(x), m.get_submodule("d")(F.relu(m.get_submodule("c")(x)))

    graph = _graph(Forward(forward, a=_conv(2, 3), b=_conv(3, 4), c=_conv(3, 5), d=_conv(5, 1)), (2, 4, 4))
    assert _ram(graph, uniform(graph, 8)) == 16 * (4 * 4 + 5 + 4)


def test_an_input_that_nobody_reads_takes_nothing() -> None:
    graph = _graph(Forward(lambda m, x, y: m.a(x), a=nn.Linear(4, 10)), (4,), (1000,))
    assert _ram(graph, uniform(graph, 8)) == 4 + 10 * 4


def test_views_share_and_copies_do_not() -> None:
    """A reshape costs nothing; a permutation holds its input and its result."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.get_submodule("fc")(F.relu(m.get_submodule("a")(x)).flatten(2).transpose(1, 2))

    graph = _graph(Forward(forward, a=_conv(2, 12), fc=nn.Linear(12, 2)), (2, 4, 4))
    assert _ram(graph, uniform(graph, 8)) == 16 * (12 + 12)
    assert [len(b.values) for b in buffers(graph)] == [1, 1, 1, 1]


def test_what_is_computed_in_float_takes_four_bytes() -> None:
    """The softmax reads 10 integers and writes 10 floats; these are then rounded to 10 integers for b."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.get_submodule("b")(torch.softmax(m.get_submodule("a")(x), -1))

    graph = _graph(Forward(forward, a=nn.Linear(4, 10), b=nn.Linear(10, 2)), (4,))
    assert _ram(graph, uniform(graph, 8)) == 10 + 10 * 4


def test_a_float_does_not_overwrite_integers() -> None:
    """The exponential, which nothing rounds, reads 10 bytes and writes 40."""
    model = Forward(lambda m, x: torch.exp(m.a(x)), a=nn.Linear(4, 10))
    graph = _graph(model, (4,))
    assert _ram(graph, uniform(graph, 8)) == 10 + 40


def test_a_transposed_convolution_reads_zeros_between() -> None:
    """8 channels of 3 by 3 positions are spread to 7 by 5; the result is 2 channels of 7 by 5 accumulators."""
    layer = nn.ConvTranspose2d(8, 2, 3, stride=(3, 2), padding=1)
    graph = _graph(Forward(lambda m, x: m.b(F.relu(m.a(x))), a=_conv(2, 8), b=layer), (2, 3, 3))
    assert _ram(graph, uniform(graph, 8)) == 8 * 7 * 5 + 2 * 7 * 5 * 4


@pytest.mark.parametrize(("width", "stored"), [(2, 2), (3, 4), (5, 8), (7, 8)])
def test_widths_that_are_not_stored_round_up(width: int, stored: int) -> None:
    graph = describe(fold_batch_norm(captured(case("in_place"))[1]))
    assert _ram(graph, uniform(graph, 8, width)) == _ram(graph, uniform(graph, 8, stored))


# What follows counts on the integer network that the cut one is lowered to, as an interpreter of it would: a table of
# who still has to read what, and sizes in integers.

_IN_PLACE = (ir.Add, ir.Subtract, ir.Multiply, ir.Rescale, ir.Lookup)


def _counted(graph: ir.IntegerGraph) -> float:
    """Bytes that are live at the worst moment."""
    home: dict[str, int] = {}
    left: Counter[int] = Counter()
    size: Counter[int] = Counter()
    bits_of = {t.name: _tensor_bits(t) for t in graph.tensors}
    reads_left = _readers(graph)
    moments: list[set[int]] = []
    live: set[int] = set()
    for op in graph.ops:
        if isinstance(op, ir.Reshape):
            home[op.output] = home[op.input]
            continue
        read = list(dict.fromkeys(home[name] for name in ir.reads(op)))
        for place in read:
            left[place] -= 1
        for made in ir.makes(op):
            old = next((home[n] for n in ir.reads(op) if _can_take(graph, op, n) and not left[home[n]]), None)
            home[made] = len(moments) * 1000 + len(home) if old is None else old
            left[home[made]] = reads_left[made]
            size[home[made]] = max(size[home[made]], bits_of[made])
            live.add(home[made])
        moments.append({*live})
        live = {place for place in live if left[place]}
    return max(sum(size[place] for place in moment) for moment in moments) / 8


def _tensor_bits(tensor: ir.IntegerTensor) -> int:
    elements = torch.Size(tensor.shape).numel()
    return elements * (32 if tensor.is_float else next(b for b in (2, 4, 8) if b >= tensor.bits))


def _readers(graph: ir.IntegerGraph) -> Counter[str]:
    """How many ops read a tensor, whatever shape it has by then; the caller is one."""
    origin: dict[str, str] = {}
    for op in graph.ops:
        for made in ir.makes(op):
            origin[made] = origin[op.input] if isinstance(op, ir.Reshape) else made
    count = Counter(origin[name] for name in graph.outputs)
    for op in graph.ops:
        if not isinstance(op, ir.Reshape):
            count.update({origin[name] for name in ir.reads(op)})
    return count


def _can_take(graph: ir.IntegerGraph, op: ir.Op, name: str) -> bool:
    if not isinstance(op, _IN_PLACE):
        return False
    old, new = graph.by_name[name], graph.by_name[op.output]
    return torch.Size(old.shape).numel() == torch.Size(new.shape).numel() and old.is_float == new.is_float


@pytest.mark.parametrize("method", ["default", "activations"])
@pytest.mark.parametrize("row", CASES, ids=lambda c: c.name)
def test_choice_plan_and_integer_network_need_the_same(row: ModelCase, method: str) -> None:
    for seed in (1, 2):
        net = scramble(attached(row.name, method), seed)
        plan = decide(net)
        chosen = _ram(net.graph, net.bits(hard=True))
        assert chosen == _ram(net.graph, plan.net_bits())
        small = lower(apply(net, plan).eval())
        # ops in float are grouped and reordered, and what is inside a group is not in the integer network
        if all(len(island.ops) == 1 for island in small.islands):
            assert chosen == _counted(small)


def test_most_networks_are_counted_twice() -> None:
    nets = [scramble(attached(row.name), 1) for row in CASES]
    islands = [lower(apply(net, decide(net)).eval()).islands for net in nets]
    assert sum(not found for found in islands) >= 23
    assert sum(all(len(island.ops) == 1 for island in found) for found in islands) >= 27


@pytest.mark.parametrize("row", CASES, ids=lambda c: c.name)
def test_a_channel_more_or_wider_activations_never_cost_less(row: ModelCase) -> None:
    net = scramble(attached(row.name), 1)
    bits = net.bits(hard=True)
    for group in net.graph.groups:
        if group.frozen is None:
            less, more = bits.keep[group.name].clone(), bits.keep[group.name].clone()
            less[0], more[0] = 0, 1
            costs = [_ram(net.graph, NetBits({**bits.keep, group.name: k}, bits.weights, {**bits.activations}))
                     for k in (less, more)]  # fmt: skip
            assert costs[0] <= costs[1], group.name
    start = {name: BitDist.one_hot([5]) for name in bits.activations}
    for name in bits.activations:
        widths = [{**start, name: BitDist.one_hot([b])} for b in GRID[1:]]
        costs = [_ram(net.graph, NetBits(bits.keep, bits.weights, a)) for a in widths]
        assert costs == sorted(costs), name
    for narrow, wide in pairwise(GRID[1:]):
        alike = [{name: BitDist.one_hot([b]) for name in bits.activations} for b in (narrow, wide)]
        few, many = (_ram(net.graph, NetBits(bits.keep, bits.weights, a)) for a in alike)
        assert few <= many


@pytest.mark.parametrize("row", CASES, ids=lambda c: c.name)
def test_many_choices_at_once_cost_what_each_costs(row: ModelCase) -> None:
    net = attached(row.name, "activations")
    choices = [scramble(net, seed).bits(hard=seed < 2) for seed in range(3)]
    many = NetBits(
        {k: torch.stack([c.keep[k] for c in choices]) for k in choices[0].keep},
        {k: BitDist(torch.stack([c.weights[k].p for c in choices])) for k in choices[0].weights},
        {k: BitDist(torch.stack([c.activations[k].p for c in choices])) for k in choices[0].activations},
    )
    every = RAM(usage(net.graph, many))
    assert every.dtype == torch.float64
    first, second, soft = every.tolist()
    assert [first, second] == [_ram(net.graph, choice) for choice in choices[:2]]
    assert soft == pytest.approx(_ram(net.graph, choices[2]), rel=1e-12)  # sums of fractions, in another order


def _leaves(graph: Graph, keep: float) -> tuple[NetBits, list[Tensor]]:
    """Soft choices that can be differentiated."""
    bits = uniform(graph, 8)
    kept = {k: torch.full_like(v, keep).requires_grad_() for k, v in bits.keep.items()}
    rows = {k: BitDist(torch.full_like(d.p, 1 / len(GRID)).requires_grad_()) for k, d in bits.activations.items()}
    return NetBits(kept, bits.weights, rows), [*kept.values(), *(d.p for d in rows.values())]


def test_the_gradient_is_that_of_finite_differences_where_one_moment_dominates() -> None:
    """The first layer reads 3072 values and writes 8 * 49; all that comes later is a fraction of it."""
    layers = {"a": nn.Conv2d(3, 8, 5, stride=4), "b": nn.Conv2d(8, 4, 3), "c": nn.Conv2d(4, 2, 1)}
    model = Forward(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))), **layers)
    graph = _graph(model, (3, 32, 32))
    bits, leaves = _leaves(graph, 0.7)
    worst = RAM(usage(graph, bits))
    grads = torch.autograd.grad(worst, leaves, allow_unused=True)
    random = torch.Generator().manual_seed(0)
    moved = 0
    for leaf, grad in zip(leaves, grads, strict=True):
        assert grad is not None
        direction = torch.rand(leaf.shape, generator=random, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                leaf.add_(sign * 0.125 * direction)
                values.append(_ram(graph, bits))
                leaf.sub_(sign * 0.125 * direction)
        wanted = (values[0] - values[1]) / 0.25
        assert float((grad * direction).sum()) == pytest.approx(wanted, rel=1e-5, abs=1e-5 * worst.item())
        moved += wanted != 0
    assert moved == 3  # the channels of the first layer, the width of the input and that of the result


@pytest.mark.parametrize("row", CASES, ids=lambda c: c.name)
def test_removing_what_is_live_is_rewarded(row: ModelCase) -> None:
    """Gradients are finite, never push towards more, and reach the channels and widths of the worst moment."""
    graph = attached(row.name).graph
    bits, leaves = _leaves(graph, 0.7)
    grads = [g for g in torch.autograd.grad(RAM(usage(graph, bits)), leaves, allow_unused=True) if g is not None]
    assert all(g.isfinite().all() and (g >= 0).all() for g in grads)
    assert any((g > 0).any() for g in grads)


def test_a_moment_that_is_nearly_as_bad_has_a_part_in_the_gradient() -> None:
    """Layers of 10, 10, 10 and 9 units: at the third layer one byte less is live than at the first two."""
    layers = {"a": nn.Linear(10, 10), "b": nn.Linear(10, 10), "c": nn.Linear(10, 9), "d": nn.Linear(9, 1)}
    model = Forward(lambda m, x: m.d(F.relu(m.c(F.relu(m.b(F.relu(m.a(x))))))), **layers)
    graph = _graph(model, (10,))
    bits, _ = _leaves(graph, 1.0)
    worst = RAM(usage(graph, NetBits(bits.keep, bits.weights, uniform(graph, 8).activations)))
    assert worst.item() == 20
    first, second, third = (g[0].item() for g in torch.autograd.grad(worst, [bits.keep[name] for name in "abc"]))
    # a is live at the two worst moments; b at the second of them and at the third; c at the third
    assert first > second > third > 0.1
    assert first == pytest.approx(2 * (second - third), rel=1e-2)  # d, where c is live as well, is far from the worst
