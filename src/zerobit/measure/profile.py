"""`profile`: measure the layers of a model in a runtime, fit a cost, and write both."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table as Grid
from torch import nn

from zerobit.cost.fit import fit
from zerobit.cost.measured import MeasuredCost
from zerobit.cost.measurements import OPS, Table
from zerobit.errors import BudgetError
from zerobit.formats import GRID
from zerobit.graph.capture import capture
from zerobit.graph.describe import describe
from zerobit.graph.folding import fold_batch_norm
from zerobit.measure.bench import Settings
from zerobit.measure.layer_runtimes import AbstractLayerRuntime, check_runtime, layer_runtime
from zerobit.measure.layers import Configuration, configurations, distinct_layers

_MEND = "choose more `rounds` on a quiet machine, or another runtime"


@dataclass(frozen=True)
class Sweep:
    """What to measure of each layer, and how.

    Attributes:
        runtime: "onnxruntime", or an accelerator of the compiler Vela, such as "ethos-u55-128".
        grid: channel counts of inputs and of outputs: this many equal steps up to all channels.
        multiple_of: channel counts are rounded up to a multiple of this. The 8-bit kernels that ONNX Runtime has for
            x86 processors take 16 outputs at a time, and 4 inputs; other counts go to kernels that take about twice as
            long (docs/profile.md). A cost that grows with channels can't say that; what it can do is to be of multiples
            only, and a search that keeps to them.
        weight_bits: of the weights.
        activation_bits: of inputs and outputs.
        rounds: how often each configuration is timed; a compiler is asked once.
        seed: of the order, the inputs, and of what is held out.

    Raises:
        BudgetError: a setting that can't be.
    """

    runtime: str = "onnxruntime"
    grid: int = 4
    multiple_of: int = 16
    weight_bits: tuple[int, ...] = (2, 4, 8)
    activation_bits: tuple[int, ...] = (8,)
    rounds: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        check_runtime(self.runtime)
        for name in ("grid", "multiple_of", "rounds"):
            if getattr(self, name) < 1:
                _fail(name, getattr(self, name), "whole numbers from 1")
        for name in ("weight_bits", "activation_bits"):
            if not getattr(self, name) or not set(getattr(self, name)) <= set(GRID[1:]):
                _fail(name, getattr(self, name), f"widths from {GRID[1:]}")

    @property
    def fractions(self) -> tuple[float, ...]:
        """Of all channels."""
        return tuple(step / self.grid for step in range(1, self.grid + 1))


def _fail(argument: str, was: object, allowed: str) -> None:
    msg = f"`{argument}` is {was!r}; allowed are {allowed}; choose from these"
    raise BudgetError(msg)


def profile(
    model: nn.Module, example_inputs: Any, out: Path, sweep: Sweep, *, name: str, source: str, console: Console,
    kwargs: dict[str, Any] | None = None,
) -> MeasuredCost:  # fmt: skip
    """Measure the layers of a model in a runtime, fit a cost, write both.

    Layers that a compressed network computes in integers are measured, each distinct one over a grid of channel counts
    and widths: timed on one thread of this machine, or estimated by the compiler of an NPU.

    Args:
        model: the network.
        example_inputs: of its forward; the sizes are what counts.
        out: the TOML file of the fit; the measurements go to the CSV file beside it.
        sweep: what to measure, and how.
        name: of the cost.
        source: of the measurements, for the record.
        console: for progress and results.
        kwargs: named inputs, if the model takes any.

    Returns:
        The cost.

    Raises:
        CaptureError: the model can't be captured.
        BudgetError: `out` is not a TOML file, or the model has no layer that can be measured.
    """
    if out.suffix != ".toml":
        _fail("out", str(out), "names that end with .toml")
    graph = describe(fold_batch_norm(capture(model, example_inputs, kwargs)))
    layers, left = distinct_layers(graph)
    if not layers:
        msg = f"`model` has no layer that can be measured ({left or 'it has no layers'}); give another one"
        raise BudgetError(msg)
    chosen = configurations(layers, sweep.fractions, sweep.multiple_of, sweep.weight_bits, sweep.activation_bits)
    runtime = layer_runtime(sweep.runtime, Settings(sweep.rounds, seed=sweep.seed))
    console.print(f"{len(layers)} distinct layers, {len(chosen)} configurations, {runtime.how()}", highlight=False)
    for op, why in left.items():
        console.print(f"not measured: {op}: {why}", highlight=False, markup=False)
    values = _measure(chosen, runtime, console)
    table = _table(chosen, values, source, sweep, runtime, console)
    cost = fit(table, name, sweep.seed)
    table.write(out.with_suffix(".csv"))
    cost.save(out)
    show(cost, table, console)
    console.print(f"wrote {out} and {out.with_suffix('.csv').name}", highlight=False)
    return cost


def _measure(chosen: Sequence[Configuration], runtime: AbstractLayerRuntime, console: Console) -> list[float]:
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("measuring", total=runtime.steps(chosen))
        return runtime.measure(chosen, lambda: bar.advance(task))


def _table(
    chosen: Sequence[Configuration],
    values: Sequence[float],
    source: str,
    sweep: Sweep,
    runtime: AbstractLayerRuntime,
    console: Console,
) -> Table:
    """What could be measured; what could not is said and left out."""
    rows = tuple(c.measured(value) for c, value in zip(chosen, values, strict=True) if value > 0)
    if len(rows) < len(chosen):
        console.print(f"left out: {len(chosen) - len(rows)} configurations, {runtime.untold()}", highlight=False)
    if not rows:
        msg = f"`runtime` {sweep.runtime} tells nothing of these layers: {runtime.untold()}; {_MEND}"
        raise BudgetError(msg)
    return Table(rows, runtime.unit, f"{source}, {runtime.how()}", runtime.machine(), sweep.multiple_of)


def show(cost: MeasuredCost, table: Table, console: Console) -> None:
    """Print what was measured and what the fit is worth.

    Args:
        cost: the fit.
        table: what it was made from.
        console: to print on.
    """
    measured = Grid(title=f"Measured [{table.unit}]", title_justify="left", title_style="bold")
    for title in ("kind", "rows", "smallest", "largest", "terms of the fit"):
        measured.add_column(title, justify="left" if title in ("kind", "terms of the fit") else "right")
    for op in OPS:
        values = [row.value for row in table.rows if row.op == op]
        if values:
            cells = (str(len(values)), f"{min(values):.3g}", f"{max(values):.3g}", " ".join(cost.terms[op]))
            measured.add_row(op, *cells)
    console.print(measured)
    held = Grid(title="Predicted by fits without them", title_justify="left", title_style="bold")
    for title in ("held out", "rows", "median error", "rank correlation"):
        held.add_column(title, justify="left" if title == "held out" else "right")
    for title, q in cost.qualities.items():
        held.add_row(title, str(q.rows), f"{100 * q.error:.1f} %", f"{q.rank_correlation:.3f}")
    console.print(held)
