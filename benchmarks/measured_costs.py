"""What `zerobit profile` is worth on this machine: writes docs/profile.md.

For each network its layers are measured and a cost is fitted (`zerobit profile`). Then whole networks are made, cut at
random and at random widths, exported and timed in ONNX Runtime, one thread, and compared with what the cost says of
them. Networks in between rounds take turns, so that a drift of the machine meets all alike.
"""

import argparse
import datetime as dt
import io
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from zerobit.cost.fit import quality
from zerobit.cost.measured import MeasuredCost, Quality
from zerobit.cost.usage import uniform, usage
from zerobit.cut.apply import apply
from zerobit.cut.decide import decide
from zerobit.export.onnx_file import build_onnx
from zerobit.export.onnx_run import open_session
from zerobit.graph.ir import Graph
from zerobit.integer.lower import lower
from zerobit.measure.bench import Settings
from zerobit.measure.bench import measure as measure_layers
from zerobit.measure.layer_runtimes import machine
from zerobit.measure.layers import Configuration, Layer
from zerobit.measure.profile import Sweep, profile
from zerobit.plan import Plan, WeightPlan
from zerobit.search.attach import attach
from zerobit.search.methods.softmax import ChannelSoftmax
from zerobit.zoo.models import model as zoo_model

FILE = Path(__file__).parents[1] / "docs" / "profile.md"
SEED = 0
WIDTHS = (2, 4, 8)
COUNTS = (4, 8, 12, 15, 16, 17, 20, 24, 32, 33, 48)


@dataclass(frozen=True)
class Row:
    """A network at one multiple of channels.

    Attributes:
        name: of the network.
        multiple: of the channel counts, measured and made.
        cost: the fit.
        whole: predicted against timed, for whole networks.
        full: predicted and timed microseconds of the uncut network at 8 bit.
    """

    name: str
    multiple: int
    cost: MeasuredCost
    whole: Quality
    full: tuple[float, float]


def random_plan(graph: Graph, plan: Plan, multiple: int, rng: random.Random) -> Plan:
    """A plan with as many units of every group as chance says, in multiples, and one width per layer."""
    kept = {}
    for group in graph.groups:
        steps = list(range(multiple, group.units + 1, multiple)) or [group.units]
        number = group.units if group.frozen is not None else rng.choice([*steps, group.units])
        kept[group.name] = tuple(range(number))
    weights = {}
    for name, weight in plan.weights.items():
        bits = [rng.choice(WIDTHS)] * len(weight.bits)
        for group, unit in graph.row_units(name).items():
            gone = [int(u) >= len(kept[group]) for u in unit]
            bits = [0 if out else b for b, out in zip(bits, gone, strict=True)]
        weights[name] = WeightPlan(tuple(bits), None, weight.full_range)
    return Plan(plan.units, kept, weights, plan.activations)


def time_networks(models: list[bytes], shape: tuple[int, ...], rounds: int) -> list[float]:
    """Microseconds of each file; the lower quartile over the rounds."""
    sessions = [open_session(model, wide_sums=False) for model in models]
    feed = {sessions[0].get_inputs()[0].name: np.random.default_rng(SEED).normal(size=(1, *shape)).astype(np.float32)}
    times = np.zeros((rounds, len(sessions)))
    for r in range(-3, rounds):
        for i, session in enumerate(sessions):
            session.run(None, feed)
            start = time.perf_counter_ns()
            session.run(None, feed)
            times[max(r, 0), i] = (time.perf_counter_ns() - start) / 1000
    return np.quantile(times, 0.25, axis=0).tolist()


def measure(name: str, multiple: int, grid: int, rounds: int, networks: int, console: Console) -> Row:
    """Profile one network, and compare with whole ones."""
    definition = zoo_model(name)
    torch.manual_seed(SEED)
    example = torch.randn(8, *definition.input_shape)
    net = definition.build(10).eval()
    sweep = Sweep(grid=grid, multiple_of=multiple, rounds=rounds, seed=SEED)
    folder = FILE.parents[1] / "build" / "profile"
    out = folder / f"{name}_{multiple}.toml"
    cost = profile(
        net, example[:1], out, sweep, name=name, source=f"benchmarks/measured_costs.py {name}", console=console
    )
    searched = attach(net, example, ChannelSoftmax())
    start, rng = decide(searched), random.Random(SEED)
    plans = [start, *(random_plan(searched.graph, start, multiple, rng) for _ in range(networks))]
    models = [build_onnx(lower(apply(searched, p).eval()), "packcast", {}).SerializeToString() for p in plans]
    timed = time_networks(models, definition.input_shape, rounds * 5)
    predicted = [float(cost(usage(searched.graph, p.net_bits()))) for p in plans]
    whole = quality(list(zip(predicted[1:], timed[1:], strict=True)))
    assert whole is not None
    assert float(cost(usage(searched.graph, uniform(searched.graph, 8)))) == predicted[0]
    return Row(name, multiple, cost, whole, (predicted[0], timed[0]))


def ladder(rounds: int) -> list[str]:
    """Rows of a table: a layer over channel counts that are multiples of much and of little."""
    same = ((1, 1), (1, 1))
    whole = Layer("conv", 16, 16, (32, 32), (32, 32), (3, 3), (1, 1), same, (1, 1))
    depthwise = Layer("depthwise", 16, 16, (16, 16), (16, 16), (3, 3), (1, 1), same, (1, 1))
    kinds = {
        "3 x 3, 32 x 32, 16 inputs, outputs:": [Configuration(whole, 16, n, 8, 8) for n in COUNTS],
        "3 x 3, 32 x 32, 16 outputs, inputs:": [Configuration(whole, n, 16, 8, 8) for n in COUNTS],
        "depthwise 3 x 3, 16 x 16, channels:": [Configuration(depthwise, n, n, 8, 8) for n in COUNTS],
    }
    values = measure_layers([c for cs in kinds.values() for c in cs], Settings(rounds, seed=SEED))
    lines = ["| us | " + " | ".join(map(str, COUNTS)) + " |", "|---|" + "---:|" * len(COUNTS)]
    for i, title in enumerate(kinds):
        part = values[i * len(COUNTS) : (i + 1) * len(COUNTS)]
        lines.append(f"| {title} | " + " | ".join(f"{value:.1f}" for value in part) + " |")
    return lines


_TEXT = """# Measured costs

`zerobit profile MODEL` measures the layers of a model in ONNX Runtime on the machine at hand, over channel counts and
widths, and fits a cost that a search can use (`--target profile.toml`). What such a fit is worth on one machine:

- *channels*: every channel count of every layer, predicted by a fit without a quarter of them.
- *layers*: every layer, predicted by a fit to the other layers of the same network. Where a network has few distinct
  layers this says little of the cost it is used with, and much of using it for another network.
- *whole networks*: {networks} networks cut at random, with a random width for each layer, exported and timed whole,
  against the sum over their layers. The error includes what the layers leave out: sums, means, the conversion of the
  input, the call of the runtime.

Command: `python benchmarks/measured_costs.py{arguments}`. Seed {seed}. {machine}; {date}.

{table}

*multiple* is what channel counts are multiples of, in what was measured and in the whole networks. It matters more than
all else. The runtime has fast kernels for some counts only, so that fewer channels can take longer, which no cost that
grows with channels can say: with the wrong multiple such a cost can
mislead, as the ranks of whole networks show, whatever its error on single layers.

{ladder}

Widths of weights make no difference on this runtime, which unpacks them when it loads a file: a term of theirs in a fit
(`macs_w>b`, `weight_bytes`) is noise.

## The fits

{fits}
"""


def render(rows: list[Row], steps: list[str], networks: int, arguments: str) -> str:
    """The whole file."""
    lines = [
        "| network | multiple | rows | channels: error | rank | layers: error | rank | whole: error | rank "
        "| uncut: predicted | timed |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    fits = []
    for row in rows:
        qualities = [row.cost.qualities["channels"], row.cost.qualities.get("layers"), row.whole]
        cells = [row.name, str(row.multiple), str(qualities[0].rows if qualities[0] else 0)]
        for q in qualities:
            cells += ["-", "-"] if q is None else [f"{100 * q.error:.1f} %", f"{q.rank_correlation:.3f}"]
        cells += [f"{value:.1f} us" for value in row.full]
        lines.append("| " + " | ".join(cells) + " |")
        fits.append(f"### {row.name}, multiples of {row.multiple}\n")
        for op, terms in row.cost.terms.items():
            fits.append(f"- {op}: " + " + ".join(f"{c:.3g} {t}" for t, c in terms.items()))
        fits.append("")
    return _TEXT.format(
        networks=networks, arguments=arguments, seed=SEED, machine=machine(), date=dt.datetime.now().date(),
        table="\n".join(lines), ladder="\n".join(steps), fits="\n".join(fits).rstrip(),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet8", "dscnn", "vgg7"])
    parser.add_argument("--multiples", nargs="+", type=int, default=[4, 16])
    parser.add_argument("--grid", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--networks", type=int, default=40)
    parser.add_argument("--print", action="store_true", help="write nothing")
    args = parser.parse_args()
    console = Console(file=sys.stderr if sys.stderr.isatty() else io.StringIO())
    rows = []
    for name in args.models:
        for multiple in args.multiples:
            rows.append(measure(name, multiple, args.grid, args.rounds, args.networks, console))
            sys.stderr.write(f"{name} {multiple}: {rows[-1].cost.describe()}; whole {rows[-1].whole}\n")
    text = render(rows, ladder(args.rounds), args.networks, " ".join(["", *sys.argv[1:]]))
    if args.print:
        sys.stdout.write(text)
    else:
        FILE.write_text(text)


if __name__ == "__main__":
    main()
