"""What of each network of the model matrix is captured, searched, pruned and exported, as a table: docs/coverage.md.

    python benchmarks/coverage.py [--tier quick|all] [--jobs N] [--only NAME ...]
    python benchmarks/coverage.py --check [--tier quick|all]

Without `--check`, all rows are measured and the file is written. With it, rows are measured and compared with those in
the file; date, machine and the size of rounding errors may differ. Exits with 1 if the file is not current, if a cut
differs from a mask, or if a network can't be captured or exported.
"""

import argparse
import concurrent.futures
import datetime as dt
import multiprocessing
import platform
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from matrix.measure import TOLERANCE, measure_cuts, run  # noqa: E402
from matrix.row import MatrixRow  # noqa: E402
from matrix.rows import MATRIX  # noqa: E402
from searches import scramble  # noqa: E402
from zerobit.coverage import Coverage, OpRow, cover  # noqa: E402
from zerobit.cut.apply import QuantNet, apply  # noqa: E402
from zerobit.cut.decide import decide  # noqa: E402
from zerobit.export import onnx  # noqa: E402
from zerobit.search.attach import attach  # noqa: E402
from zerobit.search.methods.softmax import ChannelSoftmax  # noqa: E402

FILE = ROOT / "docs" / "coverage.md"
HEADER = ("model", "family", "captured", "weights searched", "MACs prunable", "groups", "cut = masked", "ONNX runs")
SEED = 0
_SAME, _NOTHING = "exact", "nothing to cut"
#: Reason that every network has; not worth a line.
_OUTPUT = "an output of the network"


@dataclass(frozen=True)
class Line:
    """What was measured on one network.

    Attributes:
        name: of the row.
        family: of the row.
        weights: elements of its weights, and those that are searched.
        macs: multiplications, and those of layers that can lose channels.
        groups: channel groups, and those that can be cut.
        cut: largest difference of cut and masked networks, as a share of the largest result; None if nothing is cut.
        problem: why it could not be captured or exported; "" if it was.
        captured: whether it was captured.
        notes: what is computed in float and why, and what no cut passes.
    """

    name: str
    family: str
    weights: tuple[int, int] = (0, 0)
    macs: tuple[int, int] = (0, 0)
    groups: tuple[int, int] = (0, 0)
    cut: float | None = None
    problem: str = ""
    captured: bool = False
    notes: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether everything that a law asks for holds."""
        return not self.problem and (self.cut is None or self.cut <= TOLERANCE)

    def cells(self) -> tuple[str, ...]:
        """Of the table."""
        cut = _NOTHING if self.cut is None else _SAME if self.cut == 0 else f"{self.cut:.0e}"
        return (
            self.name,
            self.family,
            "yes" if self.captured else "no",
            _share(self.weights),
            _share(self.macs),
            f"{self.groups[1]} of {self.groups[0]}",
            cut,
            "no" if self.problem else "yes",
        )


def _share(part: tuple[int, int]) -> str:
    return _percent(part[1] / part[0]) if part[0] else "-"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def measure(name: str) -> Line:
    """Measure one row of the matrix."""
    torch.set_num_threads(1)
    row = next(row for row in MATRIX if row.name == name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _measure(row)
    except Exception as error:  # a table of what works has to say what does not
        return Line(row.name, row.family, problem=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _measure(row: MatrixRow) -> Line:
    torch.manual_seed(SEED)
    net = attach(row.model(), row.sample(3, SEED), ChannelSoftmax())
    found = cover(net, net.graph, net.options)
    cut = measure_cuts(row)
    scramble(net, SEED + 1)
    problem = _export(apply(net, decide(net)).eval(), row)
    return Line(
        row.name,
        row.family,
        (found.weights, round(found.weights * found.searched_share)),
        (found.macs, round(found.macs * found.prunable_share)),
        (len(found.groups), sum(group.kept_because is None for group in found.groups)),
        cut,
        problem,
        captured=True,
        notes=notes(found),
    )


def _export(net: QuantNet, row: MatrixRow) -> str:
    """Write a network and run the file; what went wrong, or ""."""
    import onnxruntime

    try:
        with tempfile.TemporaryDirectory() as folder:
            session = onnxruntime.InferenceSession(onnx(net, Path(folder) / "net.onnx"))
            inputs = row.sample(2, SEED + 1)
            feeds = {spec.name: x.numpy() for spec, x in zip(session.get_inputs(), inputs, strict=True)}
            results = [torch.from_numpy(x) for x in session.run(None, feeds)]
    except Exception as error:
        return f"export: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if [x.shape for x in results] != [x.shape for x in run(net, inputs)]:
        return "export: results of other sizes"
    return "" if all(bool(x.isfinite().all()) for x in results) else "export: results that are not finite"


def notes(found: Coverage) -> tuple[str, ...]:
    """What no cut passes, what is computed in float, and what else stays as it is: one line for each reason."""
    kept = Counter(_unnumbered(g.kept_because) for g in found.groups if g.kept_because not in (None, _OUTPUT))
    readers = dict.fromkeys(weight.read_by for weight in found.float_weights)
    return (
        *_by_reason("barrier", found.barriers),
        *_by_reason("float", found.islands),
        *(
            f"weights in float, read by {reader}: "
            + ", ".join(f"`{weight.name}`" for weight in found.float_weights if weight.read_by == reader)
            for reader in readers
        ),
        *(f"channels kept: {reason} ({count})" for reason, count in sorted(kept.items())),
    )


def _unnumbered(reason: str | None) -> str:
    """A reason that names an op as the code does, `mul_3`, without the number."""
    return re.sub(r"`([a-z]\w*?)_\d+`", r"`\1`", reason or "")


def _by_reason(what: str, rows: Sequence[OpRow]) -> list[str]:
    counts = Counter((row.reason, row.target) for row in rows)
    lines = []
    for reason in sorted({row.reason for row in rows}):
        targets = sorted((target, count) for (why, target), count in counts.items() if why == reason)
        lines.append(f"{what}: {reason}: " + ", ".join(f"{target} ({count})" for target, count in targets))
    return lines


def measure_all(names: Sequence[str], jobs: int) -> list[Line]:
    """Measure rows in processes of their own, in order; progress goes to stderr."""
    lines: list[Line] = []
    # spawn: a fork after torch has started threads can hang.
    with concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for line in pool.map(measure, names):
            sys.stderr.write(f"{len(lines) + 1:3}/{len(names)} {' | '.join(line.cells())} {line.problem}\n")
            lines.append(line)
    return lines


_TEXT = """# Coverage

What zerobit does with each network of the model matrix (`tests/matrix`): definitions of the `transformers` package at
small size, built from their configs, and our own of every pattern that networks are made of.

- *weights searched*: share of the elements of all parameters of two or more dimensions whose widths are searched.
- *MACs prunable*: share of the multiplications of layers that can lose input or output channels.
- *groups*: how many sets of channels that go together can be cut.
- *cut = masked*: largest difference between networks whose channels are cut and masked, by chance, in float64,
  relative to the largest result; {tolerance:.0e} is allowed.
- *ONNX runs*: the searched, cut and quantised network, written as ONNX, in ONNX Runtime.

Command: `make coverage`, that is `python benchmarks/coverage.py`. Seed {seed}. {machine}.

{table}

## Families

{families}

## What is not cut or not integer, and why

A barrier is an op that no cut passes; what is computed in float stands between integers that are converted for it.

{reasons}
"""


def render(lines: Sequence[Line]) -> str:
    """The whole file."""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    table = ["| " + " | ".join(HEADER) + " |", "|---|---|---|---:|---:|---:|---:|---|", *map(_row, lines)]
    reasons = "\n".join(part for line in lines for part in _block(line))
    return _TEXT.format(
        tolerance=TOLERANCE,
        seed=SEED,
        machine=f"{dt.datetime.now().date()}. {platform.machine()}, {versions}",
        table="\n".join(table),
        families="\n".join(families(lines)),
        reasons=reasons.rstrip("\n"),
    )


def _row(line: Line) -> str:
    return "| " + " | ".join(line.cells()) + " |"


def _block(line: Line) -> list[str]:
    return [f"### {line.name}", "", *(f"- {note}" for note in line.notes), ""] if line.notes else []


def families(lines: Sequence[Line]) -> list[str]:
    """Mean and least share over the networks of each family."""
    rows = [
        "| family | networks | weights searched, mean | least | MACs prunable, mean | least |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for family in dict.fromkeys(line.family for line in lines):
        ours = [line for line in lines if line.family == family]
        cells = [family, str(len(ours))]
        for parts in ([line.weights for line in ours], [line.macs for line in ours]):
            shares = [part / whole for whole, part in parts if whole]
            cells += [_percent(sum(shares) / len(shares)), _percent(min(shares))] if shares else ["-", "-"]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def check(lines: Sequence[Line], text: str, *, is_whole: bool) -> list[str]:
    """What of the file is not current, as messages."""
    wrong = [_complaint(line) for line in lines if not line.is_good]
    rows = {match[1]: match[0] for match in re.finditer(r"^\| (\S+) \| \w+ \| (?:yes|no) \|.*$", text, re.MULTILINE)}
    blocks = {part.splitlines()[0]: f"### {part}".strip() for part in text.split("\n### ")[1:]}
    for line in lines:
        if _stable(rows.get(line.name, "")) != _stable(_row(line)):
            wrong.append(f"{line.name}: the file has {rows.get(line.name, 'no row')!r}; now it is {_row(line)!r}")
        if blocks.get(line.name, "") != "\n".join(_block(line)).strip():
            wrong.append(f"{line.name}: the file's reasons are not those of today")
    if is_whole:
        left = [name for name in rows if name not in {line.name for line in lines}]
        wrong += [f"{name}: no such row in the matrix" for name in left]
        wrong += [f"the file lacks {row!r}" for row in families(lines) if row not in text.splitlines()]
    return wrong


def _complaint(line: Line) -> str:
    return f"{line.name}: {line.problem or f'cut networks differ from masked ones by {line.cut}'}"


def _stable(row: str) -> str:
    """A row without the size of rounding errors, which differs between machines."""
    return re.sub(rf"\| (?:\de-\d\d|{_SAME}) \|", "| same |", row)


def main() -> int:
    """Measure, then write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the file, write nothing")
    parser.add_argument("--tier", choices=("quick", "all"), default="all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=[], help="print these rows, write nothing")
    args = parser.parse_args()
    chosen = [row.name for row in MATRIX if row.is_quick or args.tier == "all"]
    names = [name for name in chosen if name in args.only] if args.only else chosen
    if args.tier == "quick" and not (args.check or args.only):
        parser.error("`--tier quick` is for --check; the file holds all rows")
    lines = measure_all(names, args.jobs)
    if args.only:
        sys.stdout.write("\n".join([*map(_row, lines), "", *(b for line in lines for b in _block(line))]) + "\n")
        return int(not all(line.is_good for line in lines))
    if args.check:
        text = FILE.read_text() if FILE.exists() else ""
        wrong = check(lines, text, is_whole=args.tier == "all")
        sys.stdout.write("".join(f"{message}\n" for message in wrong))
        sys.stdout.write("docs/coverage.md is current\n" if not wrong else "run `make coverage`\n")
        return int(bool(wrong))
    FILE.write_text(render(lines))
    sys.stdout.write("".join(f"{_complaint(line)}\n" for line in lines if not line.is_good))
    return int(not all(line.is_good for line in lines))


if __name__ == "__main__":
    sys.exit(main())
