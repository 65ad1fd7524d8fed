"""What a cost fitted to an NPU compiler's estimates is worth: writes docs/npu.md.

For each network its layers are compiled by Vela over channel counts and widths, and a cost is fitted to its estimates
(`zerobit profile --runtime`). Then whole networks are compiled: uncut ones, all weights at one width, and networks cut
at random, with a random width for each layer or for each channel; the cost is compared with what the compiler says.
"""

import argparse
import io
import random
import sys
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from measured_costs import WIDTHS, random_plan
from results_common import made
from rich.console import Console

from zerobit.cost.base import LayerUse, Usage
from zerobit.cost.fit import quality
from zerobit.cost.measured import MeasuredCost, Quality
from zerobit.cost.measurements import Table
from zerobit.cost.terms import op_of
from zerobit.cost.usage import usage
from zerobit.cut.apply import apply
from zerobit.cut.decide import decide
from zerobit.export.tflite_file import build_tflite
from zerobit.export.tflite_logits import integer_logits
from zerobit.integer.lower import lower
from zerobit.measure.bench import Settings
from zerobit.measure.layer_runtimes import CompiledLayers, layer_runtime
from zerobit.measure.layers import Configuration, Layer
from zerobit.measure.npu_compiler import Estimate, estimate, vela_version
from zerobit.measure.profile import Sweep, profile
from zerobit.plan import Plan, WeightPlan
from zerobit.report import write_text
from zerobit.search.attach import SearchNet, attach
from zerobit.search.methods.softmax import ChannelSoftmax
from zerobit.zoo.models import model as zoo_model

FILE = Path(__file__).parents[1] / "docs" / "npu.md"
SEED = 0


@dataclass(frozen=True)
class Whole:
    """An uncut network, all weights at one width.

    Attributes:
        bits: of the weights.
        predicted: cycles, by the fit.
        layers: cycles, by the compiler for each layer apart.
        compiled: by the compiler.
    """

    bits: int
    predicted: float
    layers: float
    compiled: Estimate


@dataclass(frozen=True)
class Row:
    """A network.

    Attributes:
        name: of the zoo.
        cost: the fit.
        whole: uncut.
        cut: predicted against compiled, for networks cut at random with a width for each layer.
        mixed: the same with a width for each channel.
        less: of all these networks, the share of which the fit says less than the compiler.
        setting: what the compiler's estimates hold for.
    """

    name: str
    cost: MeasuredCost
    whole: tuple[Whole, ...]
    cut: Quality | None
    mixed: Quality | None
    less: float
    setting: str


def uniform_plan(plan: Plan, bits: int) -> Plan:
    """All weights at one width."""
    weights = {n: WeightPlan(tuple(bits for _ in w.bits), None, w.full_range) for n, w in plan.weights.items()}
    return Plan(plan.units, plan.kept, weights, plan.activations)


def apart(use: Usage, table: Table, bits: int) -> float:
    """Sum of the layers of an uncut network, each as measured."""
    measured = {(*row.shape, row.weight_bits): row.value for row in table.rows}
    return sum(measured[(*shape(layer), bits)] for layer in use.layers)


def shape(layer: LayerUse) -> tuple[object, ...]:
    """As `Measurement.shape`."""
    positions = layer.output_shape[2:]  # [batch, channels, ...]
    height, width = positions if len(positions) == 2 else (1, prod(positions))
    channels = int(layer.inputs), int(layer.weight.counts.sum())
    return op_of(layer), layer.kernel or (1,), layer.stride or (1,), height, width, *channels


def mixed_plan(plan: Plan, rng: random.Random) -> Plan:
    """Another width for each channel that stays."""
    weights = {
        n: WeightPlan(tuple(rng.choice(WIDTHS) if b else 0 for b in w.bits), None, w.full_range)
        for n, w in plan.weights.items()
    }
    return Plan(plan.units, plan.kept, weights, plan.activations)


def compiled(net: SearchNet, plan: Plan, samples: torch.Tensor, target: str) -> Estimate:
    """What the compiler says of a network."""
    graph = integer_logits(lower(apply(net, plan).eval()), samples.numpy())
    return estimate(build_tflite(graph, "int8", {}), target)


def measure(name: str, target: str, multiple: int, networks: int, console: Console) -> Row:
    """Fit a cost, and compare it with whole networks."""
    definition = zoo_model(name)
    torch.manual_seed(SEED)
    samples = torch.randn(8, *definition.input_shape)
    model = definition.build(10).eval()
    sweep = Sweep(target, multiple_of=multiple, weight_bits=WIDTHS, seed=SEED)
    out = FILE.parents[1] / "build" / "npu" / f"{name}.toml"
    source = f"benchmarks/npu_costs.py {name}"
    cost = profile(model, samples[:1], out, sweep, name=name, source=source, console=console)
    net = attach(model, samples, ChannelSoftmax())
    start, rng = decide(net), random.Random(SEED)

    def says(plan: Plan) -> tuple[float, Estimate]:
        return float(cost(usage(net.graph, plan.net_bits()))), compiled(net, plan, samples, target)

    def uncut(bits: int) -> Whole:
        plan = uniform_plan(start, bits)
        predicted, found = says(plan)
        return Whole(bits, predicted, apart(usage(net.graph, plan.net_bits()), table, bits), found)

    table = Table.read(out.with_suffix(".csv"))
    whole = tuple(uncut(bits) for bits in reversed(WIDTHS))
    plans = [random_plan(net.graph, start, multiple, rng) for _ in range(networks)]
    cut = [says(plan) for plan in plans]
    mixed = [says(mixed_plan(plan, rng)) for plan in plans]
    less = sum(predicted < found.cycles for predicted, found in cut + mixed) / len(cut + mixed)
    return Row(name, cost, whole, _quality(cut), _quality(mixed), less, whole[0].compiled.setting)


def _quality(pairs: list[tuple[float, Estimate]]) -> Quality | None:
    return quality([(predicted, float(found.cycles)) for predicted, found in pairs])


def ladder(target: str) -> list[str]:
    """A table of one layer over widths and over channel counts."""
    layer = Layer("conv", 64, 64, (8, 8), (8, 8), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
    counts = (8, 12, 16, 20, 24, 32, 33, 48, 64)
    runtime = layer_runtime(target, Settings())
    assert isinstance(runtime, CompiledLayers)
    lines = ["| cycles | " + " | ".join(map(str, counts)) + " |", "|---|" + "---:|" * len(counts)]
    for bits in reversed(WIDTHS):
        values = runtime.measure([Configuration(layer, 64, n, bits, 8) for n in counts], lambda: None)
        lines.append(f"| {bits} bit, outputs: | " + " | ".join(f"{value:,.0f}" for value in values) + " |")
    return lines


_TEXT = """# Costs of NPUs

`zerobit cost RUN --target {target}` compiles a run's network with Arm's compiler for Ethos-U NPUs (`pip install
'zerobit[npu]'`) and shows the cycles and the memory that it estimates. `zerobit profile MODEL --runtime {target}
--out mine.toml` asks it about single layers over channel counts and widths, and fits a cost that a search can use
(`--target mine.toml --budget mine=50%`). All figures are the compiler's estimates, none were measured on a chip.

What the fit is worth, {accelerator}:

- *channels*: every channel count of every layer, predicted by a fit without a quarter of them.
- *layers*: every layer, predicted by a fit to the other layers of the same network. Where a network has few distinct
  layers this says little of the cost it is used with.
- *cut*: {networks} networks cut at random, with a random width for each layer, compiled whole, against the sum over
  their layers. *mixed*: the same with a random width for each channel.

Command: `python benchmarks/npu_costs.py{arguments}`. Vela {version}. {made}

{quality}

Of the networks *cut* and *mixed*, the fit says less than the compiler of {less}.
The compiler counts sums and means, which the fit has nothing of. Whole networks, uncut, all weights at one width,
activations at 8 bit, in cycles: the sum over layers by the fit, the sum over layers as compiled one by one, and the
network as compiled:

{whole}

Weights of the single layers are uniformly random, which packs worst; those of the networks are as PyTorch initialises
them.

Widths make a layer faster where it waits for its weights: the compiler packs them by how often values occur, but the
file holds bytes, so that a 2-bit weight is one of three values. 3 x 3, 8 x 8, 64 inputs:

{ladder}

## The fits

{fits}
"""


def render(rows: list[Row], steps: list[str], target: str, networks: int, arguments: str) -> str:
    """The whole file."""
    table = [
        "| network | rows | channels: error | rank | layers: error | rank | cut: error | rank | mixed: error | rank |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    whole = [
        "| network | weights | fitted layers | compiled layers | compiled network | SRAM | flash |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    fits: list[str] = []
    for row in rows:
        qualities = [row.cost.qualities.get("channels"), row.cost.qualities.get("layers"), row.cut, row.mixed]
        cells = [row.name, str(qualities[0].rows if qualities[0] else 0)]
        for q in qualities:
            cells += ["-", "-"] if q is None else [f"{100 * q.error:.1f} %", f"{q.rank_correlation:.3f}"]
        table.append("| " + " | ".join(cells) + " |")
        for w in row.whole:
            found = w.compiled
            cycles = f"{w.predicted:,.0f} | {w.layers:,.0f} | {found.cycles:,}"
            memory = f"{found.sram:,} B | {found.flash:,} B"
            whole.append(f"| {row.name} | {w.bits} bit | {cycles} | {memory} |")
        fits.append(f"### {row.name}\n")
        for op, terms in row.cost.terms.items():
            fits.append(f"- {op}: " + " + ".join(f"{c:.3g} {t}" for t, c in terms.items()))
        fits.append("")
    return _TEXT.format(
        less=" and ".join(f"{100 * row.less:.0f} % ({row.name})" for row in rows),
        target=target, accelerator=f"{target}, {rows[0].setting}", networks=networks, arguments=arguments,
        version=vela_version(), made=made(SEED), quality="\n".join(table), whole="\n".join(whole),
        ladder="\n".join(steps), fits="\n".join(fits).rstrip(),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet8", "dscnn"])
    parser.add_argument("--target", default="ethos-u55-128")
    parser.add_argument("--multiple-of", type=int, default=16)
    parser.add_argument("--networks", type=int, default=20)
    parser.add_argument("--print", action="store_true", help="write nothing")
    args = parser.parse_args()
    console = Console(file=sys.stderr if sys.stderr.isatty() else io.StringIO())
    rows = []
    for name in args.models:
        rows.append(measure(name, args.target, args.multiple_of, args.networks, console))
        sys.stderr.write(f"{name}: {rows[-1].cost.describe()}; cut {rows[-1].cut}; mixed {rows[-1].mixed}\n")
    text = render(rows, ladder(args.target), args.target, args.networks, " ".join(["", *sys.argv[1:]]))
    if args.print:
        sys.stdout.write(text)
    else:
        write_text(FILE, text)


if __name__ == "__main__":
    main()
