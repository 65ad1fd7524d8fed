"""All methods beside uniform networks and the sequential baseline, at equal epochs; a section of docs/results.md.

Every network starts from the float network of its seed and trains for as many epochs. A run has a folder, and its row a
file: stopped runs go on where they were, and several of these commands at once share the runs among them (one thread
each: OMP_NUM_THREADS=1). All rows are in docs/rows too, where they outlive RUNS: a run that RUNS does not have is made
anew, and takes the place of its row. Nothing is chosen on test data. Needs zerobit[bench].

    python benchmarks/methods_results.py --task digits --runs RUNS
    python benchmarks/methods_results.py --task cifar10 --data DIR --runs RUNS
    python benchmarks/methods_results.py --task cifar10 --data DIR --runs RUNS --seeds 0 1 2 --epochs 30 15

Float networks are trained where they are missing; that of seed 0 is in RUNS/float or in RUNS/digits/float.
"""

import argparse
import fcntl
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from methods_picture import draw
from methods_rows import Outcome, Trial, gains, read_rows, table, write_rows
from projections import counted
from results_common import Workplace, machine, write_section
from rich.console import Console

from zerobit.cost import Bops
from zerobit.cost.base import FLOAT_BITS
from zerobit.errors import ZerobitError
from zerobit.report import Stage, write_text
from zerobit.search.method import AbstractMethod
from zerobit.search.methods.bsq import Bsq
from zerobit.search.methods.djpq import Djpq
from zerobit.search.methods.fixed import Fixed
from zerobit.search.methods.fracbits import FracBits
from zerobit.search.methods.sequential import PruneThenQuantize
from zerobit.search.methods.softmax import ChannelSoftmax
from zerobit.train.phases import Recipe
from zerobit.workflows import compress_task, load_run, train_task

#: Name in files and options -> title and class of what is searched, as it is by default; then what it is made with.
_SEARCHED: dict[str, tuple[str, type[AbstractMethod], dict[str, Any]]] = {
    "softmax": ("channel softmax (default)", ChannelSoftmax, {}),
    "djpq": ("DJPQ", Djpq, {}),
    "djpq-pow2": ("DJPQ, powers of two", Djpq, {"restrict": "power_of_two"}),
    "fracbits": ("FracBits", FracBits, {}),
    "bsq": ("BSQ", Bsq, {}),
    "sequential": ("prune, then quantise", PruneThenQuantize, {}),
}
#: Name -> title and width.
_UNIFORM = {f"uniform-{bits}": (f"uniform {bits} bit", bits) for bits in (8, 4, 2)}
_TITLES = {name: entry[0] for name, entry in (*_UNIFORM.items(), *_SEARCHED.items())}


def make_method(name: str, budget: str) -> AbstractMethod:
    """A method at its defaults; where activations are paid for, they have the widths that it offers to weights.

    Args:
        name: key of `_TITLES`.
        budget: as for `zerobit search`.
    """
    if name in _UNIFORM:
        return Fixed(bits=_UNIFORM[name][1])
    _, kind, arguments = _SEARCHED[name]
    activations = kind(**arguments).widths if budget.startswith("bops") else (8,)
    return kind(**arguments, activation_bits=activations)


@dataclass(frozen=True)
class Suite:
    """One table.

    Attributes:
        title: of its section.
        task: of the zoo.
        model: of the zoo.
        batch: samples per step.
        float_epochs: of the float networks.
        epochs: of search and fine-tuning, unless others are asked for.
        seeds: of the table, unless others are asked for.
        budgets: as for `zerobit search`.
        about: the data, in sentences.
        device: as Fabric's accelerator.
    """

    title: str
    task: str
    model: str
    batch: int
    float_epochs: int
    epochs: tuple[int, int]
    seeds: tuple[int, ...]
    budgets: tuple[str, ...]
    about: str
    device: str = "auto"


_SUITES = {
    "digits": Suite(
        title="Methods: digits",
        task="digits",
        model="digits",
        batch=32,
        float_epochs=15,
        epochs=(20, 10),
        seeds=(0, 1, 2, 3, 4),
        budgets=("size=6%", "size=12%", "size=25%", "bops=6%", "bops=12%", "bops=25%"),
        about="Data: the 8x8 digits of scikit-learn. Every seed has a float network of its own.",
        device="cpu",
    ),
    "cifar10": Suite(
        title="Methods: ResNet-8 on CIFAR-10",
        task="cifar10",
        model="resnet8",
        batch=128,
        float_epochs=30,
        epochs=(8, 4),
        seeds=(0,),
        budgets=("size=25%", "size=50%"),
        about="Data: CIFAR-10 in a copy whose images were recompressed as JPEG, train and test alike; accuracies are\n"
        "some points below those on the lossless set. The float network is another one than that of the sections\n"
        "above, and uniform networks train in two phases here: compare rows within a section.",
    ),
}


# ------------------------------------------------------------------------------------------- runs


@contextmanager
def alone(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock, which ends with the process; gives False if another process has it and this one is not to wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def place_of(suite: Suite, seed: int, options: argparse.Namespace) -> Workplace:
    """The task with the float network of a seed; that of seed 0 is shared with the other scripts."""
    root = options.runs if suite.task == "cifar10" else options.runs / suite.task
    runs = root if seed == 0 else root / f"seed-{seed}"
    return Workplace(
        suite.task, suite.model, runs, options.data, tuple(options.epochs), seed, suite.batch, suite.device
    )  # fmt: skip


def folder_name(epochs: Sequence[int], trial: Trial) -> str:
    """Of a run, in the folder of its seed."""
    return f"methods/{epochs[0]}+{epochs[1]}/{trial.name}"


def row_path(place: Workplace, trial: Trial) -> Path:
    """File of a row."""
    return place.settings(folder_name(place.epochs, trial)).out / "row.json"


def run(place: Workplace, suite: Suite, trial: Trial) -> Outcome:
    """Compress, or go on with it; then read what it came to off the files."""
    settings = place.settings(folder_name(place.epochs, trial))
    with alone(place.runs / "float.lock", wait=True):
        if not place.float_path.exists():
            train_task(place.settings("float"), epochs=suite.float_epochs, console=place.console)
    if not (settings.out / "run.json").exists():
        compress_task(
            settings, budget=[trial.budget] if trial.budget else None, float_path=place.float_path,
            method=make_method(trial.method, trial.budget), epochs=place.epochs, console=place.console,
        )  # fmt: skip
    return outcome(settings.out, trial)


def accuracies(stage: Stage) -> tuple[float, float]:
    """On validation and on test images; only networks without a task have none."""
    assert stage.val is not None
    assert stage.test is not None
    return stage.val, stage.test


def outcome(folder: Path, trial: Trial) -> Outcome:
    """Of a finished run; costs are counted on the cut network."""
    record, small = load_run(folder)
    stages: dict[str, Stage] = {stage.name: stage for stage in record.stages}
    start, searched, tuned = stages["float"], stages["searched"], stages["fine-tuned"]
    return Outcome(
        trial, *accuracies(tuned), *accuracies(start), start.size,
        counted(small, Bops()) / (start.macs * FLOAT_BITS**2), tuned.size, searched.seconds, tuned.seconds, machine(),
        f"{datetime.now(UTC):%Y-%m-%d}",
    )  # fmt: skip


def run_all(suite: Suite, trials: Sequence[Trial], options: argparse.Namespace, console: Console) -> list[str]:
    """Run what is missing and what no other process is at; write the section after each. Gives what went wrong."""
    failed = []
    for trial in trials:
        place = place_of(suite, trial.seed, options)
        path = row_path(place, trial)
        with alone(path.with_name("run.lock"), wait=False) as ours:
            if not ours or path.exists():
                continue
            console.rule(f"{suite.task}, {trial.method} {trial.budget}, seed {trial.seed}")
            try:
                found = run(place, suite, trial)
            except ZerobitError as error:
                failed.append(f"{trial}: {error}")
                console.print(failed[-1], style="red", highlight=False, markup=False)
                continue
            write_text(path, json.dumps(found.cells(), indent=2))
        write(suite, options)
    return failed


# ------------------------------------------------------------------------------------------- the page


def trials_of(seeds: Sequence[int], budgets: Sequence[str]) -> list[Trial]:
    """All of a table, seed by seed."""
    uniform = [("", name) for name in _UNIFORM]
    return [Trial(m, b, s) for s in seeds for b, m in (*uniform, *itertools.product(budgets, _SEARCHED))]


def outcomes(suite: Suite, options: argparse.Namespace, kept: Sequence[Outcome]) -> list[Outcome]:
    """All that are there, those of RUNS before those that were kept."""
    rows = {one.trial: one for one in kept}
    seeds = sorted({*suite.seeds, *options.seeds, *(trial.seed for trial in rows)})
    trials = trials_of(
        seeds, list(dict.fromkeys((*suite.budgets, *options.budgets, *(t.budget for t in rows if t.budget))))
    )
    for trial in trials:
        path = row_path(place_of(suite, trial.seed, options), trial)
        if path.exists():
            rows[trial] = Outcome.of(json.loads(path.read_text(encoding="utf-8")))
    return [rows[trial] for trial in trials if trial in rows]


def origin(found: Sequence[Outcome]) -> str:
    """When and where it was measured; whether rows can be compared."""
    machines = sorted({one.machine for one in found})
    dates = sorted({one.date for one in found})
    text = f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}. {'; '.join(machines)}."
    if len({one.start for one in found}) > len({one.trial.seed for one in found}):
        text += " Rows start from float networks that several machines trained."
    return text


def joint_over_sequential(found: Sequence[Outcome]) -> list[str]:
    """What both families of publications claim: one search for both is better than one after the other."""
    gained = gains(found, "softmax", "sequential")
    lead = "Test accuracy of the joint search (channel softmax) less that of prune-then-quantise, in points"
    return [f"{lead}: {gained}."] if gained else []


def section(suite: Suite, found: Sequence[Outcome], epochs: tuple[int, int], link: str) -> str:
    """The table, with what is needed to read and to repeat it."""
    recipe = Recipe(search_epochs=epochs[0], finetune_epochs=epochs[1])
    default = epochs == suite.epochs
    seeds = sorted({one.trial.seed for one in found})
    asked = "" if tuple(seeds) == suite.seeds else f" --seeds {' '.join(map(str, seeds))}"
    asked += "" if default else f" --epochs {epochs[0]} {epochs[1]}"
    data = " --data DIR" if suite.task == "cifar10" else ""
    has_bops = any(one.trial.budget.startswith("bops") for one in found)
    charged = "; under a budget of BOPs, a method chooses among the widths that it offers to weights" * has_bops
    means = " Means over seeds; the standard deviation is that of a sample, in points." * (len(seeds) > 1)
    bars = "; bars are standard deviations" * (len(seeds) > 1)
    return "\n".join(
        [
            suite.about,
            f"Every network trains for {sum(epochs)} epochs from the float one ({suite.float_epochs} epochs):"
            f" {epochs[0]} of search and {epochs[1]} of fine-tuning,",
            f"which is {recipe.choosing_epochs} with choices and {recipe.tuning_epochs} of the cut network; uniform"
            " ones have nothing to choose in the former. Methods run at their",
            "defaults but for the widths of activations (below). Reported is the network after its"
            " last epoch; nothing was chosen on test images.",
            "",
            *table(found, suite.budgets, _TITLES),
            "",
            f"![Test accuracy over what budgets limit{bars}]({link.removesuffix('.csv')}.svg)",
            "",
            "Budgets are shares of the network with all weights at 8 bit, and hold for the cut network, on which costs"
            " are counted.",
            f"Activations have 8 bit{charged}.",
            "BOPs: multiplications times weight width times activation width, of those of the float network at 32 x 32"
            f" bit.{means}",
            *joint_over_sequential(found),
            "Wall times are of training and validation, with other runs on the machine's other cores; the machine was"
            " shared and not equally fast for all rows, so they don't rank the methods.",
            "",
            f"Command: `python benchmarks/methods_results.py --task {suite.task}{data} --runs RUNS{asked}`.",
            f"Seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}. {origin(found)} [All rows]({link}).",
        ]
    )


def write(suite: Suite, options: argparse.Namespace) -> None:
    """Write the rows that are there, their picture and their section."""
    epochs = (options.epochs[0], options.epochs[1])
    default = epochs == suite.epochs
    title = suite.title if default else f"{suite.title}, {epochs[0]} + {epochs[1]} epochs"
    link = f"rows/methods-{suite.task}{'' if default else f'-{epochs[0]}+{epochs[1]}'}.csv"
    rows = options.out.parent / link
    with alone(options.runs / "page.lock", wait=True):
        found = outcomes(suite, options, read_rows(rows))
        if found:
            write_rows(rows, found)
            draw(rows.with_suffix(".svg"), found, _TITLES)
            write_section(options.out, title, section(suite, found, epochs, link))


def main() -> int:
    """Run what is missing, then write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=tuple(_SUITES), required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="of cifar10")
    parser.add_argument("--epochs", type=int, nargs=2, help="of search and of fine-tuning")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="run only these")
    parser.add_argument("--budgets", nargs="+", metavar="COST=SHARE", help="run only these")
    parser.add_argument(
        "--rows", nargs="*", metavar="ROW",
        help=f"run only these, METHOD or METHOD/BUDGET; METHOD is one of {', '.join(_TITLES)}; none: write the page",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    options = parser.parse_args()
    suite = _SUITES[options.task]
    options.epochs, options.seeds = options.epochs or suite.epochs, options.seeds or suite.seeds
    options.budgets = options.budgets or suite.budgets
    trials = trials_of(options.seeds, options.budgets)
    for name in options.rows or ():
        if not any(trial.is_one_of([name]) for trial in trials):
            parser.error(f"`--rows` has {name!r}, which is no METHOD or METHOD/BUDGET; methods: {', '.join(_TITLES)}")
    console = Console()
    failed = run_all(suite, [t for t in trials if t.is_one_of(options.rows)], options, console)
    write(suite, options)
    for text in failed:
        console.print(text, style="red", highlight=False, markup=False)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
