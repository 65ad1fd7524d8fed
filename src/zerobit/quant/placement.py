"""Where activation slots go, and which ops compute on integers; both follow from the graph alone.

Their placement decides whether the exported network equals the trained one.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from zerobit.graph.ir import Graph, Kind, Op
from zerobit.quant.forms import LAYERS, merged_relu, missing_form, never_negative, passes_grid

_UNREAD = "only the caller and ops that are computed in float read its result"
_FLOAT_INPUT = "what it reads is computed in float"
_APART = "what it joins is quantised apart"


@dataclass(frozen=True)
class ActivationSite:
    """One activation quantizer.

    Attributes:
        name: of the first tensor it quantises.
        tensors: all tensors that share it (members of a concatenation), in execution order.
        signed: whether values can be negative.
    """

    name: str
    tensors: tuple[str, ...]
    signed: bool


@dataclass(frozen=True, eq=False)
class Placement:
    """What is integer and what is float.

    Attributes:
        reasons: op name -> why it is computed in float, in execution order; all other ops compute on integers.
        governor: tensor -> the tensor whose quantizer its values went through; a tensor that is not here is float.
    """

    reasons: Mapping[str, str]
    governor: Mapping[str, str]


def activation_sites(graph: Graph) -> tuple[ActivationSite, ...]:
    """One site per tensor that is stored as integers: inputs, layers (behind their ReLU), sums, averages.

    Ops that only move values need none, members of a concatenation share one, and the network's results stay
    accumulators. What ops in float compute is quantised where an op on integers reads it. Values are signed
    wherever they can be negative, so before a sum in particular.
    """
    governor = place(graph).governor
    shared = _shared_by_concat(graph, governor)
    negative = _can_be_negative(graph)
    sites: dict[str, list[str]] = {}
    for tensor in (*graph.inputs, *(op.name for op in graph.ops)):
        if governor.get(tensor) == tensor:
            sites.setdefault(shared.get(tensor, tensor), []).append(tensor)
    return tuple(ActivationSite(name, tuple(t), any(negative[x] for x in t)) for name, t in sites.items())


def float_reason(graph: Graph, op: Op) -> str | None:
    """Why an op is computed in float; None if it computes on integers.

    Args:
        graph: of the network.
        op: one of its ops.
    """
    return place(graph).reasons.get(op.name)


@lru_cache(maxsize=8)
def place(graph: Graph) -> Placement:
    """Decide for each op whether it computes on integers, and for each tensor whether it is stored as integers.

    An op computes on integers if it has a form (forms.py), what it reads is integer by nature, and another op on
    integers reads its result. A layer always does: its result is stored if anything but the caller computes on it.
    """
    return assign(graph, _sited(graph))


def assign(graph: Graph, sited: Collection[str], site_of: Mapping[str, str] | None = None) -> Placement:
    """What is integer and what is float, given the tensors that are quantised.

    Args:
        graph: of a network, cut or not.
        sited: names of the tensors that have a quantizer.
        site_of: for each of them the quantizer, where members of a concatenation may have several; they may not.
    """
    governor = {name: name for name in graph.inputs if name in sited}
    reasons: dict[str, str] = {}
    for op in graph.ops:
        moves = passes_grid(op) or op.kind is Kind.CONCAT
        why = missing_form(graph, op)
        if why is None and not _is_merged(graph, op, sited, reasons) and any(t not in governor for t in op.inputs):
            why = _FLOAT_INPUT
        if why is None and op.kind not in LAYERS and not moves and not _is_rounded(graph, op, sited):
            why = _UNREAD
        if why is None and op.kind is Kind.CONCAT and site_of is not None:
            why = _APART if len({site_of[governor[name]] for name in op.inputs}) > 1 else None
        if why is not None:
            reasons[op.name] = why
        if why is None and moves:
            governor[op.name] = governor[op.inputs[0]]
        elif op.name in sited:
            governor[op.name] = op.name
    return Placement(MappingProxyType(reasons), MappingProxyType(governor))


def _is_merged(graph: Graph, op: Op, sited: Collection[str], floats: Collection[str]) -> bool:
    """Whether a ReLU becomes part of the op on integers that it reads."""
    source = graph.producer(op.inputs[0]) if op.kind is Kind.RELU else None
    if source is None or source.name in floats or source.name in sited or op.name not in sited:
        return False
    return merged_relu(graph, source)


def _is_rounded(graph: Graph, op: Op, sited: Collection[str]) -> bool:
    """Whether a result is quantised, or that of a ReLU that becomes part of it."""
    return op.name in sited or (merged_relu(graph, op) and graph.consumers(op.name)[0].name in sited)


def _sited(graph: Graph) -> set[str]:
    """Tensors that need a quantizer of their own: what readers ask for, collected from the last op to the first."""
    forms = _natural_forms(graph)
    wanted: set[str] = set()
    read: set[str] = set()
    stored: set[str] = set()
    for op in reversed(graph.ops):
        is_layer = op.name in forms and (op.kind in LAYERS or _merges_into_layer(graph, op, forms))
        is_kept = op.name in wanted or (is_layer and op.name in read)
        is_integer = op.name in forms and (is_kept or op.kind in LAYERS)
        moves = passes_grid(op) or op.kind is Kind.CONCAT
        if is_kept and not (is_integer and moves):
            stored.add(op.name)
        if op.name in forms and not is_integer and (passes_grid(op) or is_layer):
            # It is nothing of its own: what its readers do is what counts.
            read.update(op.inputs if op.name in read else ())
            continue
        read.update(op.inputs)
        wanted.update(op.inputs if is_integer else ())
    merging = {op.name for op in graph.ops if op.name in forms and merged_relu(graph, op)}
    merged = {name for name in merging if graph.consumers(name)[0].name in stored}
    return (stored - merged) | {name for name in graph.inputs if name in wanted}


def _natural_forms(graph: Graph) -> set[str]:
    """Ops that have an integer form and read what is integer by nature.

    What is computed in float stays so until a layer reads it: rounding it only for a function of one value would
    cost precision and gain nothing. A product with a factor in float is in float as well, as such factors, unlike
    gates, can span a wide range.
    """
    natural: set[str] = set()
    for op in graph.ops:
        floats = [t for t in op.inputs if graph.producer(t) is not None and t not in natural]
        in_float = len(floats) == len(op.inputs) or (op.kind is Kind.MUL and floats)
        if missing_form(graph, op) is None and (op.kind in LAYERS or not in_float):
            natural.add(op.name)
    return natural


def _merges_into_layer(graph: Graph, op: Op, forms: Collection[str]) -> bool:
    source = graph.producer(op.inputs[0]) if op.kind is Kind.RELU else None
    return source is not None and source.kind in LAYERS and source.name in forms and merged_relu(graph, source)


def _shared_by_concat(graph: Graph, governor: Mapping[str, str]) -> dict[str, str]:
    """Slot -> the slot that stands for it, where concatenations force slots to be one."""
    stands: dict[str, str] = {}

    def find(name: str) -> str:
        while name in stands:
            name = stands[name]
        return name

    order = {name: i for i, name in enumerate((*graph.inputs, *(op.name for op in graph.ops)))}
    floats = place(graph).reasons
    for op in graph.ops:
        if op.kind is Kind.CONCAT and op.name not in floats:
            roots = sorted({find(governor[name]) for name in op.inputs}, key=order.__getitem__)
            stands.update(dict.fromkeys(roots[1:], roots[0]))
    return {name: find(name) for name in governor.values()}


def _can_be_negative(graph: Graph) -> dict[str, bool]:
    negative = dict.fromkeys(graph.inputs, True)
    for op in graph.ops:
        inputs_are = bool(op.inputs) and not any(negative[name] for name in op.inputs)
        negative[op.name] = not never_negative(op, inputs_are)
    return negative
