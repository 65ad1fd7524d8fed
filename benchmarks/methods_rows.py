"""Rows of the tables of methods. All runs are in a CSV file beside the page, which outlives folders of runs."""

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from results_common import percent

from zerobit.report import write_text


@dataclass(frozen=True)
class Trial:
    """One run.

    Attributes:
        method: name of `methods_results.py`.
        budget: as for `zerobit search`; none for uniform networks.
        seed: of every random draw, and of the float network.
    """

    method: str
    budget: str
    seed: int

    @property
    def name(self) -> str:
        """Of its folder; seeds have folders of their own."""
        return "-".join(filter(None, (self.method, self.budget.replace("=", "-").replace("%", ""))))

    def is_one_of(self, rows: Sequence[str] | None) -> bool:
        """Whether one of METHOD and METHOD/BUDGET names it."""
        return rows is None or not {self.method, f"{self.method}/{self.budget}"}.isdisjoint(rows)


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        trial: of what.
        val: accuracy on validation images.
        test: accuracy on test images.
        float_val: of the float network.
        float_test: of the float network.
        float_size: bytes of the float network's weights.
        bops: of the cut network, share of the bit operations of the float network at 32 x 32 bit.
        size: bytes of weights.
        search_seconds: wall time of the part with choices.
        tuning_seconds: wall time of the training of the cut network.
        machine: where it ran.
        date: when it was done, UTC.
    """

    trial: Trial
    val: float
    test: float
    float_val: float
    float_test: float
    float_size: float
    bops: float
    size: float
    search_seconds: float
    tuning_seconds: float
    machine: str
    date: str

    @property
    def start(self) -> tuple[int, float, float, float]:
        """Seed and figures of the float network, which another machine trains to other ones."""
        return self.trial.seed, self.float_val, self.float_test, self.float_size

    def cells(self) -> dict[str, Any]:
        """By column of the file."""
        cells = asdict(self)
        return {**cells.pop("trial"), **cells}

    @staticmethod
    def of(cells: Mapping[str, str]) -> "Outcome":
        """The reverse."""
        texts = {"machine": cells["machine"], "date": cells["date"]}
        trial = Trial(cells["method"], cells["budget"], int(cells["seed"]))
        numbers = {name: float(cell) for name, cell in cells.items() if name not in {*texts, *asdict(trial)}}
        return Outcome(trial, **numbers, **texts)


def read_rows(path: Path) -> list[Outcome]:
    """All of a file; none if there is no file."""
    if not path.exists():
        return []
    return [Outcome.of(cells) for cells in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))]


def write_rows(path: Path, rows: Iterable[Outcome]) -> None:
    """Write a file with a line for each."""
    lines = [row.cells() for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(path, text.getvalue())


def spread(values: Sequence[float]) -> str:
    """Standard deviation of a sample; nothing for a single value."""
    return percent(statistics.stdev(values)) if len(values) > 1 else ""


def row(title: str, budget: str, found: Sequence[Outcome]) -> str:
    """Means over seeds."""

    def mean(name: str) -> float:
        return statistics.fmean(getattr(one, name) for one in found)

    cells = [
        title, budget, str(len(found)), percent(mean("val")), percent(mean("test")),
        spread([one.test for one in found]), f"{100 * mean('bops'):.3f}", f"{mean('size'):,.0f}",
        f"{mean('search_seconds'):,.1f}", f"{mean('tuning_seconds'):,.1f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def float_row(found: Sequence[Outcome]) -> str:
    """Of the float networks that the others start from."""
    starts = sorted({one.start for one in found})
    _, val, test, size = zip(*starts, strict=True)
    cells = ["float", "", str(len(starts)), *map(percent, (statistics.fmean(val), statistics.fmean(test)))]
    return f"| {' | '.join([*cells, spread(test), '100', f'{statistics.fmean(size):,.0f}', '', ''])} |"


def table(found: Sequence[Outcome], budgets: Sequence[str], titles: Mapping[str, str]) -> list[str]:
    """Budget by budget, in each the methods in the order of their titles."""
    lines = [
        "| network | budget | seeds | val [%] | test [%] | std. dev. of test | BOPs [% of 32 bit] | weights [B] "
        "| search [s] | fine-tuning [s] |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        float_row(found),
    ]
    for budget in dict.fromkeys(("", *budgets, *(one.trial.budget for one in found))):
        for name, title in titles.items():
            ours = [one for one in found if (one.trial.method, one.trial.budget) == (name, budget)]
            if ours:
                lines.append(row(title, budget, ours))
    return lines


def gains(found: Sequence[Outcome], method: str, baseline: str) -> str:
    """Test accuracy of a method less that of another, in points, budget by budget; nothing where one is missing."""
    tests = {one.trial: one.test for one in found}
    seeds = sorted({trial.seed for trial in tests})
    texts = []
    for budget in dict.fromkeys(trial.budget for trial in tests if trial.budget):
        pairs = [(Trial(method, budget, seed), Trial(baseline, budget, seed)) for seed in seeds]
        points = [tests[ours] - tests[theirs] for ours, theirs in pairs if {ours, theirs} <= tests.keys()]
        if points:
            deviation = f" (std. dev. {text})" if (text := spread(points)) else ""
            texts.append(f"{budget} {100 * statistics.fmean(points):+.2f}{deviation}")
    return ", ".join(texts)
