"""Products of two activations: matmul, einsum, attention."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from zerobit.graph.axes import Axes, AxisState, Labels
from zerobit.graph.ir import Kind, Op, Rows, Shape
from zerobit.graph.rules.affine import couple_linear
from zerobit.graph.rules.base import AbstractRule, Arguments, Cut, Ref, Shapes, as_kind, operands, refuse

#: Labels and shape of a tensor that is multiplied.
Factor = tuple[Axes, Shape]


class MatmulRule(AbstractRule):
    """Product of two tensors over the last dimension of one and the last but one of the other."""

    takes_parameters = True
    targets = ("aten.matmul.default", "aten.bmm.default", "aten.mm.default")

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind LINEAR where the right one is a parameter [I, O], else MATMUL with subscripts as in einsum."""
        left, right = operands(op, arguments, "self", "input", "mat2", "other")
        if right in op.parameters and left in op.inputs and len(shapes[right]) == 2 and len(shapes[left]) > 1:
            return as_kind(replace(op, weight=right, inputs=(left,), rows=Rows(1)), Kind.LINEAR)
        ranks = len(shapes[left]), len(shapes[right])
        if min(ranks) < 2:
            return refuse(op, "a product with a vector")
        lead = [chr(ord("A") + i) for i in range(max(ranks) - 2)]
        first = "".join(lead[len(lead) - ranks[0] + 2 :]) + "nk"
        second = "".join(lead[len(lead) - ranks[1] + 2 :]) + "km"
        return as_kind(op, Kind.MATMUL, operands=(left, right), terms=(first, second), result="".join(lead) + "nm")

    def couple(self, op: Op, state: AxisState) -> Axes:
        """What runs side by side is united, what is summed over must read as zero."""
        if op.weight is not None:
            return couple_linear(op, state)
        factors = [(state.axes(name), state.shapes[name]) for name in op.attrs["operands"]]
        return contract(op, state, factors, op.attrs["terms"], op.attrs["result"])


class EinsumRule(AbstractRule):
    """einsum in any form without repeated letters in one term."""

    takes_parameters = True
    targets = ("aten.einsum.default",)

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind MATMUL with its subscripts."""
        equation = str(arguments["equation"]).replace(" ", "")
        left, arrow, result = equation.partition("->")
        terms = tuple(left.split(","))
        names = tuple(v.name for v in arguments["tensors"] if isinstance(v, Ref))
        simple = arrow and "." not in equation and all(len(set(t)) == len(t) for t in terms)
        if not simple or [len(t) for t in terms] != [len(shapes[n]) for n in names]:
            return refuse(op, f"einsum {equation!r}: only plain letters, none twice in a term, with '->'")
        return as_kind(op, Kind.MATMUL, operands=names, terms=terms, result=result)

    def couple(self, op: Op, state: AxisState) -> Axes:
        """As a matrix product."""
        factors = [(state.axes(name), state.shapes[name]) for name in op.attrs["operands"]]
        return contract(op, state, factors, op.attrs["terms"], op.attrs["result"])


class AttentionRule(AbstractRule):
    """Scaled dot-product attention on [..., heads, positions, channels]."""

    targets = ("aten.scaled_dot_product_attention.default",)

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind FLOAT with the names of its operands."""
        names = operands(op, arguments, "query", "key", "value")
        masks = operands(op, arguments, "attn_mask")
        if len({len(shapes[name]) for name in names}) > 1 or len(names) != 3:
            return refuse(op, "attention on tensors of different rank")
        if arguments["dropout_p"]:
            return refuse(op, "attention with dropout in evaluation")
        return as_kind(op, Kind.FLOAT, operands=names, masks=masks, shared=bool(arguments.get("enable_gqa")))

    def couple(self, op: Op, state: AxisState) -> Axes:
        """Heads go as a whole; so do channels that query and key share, and those of the value."""
        names = op.attrs["operands"]
        query, key, value = ((state.axes(name), state.shapes[name]) for name in names)
        if op.attrs["shared"]:
            key, value = (_repeat_heads(factor, query[1][-3]) for factor in (key, value))
        lead = "".join(chr(ord("A") + i) for i in range(len(query[1]) - 2))
        scores = contract(op, state, [query, key], (lead + "nk", lead + "mk"), lead + "nm")
        labels = list(scores.labels)
        for mask in op.attrs["masks"]:
            labels = self._masked(op, state, labels, mask)
        for dim in (-2, -1):
            state.pin_axis(labels[dim], f"normalised over in `{op.name}`")
        weights = Axes((*labels[:-2], None, None), frozenset({op.name}))
        side_by_side = (max(q, k) for q, k in zip(query[1][:-2], key[1][:-2], strict=True))
        shape = (*side_by_side, query[1][-2], key[1][-2])
        return contract(op, state, [(weights, shape), value], (lead + "nm", lead + "mk"), lead + "nk")

    def _masked(self, op: Op, state: AxisState, labels: list[Labels | None], mask: str) -> list[Labels | None]:
        """Scores plus a mask that broadcasts to them."""
        axes, sizes = state.axes(mask), state.shapes[mask]
        result = list(labels)
        for dim in range(1, len(sizes) + 1):
            if sizes[-dim] > 1:
                result[-dim] = state.meet([labels[-dim], axes.labels[-dim]], f"meets a mask in `{op.name}`")
        return result

    def rewrite(self, arguments: Arguments, cut: Cut, name: str) -> Arguments:
        """The default scale is that of the uncut channels."""
        query = arguments["query"].name
        before = cut.before[query][-1]
        if arguments.get("scale") is None and cut.after[query][-1] != before:
            return {"scale": before**-0.5}
        return {}


def _repeat_heads(factor: Factor, heads: int) -> Factor:
    """Labels of a tensor whose heads are each read by several of the query's."""
    axes, shape = factor
    labels = axes.labels[-3]
    repeated = None if labels is None else np.repeat(labels, heads // len(labels))
    repeated_axes = Axes((*axes.labels[:-3], repeated, *axes.labels[-2:]), axes.spoilers)
    return repeated_axes, (*shape[:-3], heads, *shape[-2:])


def contract(op: Op, state: AxisState, factors: Sequence[Factor], terms: Sequence[str], result: str) -> Axes:
    """Labels of a product of tensors, summed over all letters that are not in the result.

    A letter that several terms share stands for the same channels; one that is summed over is made to read as zero in
    one of the factors where it is absent.

    Args:
        op: for reasons.
        state: channels so far.
        factors: labels and shape of each tensor.
        terms: a letter for each of their dimensions.
        result: letters of the result.
    """
    met: dict[str, Labels | None] = {}
    spoilers: frozenset[str] = frozenset()
    for letter in dict.fromkeys("".join(terms)):
        holders = [(f, t.index(letter)) for f, t in zip(factors, terms, strict=True) if letter in t]
        size = max(shape[dim] for (_, shape), dim in holders)
        wide = [(axes, axes.labels[dim]) for (axes, shape), dim in holders if shape[dim] == size]
        for (axes, shape), dim in holders:
            if shape[dim] != size:
                state.pin_axis(axes.labels[dim], f"broadcast in `{op.name}`")
        met[letter] = labels = state.meet([own for _, own in wide], f"meets channels that stay in `{op.name}`")
        if labels is None:
            continue
        carriers = [axes for axes, _ in wide]
        if letter not in result:
            state.require_zero(cleanest(carriers))
            continue
        spoilers |= cleanest(carriers).spoilers
        if len(wide) > 1:
            state.atoms.mark_heads(labels)
    return Axes(tuple(met[letter] for letter in result), spoilers)


def cleanest(factors: Sequence[Axes]) -> Axes:
    """The factor of a product with the fewest spoilers: where it is zero, so is the product."""
    return min(factors, key=lambda axes: len(axes.spoilers))
