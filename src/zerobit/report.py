"""What a compression came to, for people: rows of a table, text on a terminal, one HTML page."""

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from zerobit.atomic import replacing
from zerobit.cost.base import GRID_BITS
from zerobit.cost.usage import usage
from zerobit.formats import GRID
from zerobit.graph.ir import Graph
from zerobit.plan import Plan

#: Name of the metric that is a share, and shown in percent.
ACCURACY = "accuracy"


@dataclass(frozen=True)
class LayerRow:
    """One layer of a plan.

    Attributes:
        name: of its weight.
        kept: output channels that stay.
        channels: output channels there were.
        widths: width -> channels.
        size: bytes of its weights.
        share: of the network's bytes.
    """

    name: str
    kept: int
    channels: int
    widths: Mapping[int, int]
    size: float
    share: float


@dataclass(frozen=True)
class Stage:
    """The network at one stage.

    Attributes:
        name: float, searched, fine-tuned, exported.
        val: metric on validation data, or None.
        test: metric on test data, or None.
        size: bytes of weights.
        macs: multiplications per sample.
        costs: name -> other costs that were limited, with their units; none of the float network.
        seconds: wall time of the training that made it of the stage before; 0 without one. Two stages that differ in
            it only are equal.
    """

    name: str
    val: float | None
    test: float | None
    size: float
    macs: float
    costs: Mapping[str, str] = field(default_factory=dict[str, str])
    seconds: float = field(default=0.0, compare=False)


def layer_rows(graph: Graph, plan: Plan) -> list[LayerRow]:
    """One row per weight of the uncut graph."""
    use = usage(graph, plan.net_bits())
    sizes = {w.name: float((w.counts @ GRID_BITS) * w.fan_in) / 8 for w in use.weights}
    total = sum(sizes.values())
    rows = []
    for name, weight in plan.weights.items():
        counts = Counter(b for b in weight.bits if b)
        widths = {b: counts[b] for b in GRID if counts[b]}
        rows.append(
            LayerRow(
                name,
                sum(counts.values()),
                len(weight.bits),
                widths,
                sizes[name],
                sizes[name] / total if total else 0,
            )
        )
    return rows


def widths_text(widths: Mapping[int, int]) -> str:
    """For example "2b x 12, 4b x 3"."""
    return ", ".join(f"{b}b x {n}" for b, n in widths.items())


def stage_table(stages: Sequence[Stage], metric: str = ACCURACY) -> Table:
    """Terminal table: a column for each stage, so that any number of costs fits."""
    table = Table(title="What came out", title_justify="left")
    table.add_column("network", overflow="fold")
    for stage in stages:
        table.add_column(stage.name, justify="right", no_wrap=True)
    for title, *cells in _stage_rows(stages, metric):
        table.add_row(title, *cells)
    return table


def _stage_rows(stages: Sequence[Stage], metric: str) -> list[tuple[str, ...]]:
    """Title, and a cell for each stage."""
    full = stages[0].size / 4
    return [
        (f"val {metric}", *(_score(s.val, metric) for s in stages)),
        (f"test {metric}", *(_score(s.test, metric) for s in stages)),
        ("weights [B]", *(f"{s.size:,.0f}" for s in stages)),
        ("of 8 bit", *(f"{s.size / full:.1%}" for s in stages)),
        ("MACs", *(f"{s.macs:,.0f}" for s in stages)),
        *((name, *(s.costs.get(name, "") for s in stages)) for name in _cost_names(stages)),
    ]


def _cost_names(stages: Sequence[Stage]) -> list[str]:
    return list(dict.fromkeys(name for stage in stages for name in stage.costs))


def layer_table(rows: Sequence[LayerRow]) -> Table:
    """Terminal table of layers."""
    table = Table(title="Layers", title_justify="left")
    for title in ("weight", "channels kept", "bits", "bytes", "share"):
        table.add_column(title, justify="left" if title in ("weight", "bits") else "right", overflow="fold")
    for row in rows:
        kept = f"{row.kept} of {row.channels}"
        table.add_row(row.name, kept, widths_text(row.widths), f"{row.size:,.1f}", f"{row.share:.1%}")
    return table


def _score(value: float | None, metric: str) -> str:
    """An accuracy in percent; nothing is known of other metrics."""
    if value is None:
        return ""
    return f"{100 * value:.2f} %" if metric == ACCURACY else f"{value:.4g}"


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430 }
table { border-collapse: collapse; margin: 1rem 0 2rem; width: 100% }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #dde3ea }
th:first-child, td:first-child { text-align: left }
.bar { display: flex; height: 1rem; min-width: 12rem; background: #eef1f5 }
.bar span { display: block; height: 100% }
.key span { display: inline-block; width: .9rem; height: .9rem; margin: 0 .3rem 0 1rem; vertical-align: -1px }
"""
#: Colour of each width, dark for wide; removed channels stay background.
_COLOURS = {2: "#9ecae1", 3: "#85bcdb", 4: "#4292c6", 5: "#3585bf", 6: "#2171b5", 7: "#14599d", 8: "#08306b"}


def html_page(
    title: str, stages: Sequence[Stage], rows: Sequence[LayerRow], facts: Mapping[str, str], metric: str = ACCURACY
) -> str:
    """One self-contained page: stages, layers with their widths as bars, facts of the run."""
    widths = sorted({b for row in rows for b in row.widths})
    key = "".join(f'<span style="background:{_COLOURS[b]}"></span>{b} bit' for b in widths)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>"
        f"{_stage_html(stages, metric)}<h2>Layers</h2><p class='key'>channels:{key}"
        "<span style='background:#eef1f5'></span>removed</p>"
        f"{_layer_html(rows)}<h2>Run</h2>{_fact_html(facts)}</html>\n"
    )


def _stage_html(stages: Sequence[Stage], metric: str) -> str:
    """A row for each stage."""
    times = ("training [s]", *(f"{s.seconds:,.1f}" if s.seconds else "" for s in stages))
    columns = [("network", *(s.name for s in stages)), *_stage_rows(stages, metric), times]
    head, *body = ([html.escape(cell) for cell in row] for row in zip(*columns, strict=True))
    rows = "".join("<tr>" + "".join(f"<td>{cell}" for cell in row) for row in body)
    return f"<table><tr>{''.join(f'<th>{title}' for title in head)}{rows}</table>"


def _layer_html(rows: Sequence[LayerRow]) -> str:
    head = "<tr><th>weight<th>kept<th>widths<th>bytes<th>share"
    body = "".join(
        f"<tr><td>{html.escape(r.name)}<td>{r.kept} of {r.channels}<td>{_bar(r)}<td>{r.size:,.1f}<td>{r.share:.1%}"
        for r in rows
    )
    return f"<table>{head}{body}</table>"


def _bar(row: LayerRow) -> str:
    parts = "".join(
        f'<span style="width:{100 * n / row.channels:.2f}%;background:{_COLOURS[b]}" title="{n} at {b} bit"></span>'
        for b, n in row.widths.items()
    )
    return f'<div class="bar">{parts}</div>'


def _fact_html(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><td>{html.escape(k)}<td>{html.escape(v)}" for k, v in facts.items())
    return f"<table>{rows}</table>"


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file, whole or not at all."""
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
