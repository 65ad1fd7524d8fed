"""Budgets of devices: kept, cross-checked, and compared at equal epochs; writes sections of docs/results.md.

Every search is a run of `zerobit search`. From each, plans for other budgets are projected without any training, and
what they cost is counted on the network that is cut by them. Nothing is chosen on test data; all figures are of the
last epoch. Every row has a file, and stopped runs go on where they were. CIFAR-10 shares its runs with
cifar10_results.py: the float network, the uniform rows and the search for size.

    zerobit train --task cifar10 --data DIR --model resnet8 --epochs 30 --out RUNS/float
    python benchmarks/hardware_results.py --data DIR --runs RUNS
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from projections import Projected, Search, compressed, counted, projections
from results_common import Workplace, made, percent, write_section

from zerobit.cost.amounts import written
from zerobit.cost.price import reference_cost
from zerobit.cost.registry import named_cost
from zerobit.report import Stage
from zerobit.train.phases import Recipe
from zerobit.workflows import load_run, train_task

#: Uniform networks of ResNet-8 at 4 and 2 bit take as many cycles on NE16.
_NE16 = ("ne16=104361", "ne16=78921")
_DIGITS_FLOAT_EPOCHS = 15


_NE16_A, _NE16_B = Search("ne16-a", _NE16[:1]), Search("ne16-b", _NE16[1:])
_MPIC_A, _MPIC_B = Search("mpic-60", ("mpic=60%",)), Search("mpic-30", ("mpic=30%",))
_PRUNED = Search("w4-ne16-b", _NE16[1:], (0, 4))
_BOPS, _RAM = Search("bops-25", ("bops=25%",)), Search("ram-50", ("ram=50%",))
_PAIR = Search("size-ne16", ("size=30%", "ne16=60%"))
#: One search for each cost; its folder is that of cifar10_results.py.
_CIFAR10 = (Search("searched", ("size=25%",)), _BOPS, _MPIC_B, _NE16_B, _RAM, _PAIR)
_DIGITS = (Search("size-25", ("size=25%",)), _BOPS, _MPIC_B, Search("ne16-50", ("ne16=50%",)), _RAM, _PAIR)
_UNIFORM = (8, 4, 2)


# ------------------------------------------------------------------------------------------- tables


def budget_table(found: Sequence[tuple[Search, Sequence[Projected]]]) -> list[str]:
    """One row for each budget, then what they come to."""
    lines = [
        "| searched at | budget [% of 8 bit] | limit | cost | kept | spent [%] | val [%] | |",
        "|---|---:|---:|---:|---|---:|---:|---|",
    ]
    for search, rows in found:
        for row in rows:
            limit = "; ".join(written(x, c.unit) for x, c in zip(row.limits, search.costs, strict=True))
            start = f"| {search.title} | {row.share} | {limit} |"
            if not row.costs:
                lines.append(f"{start} {row.remark} | | | | |")
                continue
            cost = "; ".join(written(x, c.unit) for x, c in zip(row.costs, search.costs, strict=True))
            spent = "; ".join(f"{100 * x:.2f}" for x in row.spent)
            lines.append(
                f"{start} {cost} | {'yes' if row.kept else 'NO'} | {spent} | {percent(row.val)} | {row.remark} |"
            )
    reachable = [row for _, rows in found for row in rows if row.costs]
    out_of_reach = sum(len(rows) for _, rows in found) - len(reachable)
    if reachable:
        kept = sum(row.kept for row in reachable)
        least = min(max(row.spent) for row in reachable)
        lines += [
            "",
            f"Kept: {kept} of {len(reachable)} budgets that can be reached; {out_of_reach} can't. Least spent of the"
            f" budget that binds: {100 * least:.2f} %.",
        ]
    return lines


def _row(title: str, cycles: Sequence[float], stage: Stage) -> str:
    """Cycles, bytes, MACs and accuracy."""
    cells = (*cycles, stage.size, stage.macs)
    text = " | ".join(f"{cell:,.0f}" for cell in cells)
    return f"| {title} | {text} | {percent(stage.val)} | {percent(stage.test)} |"


#: Counted for every network of a comparison.
_DEVICES = tuple(named_cost(name) for name in ("ne16", "mpic"))
_HEAD = [
    "| network | NE16 [cycle] | MPIC [cycle] | weights [B] | MACs | val [%] | test [%] |",
    "|---|---:|---:|---:|---:|---:|---:|",
]


def run_rows(place: Workplace, titles: Sequence[tuple[str, Search]]) -> list[str]:
    """Of the runs that are finished."""
    lines = []
    for title, search in titles:
        folder = place.settings(search.name).out
        if (folder / "run.json").exists():
            run, small = load_run(folder)
            stage = next(s for s in run.stages if s.name == "fine-tuned")
            lines.append(_row(title, [counted(small, cost) for cost in _DEVICES], stage))
    return lines


def uniform_rows(place: Workplace) -> list[str]:
    """Of the uniform networks that are trained."""
    graph = place.attached((8,)).graph
    names = {bits: f"uniform {bits} bit" for bits in _UNIFORM}
    return [
        _row(name, [reference_cost(graph, cost, bits) for cost in _DEVICES], place.uniform(bits))
        for bits, name in names.items()
        if place.row_path(name).exists()
    ]


# ------------------------------------------------------------------------------------------- sections


def write_budgets(place: Workplace, searches: Sequence[Search], title: str, options: argparse.Namespace) -> None:
    """The section of one task on projected budgets."""
    found = [(search, projections(place, search, anew=options.project)) for search in searches]
    if not any(rows for _, rows in found):
        return
    search, tuning = place.epochs
    text = [
        f"One search for each cost ({search} epochs), and plans for five budgets projected from each without training;",
        "a pair of costs has the same share for both. Costs are counted on the cut network. Validation accuracy is of",
        "that network before any fine-tuning, so that it says how far a search is from a budget rather than what the",
        f"budget costs in accuracy. (`zerobit search` fine-tunes; here {tuning} epochs, for the budget of the search.)",
        "",
        *budget_table(found),
        "",
        _command(options),
    ]
    write_section(options.out, title, "\n".join(text))


def write_comparisons(place: Workplace, options: argparse.Namespace) -> None:
    """The sections on networks trained for one device."""
    recipe = Recipe(search_epochs=place.epochs[0], finetune_epochs=place.epochs[1])
    epochs = (
        f"{place.epochs[0]} epochs of search and {place.epochs[1]} of fine-tuning, which is"
        f" {recipe.choosing_epochs} with choices and {recipe.tuning_epochs} of the cut network"
    )
    cross = [(f"for {s.title}", s) for s in (_NE16_A, _MPIC_A, _NE16_B, _MPIC_B)]
    if rows := run_rows(place, cross):
        text = [
            f"ResNet-8 on CIFAR-10, data as above; every network is searched for one device ({epochs}) and counted on",
            "both. One seed.", "", *_HEAD, *rows, "", _command(options),
        ]  # fmt: skip
        write_section(options.out, "Trained for one device, counted on two", "\n".join(text))
    ours = [("pruned + uniform 4 bit, " + _PRUNED.title, _PRUNED)]
    ours += [(f"searched, {s.title}", s) for s in (_NE16_A, _NE16_B)]
    rows = run_rows(place, ours)
    if rows:
        text = [
            f"ResNet-8 on CIFAR-10, data as above; {sum(place.epochs)} epochs for every network, {epochs} where",
            "there is a search. The limits are the cycles of the uniform networks at 4 and 2 bit. One seed.", "",
            *_HEAD, *uniform_rows(place), *rows, "", _command(options),
        ]  # fmt: skip
        write_section(options.out, "NE16 at equal epochs", "\n".join(text))


def _command(options: argparse.Namespace) -> str:
    return f"Command: `python benchmarks/hardware_results.py --data DIR --runs RUNS`. {made(options.seed)}"


def main() -> None:
    """Run what is missing, then write the sections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", nargs="*", metavar="ROW", help="train only these; the page shows all that are there")
    parser.add_argument("--project", action="store_true", help="project finished searches to all budgets anew")
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    args = parser.parse_args()
    digits = Workplace("digits", "digits", args.runs / "digits", None, (20, 10), args.seed, batch=32, device="cpu")
    cifar10 = Workplace("cifar10", "resnet8", args.runs, args.data, (8, 4), args.seed)

    def wanted(name: str) -> bool:
        return args.rows is None or name in args.rows

    if not digits.float_path.exists() and any(wanted(f"digits/{search.name}") for search in _DIGITS):
        train_task(digits.settings("float"), epochs=_DIGITS_FLOAT_EPOCHS, console=digits.console)
    for search in _DIGITS:
        if wanted(f"digits/{search.name}"):
            compressed(digits, search)
    write_budgets(digits, _DIGITS, "Budgets kept: digits", args)
    for bits in _UNIFORM:
        if wanted(f"uniform-{bits}"):
            cifar10.uniform(bits)
    for search in (*_CIFAR10, _NE16_A, _MPIC_A, _PRUNED):
        if wanted(search.name):
            compressed(cifar10, search)
    write_budgets(cifar10, _CIFAR10, "Budgets kept: ResNet-8 on CIFAR-10", args)
    write_comparisons(cifar10, args)
    cifar10.console.print(args.out.read_text(encoding="utf-8"), markup=False)


if __name__ == "__main__":
    main()
