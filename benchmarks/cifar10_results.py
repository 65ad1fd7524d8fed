"""The searched ResNet-8 on CIFAR-10 beside uniform ones, at equal epochs; writes a table to docs/results.md.

Every network starts from the same float one, trains for the same epochs with the same optimizer, schedule, distillation
and augmentation, and is reported on the test images after its last epoch. Nothing is chosen on test data. Stopped runs
go on where they were.

    zerobit train --task cifar10 --data DIR --model resnet8 --epochs 30 --out RUNS/float
    python benchmarks/cifar10_results.py --data DIR --runs RUNS
"""

import argparse
import itertools
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from zerobit.cost import Macs, Size
from zerobit.cost.price import reference_cost
from zerobit.cost.usage import usage
from zerobit.cut.apply import apply
from zerobit.cut.decide import decide, unit_norms
from zerobit.report import Stage, write_text
from zerobit.runs import Run, load_float
from zerobit.search.attach import SearchNet, attach, calibrate
from zerobit.search.method import ChannelSoftmax
from zerobit.train.objective import Objective, evaluate
from zerobit.train.phases import Data, Recipe, finetune
from zerobit.workflows import Settings, compress_task
from zerobit.zoo.data import Batches, Task

_SHARE = 0.25
_CALIBRATION_BATCHES = 4


def searched(settings: Settings, float_path: Path, epochs: tuple[int, int], console: Console) -> Stage:
    """The run of `zerobit search --budget size=25%`."""
    compress_task(settings, budget=[f"size={_SHARE:.0%}"], float_path=float_path, epochs=epochs, console=console)
    return replace(next(s for s in Run.read(settings.out).stages if s.name == "exported"), name="searched, size=25%")


def fixed(
    name: str, net: SearchNet, teacher: nn.Module, task: Task, settings: Settings, epochs: int, console: Console
) -> Stage:
    """A network whose plan is made before training, trained for as many epochs as a search and its fine-tuning."""
    plan = decide(net)
    small = apply(net, plan)
    val = Batches(task.val, task, 500)
    train = Batches(task.train, task, settings.batch, shuffle=True, augment=True, seed=settings.seed)
    recipe = Recipe(search_epochs=0, finetune_epochs=epochs)
    finetune(
        small, teacher, Data(train, val), Objective(), recipe, settings.hardware(),
        checkpoint=settings.out / "finetune.ckpt", console=console,
    )  # fmt: skip
    test = evaluate(small, Batches(task.test, task, 500), Objective())
    use = usage(net.graph, plan.net_bits())
    return Stage(name, evaluate(small, val, Objective()), test, float(Size()(use)), float(Macs()(use)))


def uniform(bits: int, model: nn.Module, batches: list[torch.Tensor]) -> SearchNet:
    """All weights at one width."""
    net = attach(model, batches[0], ChannelSoftmax(weight_bits=(bits,)))
    return calibrate(net, [((x,), {}) for x in batches])


def narrower(bits: int, model: nn.Module, batches: list[torch.Tensor]) -> SearchNet:
    """The same share of every group removed, its smallest units by norm, the rest at one width; the budget's bytes."""
    net = attach(model, batches[0], ChannelSoftmax(weight_bits=(0, bits)))
    calibrate(net, [((x,), {}) for x in batches])
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


def once(path: Path, make: Callable[[], Stage]) -> Stage:
    """A row from its file, or made now."""
    if path.exists():
        return Stage(**json.loads(path.read_text(encoding="utf-8"))["stage"])
    stage = make()
    write_text(path, json.dumps({"stage": asdict(stage)}, indent=2))
    return stage


def machine() -> str:
    """Processor, cores and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{platform.machine()} {cpu}, {os.cpu_count()} cores, {versions}"


def page(rows: list[Stage], epochs: tuple[int, int], seed: int) -> str:
    """The markdown page."""
    lines = [
        "# Results",
        "",
        "## ResNet-8 on CIFAR-10, a quarter of the 8-bit size",
        "",
        "Data: CIFAR-10 in a copy whose images were recompressed as JPEG, train and test alike; accuracies are some",
        "points below those on the lossless set. Validation: 5,000 of the training images. One seed. All networks but",
        f"the float one have 8-bit activations and trained for the same {sum(epochs)} epochs, from the float one"
        f" ({epochs[0]} of search and {epochs[1]} of fine-tuning for the searched one).",
        "",
        "| network | weights [B] | MACs | val [%] | test [%] |",
        "|---|---:|---:|---:|---:|",
    ]
    for stage in rows:
        val, test = 100 * (stage.val or 0), 100 * (stage.test or 0)
        lines.append(f"| {stage.name} | {stage.size:,.0f} | {stage.macs:,.0f} | {val:.2f} | {test:.2f} |")
    lines += [
        "",
        "The searched row is of the exported ONNX file, run by ONNX Runtime.",
        "",
        "Command: `zerobit train --task cifar10 --data DIR --model resnet8 --epochs 30 --out RUNS/float`, then",
        "`python benchmarks/cifar10_results.py --data DIR --runs RUNS`.",
        f"Seed {seed}. {datetime.now(timezone.utc):%Y-%m-%d}. {machine()}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--epochs", type=int, nargs=2, default=(8, 4))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="make only these; the page shows all that are there")
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    args = parser.parse_args()
    console, epochs = Console(), (args.epochs[0], args.epochs[1])
    float_path = args.runs / "float" / "float.safetensors"
    base = Settings("cifar10", args.runs, args.data, "resnet8", args.seed)
    task, definition = base.load()
    teacher = load_float(definition.build(task.num_classes), float_path)
    train = Batches(task.train, task, base.batch, shuffle=True, augment=True, seed=args.seed)
    batches = [x for x, _ in itertools.islice(train, _CALIBRATION_BATCHES)]

    def settings(name: str) -> Settings:
        return Settings("cifar10", args.runs / name, args.data, "resnet8", args.seed)

    makers = {
        "searched": lambda: searched(settings("searched"), float_path, epochs, console),
        "uniform 2 bit": lambda: row("uniform 2 bit", "uniform-2", uniform(2, teacher, batches)),
        "narrower + 4 bit": lambda: row("narrower + 4 bit", "narrower-4", narrower(4, teacher, batches)),
        "uniform 4 bit": lambda: row("uniform 4 bit", "uniform-4", uniform(4, teacher, batches)),
        "uniform 8 bit": lambda: row("uniform 8 bit", "uniform-8", uniform(8, teacher, batches)),
    }

    def row(title: str, folder: str, net: SearchNet) -> Stage:
        console.print(title)
        return fixed(title, net, teacher, task, settings(folder), sum(epochs), console)

    rows = [_float_row(teacher, task, batches)]
    for title, make in makers.items():
        path = args.runs / f"{title.replace(' ', '-')}.json"
        if path.exists() or args.rows is None or title in args.rows:
            rows.append(once(path, make))
            args.out.write_text(page(rows, epochs, args.seed), encoding="utf-8")
    console.print(args.out.read_text(encoding="utf-8"), markup=False)


def _float_row(teacher: nn.Module, task: Task, batches: list[torch.Tensor]) -> Stage:
    val, test = (evaluate(teacher, Batches(s, task, 500), Objective()) for s in (task.val, task.test))
    weights = sum(p.numel() for p in teacher.parameters() if p.dim() > 1)
    net = uniform(8, teacher, batches)
    return Stage("float", val, test, 4 * weights, float(Macs()(usage(net.graph, decide(net).net_bits()))))


if __name__ == "__main__":
    main()
