"""The picture beside the table of methods: accuracy over what a budget limits. Needs matplotlib (zerobit[bench])."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from methods_rows import Outcome

from zerobit.atomic import replacing

#: Cost of budgets -> label of the axis, column of the rows, factor.
_AXES = {"size": ("weights [B]", "size", 1.0), "bops": ("BOPs [% of 32 bit]", "bops", 100.0)}
#: Told apart in every kind of colour vision (Okabe and Ito, 2008), and by their marks in print.
_COLOURS = ("#0072b2", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#56b4e9")
_MARKS = ("o", "s", "D", "^", "v", "X")
_UNIFORM_COLOUR = "#555555"
#: Neither date nor random names: the same rows are the same file.
_REPEATABLE = {"svg.hashsalt": "zerobit", "svg.fonttype": "none", "font.family": "sans-serif"}


def draw(path: Path, found: Sequence[Outcome], titles: Mapping[str, str]) -> None:
    """Write an SVG with a panel for each cost that budgets limit.

    Args:
        path: of the file.
        found: rows of all seeds.
        titles: name of a method -> what the legend calls it; uniform networks are one line.
    """
    costs = [cost for cost in _AXES if any(one.trial.budget.startswith(cost) for one in found)] or ["size"]
    with mpl.rc_context(_REPEATABLE):
        figure = Figure(figsize=(5.2 * len(costs), 4.4), layout="constrained")
        panels = figure.subplots(1, len(costs), squeeze=False)[0]
        for panel, cost in zip(panels, costs, strict=True):
            _fill(panel, cost, found, titles)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2 * len(panels), frameon=False)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})


def _fill(panel: Axes, cost: str, found: Sequence[Outcome], titles: Mapping[str, str]) -> None:
    label, column, factor = _AXES[cost]
    test = statistics.fmean({one.start: one.float_test for one in found}.values())
    panel.axhline(100 * test, color="0.7", lw=1, label="float")
    searched = [one for one in found if one.trial.budget.startswith(cost)]
    names = [name for name in titles if any(one.trial.method == name for one in searched)]
    for name, colour, mark in zip(names, _COLOURS, _MARKS, strict=False):
        _line(panel, [o for o in searched if o.trial.method == name], column, factor, titles[name], colour, mark)
    if uniform := [one for one in found if not one.trial.budget]:
        _line(panel, uniform, column, factor, "uniform", _UNIFORM_COLOUR, "*", "--")
    panel.set(xlabel=label, ylabel="test accuracy [%]")
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    panel.grid(visible=True, color="0.92")
    panel.spines[["top", "right"]].set_visible(False)


def _line(
    panel: Axes, rows: Sequence[Outcome], column: str, factor: float, label: str, colour: str, mark: str,
    style: str = "-",
) -> None:  # fmt: skip
    """Means over seeds; bars are their standard deviation."""
    points = []
    for group in dict.fromkeys((one.trial.method, one.trial.budget) for one in rows):
        ours = [one for one in rows if (one.trial.method, one.trial.budget) == group]
        test = [100 * one.test for one in ours]
        spread = statistics.stdev(test) if len(test) > 1 else 0.0
        points.append((factor * statistics.fmean(getattr(o, column) for o in ours), statistics.fmean(test), spread))
    x, y, bars = zip(*sorted(points), strict=True)
    panel.errorbar(x, y, bars if any(bars) else None, label=label, color=colour, marker=mark, ls=style, ms=5, lw=1.2,
                   elinewidth=0.8, capsize=2)  # fmt: skip
