"""C text: identifiers, numbers, arrays, structs. Names from a model only get in through `identifier`."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from zerobit.errors import ExportError
from zerobit.export.c99.steps import Constants, Field

_LINE = 116
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_KEYWORDS = frozenset(
    ["auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern", "float",
     "for", "goto", "if", "inline", "int", "long", "main", "register", "restrict", "return", "short", "signed",
     "sizeof", "static", "struct", "switch", "typedef", "union", "unsigned", "void", "volatile", "while"]
)  # fmt: skip


def identifier(name: str) -> str:
    """Letters, digits and underscores of any name.

    Args:
        name: from a model, not trusted.
    """
    text = re.sub(r"[^A-Za-z0-9_]", "_", name)[:80] or "tensor"
    return f"_{text}" if text[0].isdigit() else text


def checked_prefix(name: str) -> str:
    """The prefix of a library's functions.

    Raises:
        ExportError: it can't begin an identifier in C.
    """
    if not _NAME.fullmatch(name) or name in _KEYWORDS:
        msg = (
            f"`name` is {name!r}; it begins the names of C functions: allowed are 1 to 32 lower-case letters, digits "
            "and '_', a letter first, and no word of C; choose another"
        )
        raise ExportError(msg)
    return name


def wrapped(items: Iterable[str], indent: str = "    ") -> str:
    """Items behind commas, in lines."""
    lines, line = [], indent
    for item in items:
        if len(line) + len(item) + 2 > _LINE and line.strip():
            lines.append(line.rstrip())
            line = indent
        line += f"{item}, "
    return "\n".join([*lines, line.rstrip()])


def array(type_: str, name: str, values: NDArray[np.generic] | Sequence[int]) -> str:
    """A constant array."""
    body = wrapped(map(number, np.asarray(values).reshape(-1).tolist()))
    return f"static const {type_} {name}[{np.size(values)}] = {{\n{body}\n}};\n"


def number(value: int) -> str:
    """An integer constant; the lowest of 32 bits is no literal in C."""
    return "(-2147483647 - 1)" if value == -(2**31) else f"{value}u" if value > 2**31 - 1 else str(value)


def real(value: float | np.floating) -> str:
    """A float constant that gives exactly this float32."""
    text = f"{np.float32(value):.9g}"
    return f"{text}f" if {".", "e", "n"} & set(text) else f"{text}.0f"


def struct(fields: Mapping[str, Field], name: str) -> tuple[list[str], list[str]]:
    """(arrays that it points to, entries between its braces)."""
    arrays: list[str] = []
    entries: list[str] = []
    for field, value in fields.items():
        match value:
            case Constants():
                own = f"{name}_{field}"
                arrays.append(array(value.type, own, value.values))
                text = own
            case Mapping():
                inner, parts = struct(value, f"{name}_{field}")
                arrays += inner
                text = f"{{{', '.join(parts)}}}"
            case tuple():
                text = f"{{{', '.join(map(number, value))}}}"
            case None:
                text = "NULL"
            case _:
                text = number(value)
        entries.append(f".{field} = {text}")
    return arrays, entries


def definition(type_: str, name: str, fields: Mapping[str, Field]) -> Iterator[str]:
    """A struct of constants, behind the arrays it points to."""
    arrays, entries = struct(fields, name)
    yield from arrays
    yield f"static const {type_} {name} = {{\n{wrapped(entries)}\n}};\n"
