"""The searched ResNet-8 on CIFAR-10 beside uniform ones, at equal epochs; writes a section of docs/results.md.

Every network starts from the same float one, trains for the same epochs with the same optimizer, schedule, distillation
and augmentation, and is reported on the test images after its last epoch. Nothing is chosen on test data. Stopped runs
go on where they were.

    zerobit train --task cifar10 --data DIR --model resnet8 --epochs 30 --out RUNS/float
    python benchmarks/cifar10_results.py --data DIR --runs RUNS
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from results_common import Workplace, made, percent, write_section

from zerobit.cost import Macs, Size
from zerobit.cost.price import reference_cost
from zerobit.cost.usage import usage
from zerobit.cut.decide import decide
from zerobit.report import Stage
from zerobit.runs import Run
from zerobit.search.attach import SearchNet
from zerobit.search.norms import unit_norms
from zerobit.train.objective import Objective, evaluate
from zerobit.workflows import compress_task

_SHARE = 0.25
_TITLE = "ResNet-8 on CIFAR-10, a quarter of the 8-bit size"


def searched(place: Workplace) -> Stage:
    """The run of `zerobit search --budget size=25%`."""
    settings = place.settings("searched")
    compress_task(
        settings, budget=[f"size={_SHARE:.0%}"], float_path=place.float_path, epochs=place.epochs, console=place.console
    )
    return replace(next(s for s in Run.read(settings.out).stages if s.name == "exported"), name="searched, size=25%")


def narrower(bits: int, place: Workplace) -> SearchNet:
    """The same share of every group removed, its smallest units by norm, the rest at one width; the budget's bytes."""
    net = place.attached((0, bits))
    limit = _SHARE * reference_cost(net.graph, Size())
    low, high = 0.0, 1.0
    for _ in range(30):
        share = (low + high) / 2
        _keep_share(net, share)
        too_large = float(Size()(usage(net.graph, decide(net).net_bits()))) > limit
        low, high = (low, share) if too_large else (share, high)
    _keep_share(net, low)
    return net


@torch.no_grad()
def _keep_share(net: SearchNet, share: float) -> None:
    for group in net.graph.groups:
        choice = net.group_choice(group)
        if choice is not None:
            norms = unit_norms(net, group)
            kept = norms.topk(max(1, int(share * group.units))).indices
            choice.gate.fill_(-1.0)
            choice.gate[kept] = 1.0


def section(rows: list[Stage], epochs: tuple[int, int], seed: int) -> str:
    """The table, with what is needed to read and to repeat it."""
    lines = [
        "Data: CIFAR-10 in a copy whose images were recompressed as JPEG, train and test alike; accuracies are some",
        "points below those on the lossless set. Validation: 5,000 of the training images. One seed. All networks but",
        f"the float one have 8-bit activations and trained for the same {sum(epochs)} epochs, from the float one"
        f" ({epochs[0]} of search and {epochs[1]} of fine-tuning for the searched one).",
        "",
        "| network | weights [B] | MACs | val [%] | test [%] |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [f"| {s.name} | {s.size:,.0f} | {s.macs:,.0f} | {percent(s.val)} | {percent(s.test)} |" for s in rows]
    lines += [
        "",
        "The searched row is of the exported ONNX file, run by ONNX Runtime.",
        "",
        "Command: `zerobit train --task cifar10 --data DIR --model resnet8 --epochs 30 --out RUNS/float`, then",
        "`python benchmarks/cifar10_results.py --data DIR --runs RUNS`.",
        made(seed),
    ]
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--epochs", type=int, nargs=2, default=(8, 4))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="make only these; the page shows all that are there")
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    args = parser.parse_args()
    place = Workplace("cifar10", "resnet8", args.runs, args.data, tuple(args.epochs), args.seed)
    makers = {
        "searched": lambda: place.once("searched", lambda: searched(place)),
        "uniform 2 bit": lambda: place.uniform(2),
        "narrower + 4 bit": lambda: place.once(
            "narrower + 4 bit", lambda: place.fixed("narrower + 4 bit", "narrower-4", narrower(4, place))
        ),
        "uniform 4 bit": lambda: place.uniform(4),
        "uniform 8 bit": lambda: place.uniform(8),
    }
    rows = [_float_row(place)]
    for title, make in makers.items():
        if place.row_path(title).exists() or args.rows is None or title in args.rows:
            rows.append(make())
            write_section(args.out, _TITLE, section(rows, place.epochs, args.seed))
    place.console.print(args.out.read_text(encoding="utf-8"), markup=False)


def _float_row(place: Workplace) -> Stage:
    val, test = (evaluate(place.teacher, split, Objective()) for split in (place.val, place.test))
    weights = sum(p.numel() for p in place.teacher.parameters() if p.dim() > 1)
    net = place.attached((8,))
    return Stage("float", val, test, 4 * weights, float(Macs()(usage(net.graph, decide(net).net_bits()))))


if __name__ == "__main__":
    main()
