"""What zerobit makes of a network: per layer what can be pruned and quantised, what not, and why."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

from zerobit.cost.analytic import Macs, Size
from zerobit.cost.usage import uniform, usage
from zerobit.graph.describe import describe
from zerobit.graph.ir import WEIGHTED, Graph, Kind, Op
from zerobit.graph.program import Program
from zerobit.quant.placement import float_reason
from zerobit.search.control import Control, Count, Options, Widths, captured
from zerobit.search.method import AbstractMethod, check_method
from zerobit.search.methods.softmax import ChannelSoftmax


@dataclass(frozen=True)
class LayerRow:
    """A call of a layer, or of an op without a rule that has weights.

    Attributes:
        name: of the layer, or of the op.
        op: of the call.
        module: path of the user's module that it comes from.
        target: the operator.
        kind: what it is taken for.
        channels: output channels; 0 for an op without a rule.
        prunable: how many of them may go.
        kept_because: why the others stay.
        bits: widths offered to its weight, 0 for removal; one width if it is fixed; none in float.
        float_because: why its weights, or what it computes, are in float.
        weights: how many weights it has; 0 at the second call of the same weight.
        weight_share: of all weights.
        macs: multiplications per sample.
        mac_share: of all multiplications of layers.
        macs_prunable: whether input or output channels may go.
    """

    name: str
    op: str
    module: str
    target: str
    kind: str
    channels: int
    prunable: int
    kept_because: str | None
    bits: tuple[int, ...]
    float_because: str | None
    weights: int
    weight_share: float
    macs: int
    mac_share: float
    macs_prunable: bool


@dataclass(frozen=True)
class GroupRow:
    """Channels that go together.

    Attributes:
        name: of the group.
        units: how many there are.
        at_least: how many stay.
        multiple_of: their number is a multiple of this, or all.
        kept_because: why all stay, or None.
    """

    name: str
    units: int
    at_least: int
    multiple_of: int
    kept_because: str | None


@dataclass(frozen=True)
class OpRow:
    """An op that is computed in float.

    Attributes:
        op: its name.
        target: the operator.
        module: path of the user's module that it comes from.
        reason: why.
    """

    op: str
    target: str
    module: str
    reason: str


@dataclass(frozen=True)
class FloatWeight:
    """A parameter of two or more dimensions that stays in float.

    Attributes:
        name: of the parameter.
        size: how many weights it has.
        read_by: operator that reads it.
    """

    name: str
    size: int
    read_by: str


@dataclass(frozen=True)
class Coverage:
    """What can be done with a network.

    Attributes:
        layers: calls of layers, and other ops with weights, in execution order.
        groups: channels that go together.
        barriers: ops that are never cut through.
        islands: ops with a rule that are computed in float.
        float_weights: parameters that are neither pruned nor quantised.
        dropped: modules that act in training only and that a capture leaves out.
        weights: number of weights: parameters of two or more dimensions that the network reads.
        searched_share: share of them that is pruned or quantised.
        macs: multiplications per sample of all layers; those of other ops are not counted.
        prunable_share: share of them in layers whose input or output channels may go.
        bytes_at_8_bit: size with all searched weights at 8 bit.
    """

    layers: tuple[LayerRow, ...]
    groups: tuple[GroupRow, ...]
    barriers: tuple[OpRow, ...]
    islands: tuple[OpRow, ...]
    float_weights: tuple[FloatWeight, ...]
    dropped: tuple[str, ...]
    weights: int
    searched_share: float
    macs: int
    prunable_share: float
    bytes_at_8_bit: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def show(self, console: Console) -> None:
        """Print as tables that fit 100 columns."""
        notes = _Notes()
        console.print(_layer_table(self.layers, notes), markup=False)
        removable = [g for g in self.groups if g.kept_because is None]
        facts = [
            f"{self.weights:,} weights, {self.searched_share:.1%} of them searched; {self.macs:,} MACs, "
            f"{self.prunable_share:.1%} of them in layers that can lose channels",
            f"{len(removable)} of {len(self.groups)} channel groups can be cut",
        ]
        for title, rows in (("Never cut through", self.barriers), ("Other ops in float", self.islands)):
            if rows:
                console.print(_op_table(title, rows, notes), markup=False)
        facts += [f"in float: {w.name} ({w.size:,} weights), read by {w.read_by}" for w in self.float_weights]
        facts += [f"left out, since it acts in training only: {name}" for name in self.dropped]
        for line in (*notes.lines(), *facts):
            console.print(line, highlight=False, markup=False)


def inspect(
    model: nn.Module,
    example_inputs: Any,
    method: AbstractMethod | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    frozen: Sequence[str] = (),
    bits: Mapping[str, Widths] | None = None,
    min_channels: Count | None = None,
    multiple_of: Count | None = None,
) -> Coverage:
    """What can be pruned and quantised of a model, and why not the rest. Arguments as `attach`.

    Raises:
        CaptureError: the model can't be captured.
        FormatError: a pattern that matches nothing, a number that can't be, or no method.
    """
    method = ChannelSoftmax() if method is None else method
    check_method(method)
    control = Control.of(frozen, bits, min_channels, multiple_of)
    program = captured(model, example_inputs, kwargs, control)
    graph = describe(program)
    return cover(program, graph, control.options(program, graph, method))


def cover(program: Program, graph: Graph, options: Options) -> Coverage:
    """What can be done with a captured network.

    Args:
        program: without slots.
        graph: of it.
        options: what may be chosen.
    """
    use = usage(graph, uniform(graph, 8))
    macs = {layer.name: round(float(layer.macs_by_width.sum())) for layer in use.layers}
    sizes = {name: _size(graph, name) for name in (*graph.searched_weights, *_trained_in_float(graph))}
    layers = _layer_rows(graph, options, macs, sizes)
    total, all_macs = sum(sizes.values()), sum(macs.values())
    searched = sum(sizes[name] for name in graph.searched_weights)
    barriers = tuple(OpRow(op.name, op.target, op.module, op.reason or "") for op in graph.barriers)
    return Coverage(
        layers=layers,
        groups=tuple(
            GroupRow(
                group.name,
                group.units,
                options.rules[group.name].fewest(group.units) if group.name not in options.fixed else group.units,
                options.rules[group.name].multiple_of,
                options.fixed.get(group.name),
            )
            for group in graph.groups
        ),
        barriers=barriers,
        islands=_islands(graph),
        float_weights=tuple(FloatWeight(n, sizes[n], _reader(graph, n)) for n in _trained_in_float(graph)),
        dropped=tuple(program.structure.dropped),
        weights=total,
        searched_share=searched / total if total else 0.0,
        macs=round(float(Macs()(use))),
        prunable_share=sum(row.macs for row in layers if row.macs_prunable) / all_macs if all_macs else 0.0,
        bytes_at_8_bit=float(Size()(use)),
    )


def _size(graph: Graph, name: str) -> int:
    size = 1
    for n in graph.parameters[name]:
        size *= n
    return size


def _trained_in_float(graph: Graph) -> list[str]:
    """Float tensors that are parameters; tables of constants are no weights."""
    return [name for name in graph.float_weights if name in graph.trained]


def _reader(graph: Graph, parameter: str) -> str:
    return next(op.target for op in graph.ops if parameter in op.parameters)


def _islands(graph: Graph) -> tuple[OpRow, ...]:
    rows = []
    for op in graph.ops:
        reason = None if op.kind is Kind.BARRIER else float_reason(graph, op)
        if reason is not None:
            rows.append(OpRow(op.name, op.target, op.module, reason))
    return tuple(rows)


def _layer_rows(
    graph: Graph, options: Options, macs: Mapping[str, int], sizes: Mapping[str, int]
) -> tuple[LayerRow, ...]:
    total, all_macs = max(1, sum(sizes.values())), max(1, sum(macs.values()))
    rows: list[LayerRow] = []
    seen: set[str] = set()
    for op in graph.ops:
        theirs = [name for name in op.parameters if name in sizes]
        searched = [name for name in theirs if name in options.weight_bits]
        if op.kind not in WEIGHTED and not searched and not (op.kind is Kind.BARRIER and theirs):
            continue
        weights = sum(sizes[name] for name in theirs if name not in seen)
        seen.update(theirs)
        own = searched[0] if searched else None
        channels, prunable, kept_because = _output(graph, options, op, own)
        rows.append(
            LayerRow(
                name=_title(op, theirs),
                op=op.name,
                module=op.module,
                target=op.target,
                kind=op.kind.value,
                channels=channels,
                prunable=prunable,
                kept_because=kept_because,
                bits=_widths(options, own, prunable),
                float_because=op.reason if op.kind is Kind.BARRIER else float_reason(graph, op),
                weights=weights,
                weight_share=weights / total,
                macs=macs.get(op.name, 0),
                mac_share=macs.get(op.name, 0) / all_macs,
                macs_prunable=prunable > 0 or _loses_inputs(graph, options, op),
            )
        )
    return tuple(rows)


def _title(op: Op, parameters: Sequence[str]) -> str:
    """The layer's own name: that of its weight, or what its weights have in common."""
    if op.weight is not None:
        return op.weight.removesuffix(".weight")
    return parameters[0].rpartition(".")[0] or parameters[0]


def _widths(options: Options, weight: str | None, prunable: int) -> tuple[int, ...]:
    """Widths that a weight can end with; removal is among them only where channels may go."""
    if weight is None:
        return ()
    return ((0,) if prunable else ()) + options.widths(weight)


def _output(graph: Graph, options: Options, op: Op, weight: str | None) -> tuple[int, int, str | None]:
    """Output channels, how many of them may go, and why the others stay.

    Of other ops than layers (a recurrent one holds a channel in several rows) units are counted.
    """
    if op.kind is Kind.BARRIER or weight is None:
        return 0, 0, op.reason
    units = graph.row_units(weight)
    sizes = {g.name: g.units for g in graph.groups}
    if op.kind in WEIGHTED:
        sizes = {name: int((unit >= 0).sum()) for name, unit in units.items()}
    channels = op.rows.count(graph.parameters[weight]) if op.kind in WEIGHTED else sum(sizes[name] for name in units)
    prunable = sum(sizes[name] for name in units if name not in options.fixed)
    reasons = [options.fixed[name] for name in units if name in options.fixed]
    return channels, prunable, reasons[0] if reasons else None if prunable else "its channels can't be told apart"


def _loses_inputs(graph: Graph, options: Options, op: Op) -> bool:
    """Whether channels that a layer contracts may go."""
    if op.kind not in WEIGHTED or op.kind is Kind.EMBEDDING or not op.inputs:
        return False
    shape = graph.shapes[op.inputs[0]]
    dim = len(shape) - 1 if op.kind is Kind.LINEAR else 1
    return any(name not in options.fixed for name in graph.units_along(op.inputs[0], dim))


def show_float_ops(rows: Sequence[OpRow], console: Console) -> None:
    """Print the ops of a network that are computed in float, and why; nothing if there are none."""
    if rows:
        notes = _Notes()
        console.print(_op_table("Computed in float", rows, notes), markup=False)
        for line in notes.lines():
            console.print(line, highlight=False, markup=False)


class _Notes:
    """Reasons by number, each once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __call__(self, *reasons: str | None) -> str:
        """Numbers of reasons."""
        present = [r for r in dict.fromkeys(reasons) if r]
        return " ".join(str(self._numbers.setdefault(reason, len(self._numbers) + 1)) for reason in present)

    def lines(self) -> list[str]:
        """All of them, numbered."""
        return [f"{number:>3}  {reason}" for reason, number in self._numbers.items()]


def _layer_table(rows: Sequence[LayerRow], notes: _Notes) -> Table:
    table = Table(title="Layers", title_justify="left", box=SIMPLE_HEAD)
    left = ("layer", "kind", "bits")
    for title in ("layer", "kind", "may go", "bits", "weights", "MACs", "note"):
        is_name = title == "layer"
        table.add_column(title, justify="left" if title in left else "right", overflow="fold", no_wrap=not is_name)
    for row in rows:
        table.add_row(
            row.name,
            row.kind,
            f"{row.prunable} of {row.channels}" if row.channels else "",
            ", ".join(map(str, row.bits)) or "float",
            f"{row.weight_share:.1%}",
            f"{row.mac_share:.1%}",
            notes(row.kept_because, row.float_because),
        )
    return table


def _op_table(title: str, rows: Sequence[OpRow], notes: _Notes) -> Table:
    """Ops counted by operator and reason, with the modules they are first and last seen in."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in ("operator", "times", "where", "note"):
        is_short = column in ("times", "note")
        table.add_column(column, justify="right" if is_short else "left", overflow="fold", no_wrap=is_short)
    counts = Counter((row.target, row.reason) for row in rows)
    for (target, reason), count in counts.items():
        places = [row.module or row.op for row in rows if (row.target, row.reason) == (target, reason)]
        where = places[0] if len(set(places)) == 1 else f"{places[0]} .. {places[-1]}"
        table.add_row(target, str(count), where, notes(reason))
    return table
