"""Short searches of every method at extreme settings: is any number not finite? A section of docs/benchmarks.md.

Each seed draws learning rates, price, the method's own strength, and what is done to the trained weights (a dead layer,
scales of 1e-4 and 1e4, a layer that puts out zeros); see tests/extremes.py. After every step losses, parameters,
gradients, choices and cost are looked at, and so are the cut network, before and after some steps of fine-tuning.

    PYTHONPATH=tests python benchmarks/numerical_safety.py [--seeds N] [--methods NAME ...] [--jobs N]
"""

import argparse
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import torch
from results_common import machine, write_section
from rich.progress import track

from extremes import STEPS, Outcome, draw, run
from searches import METHODS

_TITLE = "Numerical safety"


@dataclass(frozen=True)
class Row:
    """One search.

    Attributes:
        method: row of `METHODS`.
        seed: of its settings.
        outcome: what was found.
    """

    method: str
    seed: int
    outcome: Outcome


def one(task: tuple[str, int]) -> Row:
    """Run a search, on one thread."""
    torch.set_num_threads(1)
    method, seed = task
    return Row(method, seed, run(draw(METHODS[method], seed)))


def table(rows: Sequence[Row]) -> list[str]:
    """A row for each method."""
    lines = ["| method | searches | with numbers that are not finite | largest loss |", "|---|---:|---:|---:|"]
    for method in dict.fromkeys(row.method for row in rows):
        ours = [row.outcome for row in rows if row.method == method]
        bad = sum(bool(o.findings) for o in ours)
        largest = max((o.largest_loss for o in ours if math.isfinite(o.largest_loss)), default=math.nan)
        lines.append(f"| {method} | {len(ours)} | {bad} | {largest:.3g} |")
    return lines


def section(rows: Sequence[Row], command: str) -> str:
    """The table, with what is needed to read and to repeat it."""
    bad = [f"- {row.method}, seed {row.seed}: {text}" for row in rows for text in row.outcome.findings]
    return "\n".join(
        [
            f"`{command}`; {datetime.now(UTC):%Y-%m-%d}, {machine()}. Searches of {STEPS} steps on the digits"
            " network, each with settings drawn from its seed: learning rates of 1e-4 to 1, of choices of 1e-3 to 10,"
            " strengths of prices and of the methods' own loss terms up to 1e4, or budgets of 10 to 60 %; layers that"
            " are zero, put out zeros, or were scaled by 1e-4 or 1e4. Losses, parameters, gradients, choices and cost"
            " are looked at after every step, and the cut network before and after fine-tuning. Methods are those of"
            " the tests' table.",
            "",
            *table(rows),
            *(["", *bad] if bad else []),
        ]
    )


def main() -> int:
    """Run all and write the section; exit code 1 if a number was not finite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100, help="searches per method")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS), metavar="METHOD")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks.md"))
    options = parser.parse_args()
    tasks = [(method, seed) for method in options.methods for seed in range(options.seeds)]
    rows = []
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        for row in track(pool.map(one, tasks, chunksize=4), "searches", len(tasks)):
            rows.append(row)
            for text in row.outcome.findings:
                sys.stdout.write(f"{row.method}, seed {row.seed}: {text}\n    {draw(METHODS[row.method], row.seed)}\n")
            sys.stdout.flush()
    lines = table(rows)
    sys.stdout.write("\n".join(lines) + "\n")
    command = f"PYTHONPATH=tests python benchmarks/numerical_safety.py --seeds {options.seeds}"
    if set(options.methods) != set(METHODS):
        command += f" --methods {' '.join(options.methods)}"
    write_section(options.out, _TITLE, section(rows, command))
    return int(any(row.outcome.findings for row in rows))


if __name__ == "__main__":
    sys.exit(main())
