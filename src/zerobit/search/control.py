"""What the user keeps in hand: patterns of parameter names, and what may be chosen where they apply.

A pattern is matched as file names are (`*`, `?`, `[...]`; `*` also matches dots), against the full name of a
parameter and against the path of every module that holds it: "head", "head.*" and "head.weight" all match
`head.weight`; "head" matches `head.fc.weight`, too.
"""

import difflib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from zerobit.errors import FormatError
from zerobit.formats import check_bits
from zerobit.graph.capture import capture
from zerobit.graph.folding import fold
from zerobit.graph.ir import ChannelGroup, Graph
from zerobit.graph.program import Program
from zerobit.search.choice import UnitRule
from zerobit.search.method import AbstractMethod

Widths = int | Sequence[int]
Count = int | Mapping[str, int]


@dataclass(frozen=True)
class Control:
    """The user's wishes.

    Attributes:
        frozen: patterns of layers that stay as they are: in float, untrained, with all channels that they read or
            make.
        bits: pattern -> the width, or the widths, of the weights that it matches; 0 among them lets channels go.
            Where several match, the last one holds.
        min_channels: units that every group keeps, or pattern -> units for the groups of the weights it matches.
        multiple_of: the number of units that stay is a multiple of this, or all; a number or by pattern, as above; 1 if
            nothing was asked for.

    Raises:
        FormatError: a width that is not offered, or a count below 1.
    """

    frozen: tuple[str, ...] = ()
    bits: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    min_channels: Count = 1
    multiple_of: Count | None = None

    @staticmethod
    def of(
        frozen: Sequence[str] = (),
        bits: Mapping[str, Widths] | None = None,
        min_channels: Count | None = None,
        multiple_of: Count | None = None,
    ) -> "Control":
        """From arguments as a user gives them."""
        if isinstance(frozen, str) or not _are_texts(frozen):
            msg = f"`frozen` is {frozen!r}; allowed is a list of patterns; write for example ['head.*']"
            raise FormatError(msg)
        if bits is not None and not _is_mapping(bits):
            msg = f"`bits` is {bits!r}; allowed is pattern -> width; write {{'*': {bits!r}}} for all weights"
            raise FormatError(msg)
        widths = {
            pattern: check_bits(f"bits[{pattern!r}]", tuple(w) if isinstance(w, Iterable) else (w,), allow_zero=True)
            for pattern, w in (bits or {}).items()
        }
        return Control(
            tuple(frozen),
            widths,
            _count("min_channels", 1 if min_channels is None else min_channels),
            None if multiple_of is None else _count("multiple_of", multiple_of),
        )

    def suited_to(self, multiple: int) -> "Control":
        """The same for a device that works on so many channels at once, unless the user asked for another number."""
        return self if self.multiple_of is not None else replace(self, multiple_of=multiple)

    def describe(self) -> str:
        """What was asked for, as text."""
        asked = {name: value for name, value in vars(self).items() if value != vars(Control())[name]}
        return ", ".join(f"{name} {value}" for name, value in asked.items()) or "none"

    def options(self, program: Program, graph: Graph, method: AbstractMethod) -> "Options":
        """What may be chosen in a network.

        Raises:
            FormatError: a pattern that matches no searched weight, or none whose channels lie in a group.
        """
        names = _aliases(program, graph)
        owners = {group.name: _owners(graph, group) for group in graph.groups}
        own: dict[str, tuple[int, ...]] = {}
        for pattern, widths in self.bits.items():
            own.update(dict.fromkeys(_found("bits", pattern, names, graph.searched_weights), widths))
        weight_bits = {name: own.get(name, method.weight_bits) for name in graph.searched_weights}
        least = _by_group("min_channels", self.min_channels, names, owners, max)
        multiple = _by_group("multiple_of", self.multiple_of or 1, names, owners, math.lcm)
        rules = {name: UnitRule(max(method.min_channels, least[name]), multiple[name]) for name in owners}
        fixed = {
            group.name: reason
            for group in graph.groups
            if (reason := _why_fixed(group, owners[group.name], weight_bits, rules[group.name])) is not None
        }
        return Options(weight_bits, frozenset(own), rules, fixed)


@dataclass(frozen=True)
class Options:
    """What may be chosen in a network.

    Attributes:
        weight_bits: weight -> widths offered to it; 0 among them lets its channels go.
        own: weights whose widths are the user's, not the method's.
        rules: group -> how many of its units may stay.
        fixed: group -> why none of its units can go, for groups where that is so.
    """

    weight_bits: Mapping[str, tuple[int, ...]]
    own: frozenset[str]
    rules: Mapping[str, UnitRule]
    fixed: Mapping[str, str]

    def describe(self) -> str:
        """All of it as text, to tell one search from another."""
        own = {name: self.weight_bits[name] for name in sorted(self.own)}
        return f"{own} {dict(self.rules)} {dict(self.fixed)}"

    def widths(self, weight: str) -> tuple[int, ...]:
        """Widths of a weight other than 0."""
        return tuple(w for w in self.weight_bits[weight] if w)


def captured(
    model: Any, example: Any, kwargs: Mapping[str, Any] | None, control: Control, *, free_size: bool = False
) -> Program:
    """Capture a model, freeze what the user wants frozen, and fold the rest.

    Args:
        model: to be captured.
        example: positional inputs.
        kwargs: named inputs.
        control: the user's wishes.
        free_size: whether height and width are to stay open.

    Raises:
        CaptureError: the model can't be captured.
        FormatError: a pattern of `frozen` that matches nothing.
    """
    program = capture(model, example, kwargs, free_size=free_size)
    before = [*program.tensors()]
    _freeze(program, _matching(control.frozen, before))
    fold(program)
    after = [*program.tensors()]
    _freeze(program, _matching(control.frozen, after))
    for pattern in control.frozen:
        _found("frozen", pattern, {name: name for name in (*before, *after)})
    return program


def recaptured(
    model: Any, example: Any, kwargs: Mapping[str, Any] | None, frozen: Collection[str], *, free_size: bool = False
) -> Program:
    """The program that `captured` made of this kind of model, with these parameters frozen."""
    program = capture(model, example, kwargs, free_size=free_size)
    _freeze(program, program.tensors().keys() & set(frozen))
    fold(program)
    _freeze(program, program.tensors().keys() & set(frozen))
    return program


def _freeze(program: Program, names: Collection[str]) -> None:
    """Keep parameters as they are: neither quantised nor cut nor trained."""
    tensors = program.tensors()
    for name in names:
        if tensors[name].is_leaf:
            tensors[name].requires_grad_(False)
    program.freeze(names)


def _matching(patterns: Sequence[str], names: Collection[str]) -> set[str]:
    return {name for name in names if any(_matches(name, pattern) for pattern in patterns)}


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _found(argument: str, pattern: str, names: Mapping[str, str], of_use: Collection[str] | None = None) -> list[str]:
    """Canonical names of what a pattern matches.

    Args:
        argument: that holds the pattern, for the message.
        pattern: of names.
        names: every name -> the one that the graph uses.
        of_use: graph names of which one must be matched; any if None.
    """
    matched = [name for name in names if _matches(name, pattern)]
    useful = list(dict.fromkeys(names[n] for n in matched if of_use is None or names[n] in of_use))
    if useful:
        return useful
    known = [name for name in names if of_use is None or names[name] in of_use]
    what = "nothing" if not matched else f"only {', '.join(matched[:3])}, which the search does not choose for"
    msg = (
        f"`{argument}` has the pattern {pattern!r}, which matches {what}; allowed are names or patterns of parameters "
        f"and modules; the nearest are {_nearest(pattern, known)}"
    )
    raise FormatError(msg)


def _nearest(pattern: str, names: Sequence[str]) -> list[str]:
    """Parameters and modules with names like a pattern; some, if none is like it."""
    modules = [".".join(name.split(".")[: i + 1]) for name in names for i in range(name.count("."))]
    known = list(dict.fromkeys((*names, *modules)))
    return difflib.get_close_matches(pattern, known, n=3, cutoff=0.4) or known[:3]


def _aliases(program: Program, graph: Graph) -> dict[str, str]:
    """Every name of a tensor -> the name that the graph uses; they differ where weights are tied."""
    tensors = program.tensors()
    canonical = {id(tensors[name]): name for name in graph.parameters}
    return {name: canonical[id(tensor)] for name, tensor in tensors.items()}


def _owners(graph: Graph, group: ChannelGroup) -> list[str]:
    """Searched weights whose output channels lie in a group."""
    return [name for name in graph.searched_weights if group.name in graph.row_units(name)]


def _by_group(
    argument: str, count: Count, names: Mapping[str, str], owners: Mapping[str, Sequence[str]], join: Any
) -> dict[str, int]:
    """A number per group; where several patterns match it, joined."""
    if not isinstance(count, Mapping):
        return dict.fromkeys(owners, count)
    found = dict.fromkeys(owners, 1)
    grouped = {weight for weights in owners.values() for weight in weights}
    for pattern, value in count.items():
        matched = _found(argument, pattern, names, grouped)
        for group, weights in owners.items():
            if not set(weights).isdisjoint(matched):
                found[group] = join(found[group], value)
    return found


def _why_fixed(
    group: ChannelGroup, owners: Sequence[str], weight_bits: Mapping[str, tuple[int, ...]], rule: UnitRule
) -> str | None:
    if group.frozen is not None:
        return group.frozen
    if group.units == 1:
        return "the only channel"
    kept = next((name for name in owners if 0 not in weight_bits[name]), None)
    if kept is not None:
        return f"0 is not among the widths of `{kept}`"
    if rule.fewest(group.units) == group.units:
        return f"{rule.at_least} channels at least, a multiple of {rule.multiple_of}, are all there are"
    return None


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def _are_texts(values: object) -> bool:
    return isinstance(values, Iterable) and all(isinstance(value, str) for value in values)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 1


def _count(argument: str, count: Count) -> Count:
    values = count.values() if isinstance(count, Mapping) else (count,)
    for value in values:
        if not _is_count(value):
            msg = f"`{argument}` is {count!r}; allowed are whole numbers from 1, or pattern -> number; choose one"
            raise FormatError(msg)
    return dict(count) if isinstance(count, Mapping) else count
