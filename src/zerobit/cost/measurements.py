"""Measurements of single layers on a device, as a CSV file.

```
# unit: us
# source: zerobit profile resnet8 with onnxruntime 1.31.1
# machine: x86_64, 2 cores
# channel_multiple: 4
op,in_channels,out_channels,kernel,stride,out_height,out_width,weight_bits,activation_bits,value
conv,16,32,3x3,2x2,16,16,8,8,9.1
```

`op` is "conv", "depthwise" (each output channel reads one input channel) or "linear" (kernel and stride "1";
`out_width` is the number of positions of a sequence). A layer of one spatial dimension has `out_height` 1, kernel "3",
stride "1". Lines that start with "#" may stand before the title line and give unit, source, machine and the multiple
of channels that the measurements are of.
"""

import csv
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zerobit.atomic import replacing
from zerobit.errors import BudgetError
from zerobit.formats import GRID

#: Kinds of layers that can be measured.
OPS = ("conv", "depthwise", "linear")
COLUMNS = (
    "op", "in_channels", "out_channels", "kernel", "stride", "out_height", "out_width", "weight_bits",
    "activation_bits", "value",
)  # fmt: skip
_NOTES = ("unit", "source", "machine", "channel_multiple")


@dataclass(frozen=True)
class Measurement:
    """What one layer took.

    Attributes:
        op: of `OPS`.
        in_channels: that it reads.
        out_channels: that it makes; as many as it reads, if depthwise.
        kernel: extent of the window.
        stride: steps of the window.
        out_height: of the result.
        out_width: of the result; positions of a sequence.
        weight_bits: of all weights.
        activation_bits: of the input.
        value: in the table's unit, positive.
    """

    op: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    out_height: int
    out_width: int
    weight_bits: int
    activation_bits: int
    value: float

    @property
    def layer(self) -> tuple[object, ...]:
        """What stays when channels and widths change."""
        return self.op, self.kernel, self.stride, self.out_height, self.out_width

    @property
    def shape(self) -> tuple[object, ...]:
        """All but the widths: the layer, then its channels."""
        return *self.layer, self.in_channels, self.out_channels


@dataclass(frozen=True)
class Table:
    """Measurements on one device.

    Attributes:
        rows: the measurements.
        unit: of their values.
        source: where they are from.
        machine: what they were made on.
        channel_multiple: all channel counts are multiples of this, or all channels of a layer.
    """

    rows: tuple[Measurement, ...]
    unit: str
    source: str = ""
    machine: str = ""
    channel_multiple: int = 1

    def write(self, path: Path) -> None:
        """Write the CSV file, in one step.

        Args:
            path: of the file.
        """
        text = io.StringIO()
        for name in _NOTES:
            text.write(f"# {name}: {' '.join(str(getattr(self, name)).split())}\n")
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(COLUMNS)
        lines.writerows([_SHOWN.get(c, str)(getattr(row, c)) for c in COLUMNS] for row in self.rows)
        with replacing(path) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")

    @staticmethod
    def read(path: Path, unit: str | None = None) -> "Table":
        """Read a CSV file of measurements.

        Args:
            path: of the file.
            unit: of the values, if the file doesn't say; if both do, they must agree.

        Raises:
            BudgetError: the file is missing, or a line or column of it can't be read; names both.
        """
        try:
            text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a mark before the text
        except (OSError, UnicodeDecodeError) as error:
            msg = f"`path` {str(path)!r} can't be read ({error}); it must be a CSV file of measurements; check the name"
            raise BudgetError(msg) from None
        return parse_table(text, path.name, unit)


def parse_table(text: str, name: str, unit: str | None = None) -> Table:
    """Measurements from the text of a CSV file.

    Args:
        text: of the file.
        name: of the file, for messages.
        unit: as in `Table.read`.

    Raises:
        BudgetError: a line or column can't be read; names both.
    """
    notes, start = _notes(text, name)
    if unit is not None and notes.setdefault("unit", unit) != unit:
        msg = f"`unit` is {unit!r}, but {name} says {notes['unit']!r}; leave the argument out or correct the file"
        raise BudgetError(msg)
    if not notes.get("unit"):
        msg = f"`unit` of {name} is not known; allowed is a first line such as '# unit: us', or the argument; give one"
        raise BudgetError(msg)
    multiple = int(notes.pop("channel_multiple", "1"))
    reader = csv.reader(io.StringIO("\n".join(text.splitlines()[start:])), strict=True)
    rows: list[Measurement] = []
    try:
        titles = next(reader, [])
        _check_titles(titles, _Place(name, start + 1))
        for cells in filter(None, reader):
            place = _Place(name, start + reader.line_num)
            rows += [_row(dict(zip(titles, cells, strict=False)), len(cells), place)]
    except csv.Error as error:
        _Place(name, start + reader.line_num).fail("is not CSV", str(error), "quote cells as CSV files do")
    if not rows:
        _Place(name, start + 1).fail("is the last line", "nothing", "add at least one line of measurements")
    return Table(tuple(rows), channel_multiple=multiple, **notes)


@dataclass(frozen=True)
class _Place:
    """Where in a file something is wrong."""

    file: str
    line: int
    column: str = ""

    def fail(self, was: str, allowed: str, advice: str) -> Any:
        column = f", column `{self.column}`" if self.column else ""
        msg = f"{self.file}, line {self.line}{column} {was}; allowed is {allowed}; {advice}"
        raise BudgetError(msg)


def _notes(text: str, name: str) -> tuple[dict[str, str], int]:
    """What the lines before the titles say, and how many there are."""
    notes: dict[str, str] = {}
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    for i, line in enumerate(lines[:start]):
        key, colon, value = line.lstrip("# ").partition(":")
        if colon and key.strip() in _NOTES:
            if key.strip() in notes:
                _Place(name, i + 1).fail(f"says {key.strip()!r} again", "once", "remove one of the lines")
            notes[key.strip()] = value.strip()
            if key.strip() == "channel_multiple":
                _whole(value.strip(), _Place(name, i + 1, "channel_multiple"))
    return notes, start


def _check_titles(titles: list[str], place: _Place) -> None:
    if sorted(titles) != sorted(COLUMNS):
        place.fail(f"has the titles {titles}", f"{COLUMNS}, each once", "write these")


def _row(cells: Mapping[str, str], count: int, place: _Place) -> Measurement:
    if count != len(COLUMNS):
        place.fail(f"has {count} cells", str(len(COLUMNS)), "give one for each title")
    at = {column: _Place(place.file, place.line, column) for column in COLUMNS}
    row = Measurement(**{column: _READERS.get(column, _whole)(cells[column].strip(), at[column]) for column in COLUMNS})
    if len(row.kernel) != len(row.stride):
        at["stride"].fail(f"is {cells['stride']!r}", "one step for each extent of the kernel", "give as many")
    if row.op != "linear" and len(row.kernel) != 2 and row.out_height != 1:
        advice = "write two extents, such as 3x3, or 1 in `out_height`"
        what = f"is {cells['kernel']!r}, where `out_height` is {row.out_height}"
        at["kernel"].fail(what, "one extent for each dimension", advice)
    if row.op == "linear" and (set(row.kernel) != {1} or set(row.stride) != {1}):
        at["kernel"].fail("has a window", "kernel 1 and stride 1 of a linear layer", "write 1 in both")
    if row.op == "depthwise" and row.in_channels != row.out_channels:
        at["in_channels"].fail(f"is {row.in_channels}", f"{row.out_channels}, the `out_channels`", "write the same")
    return row


def _op(text: str, place: _Place) -> str:
    return text if text in OPS else place.fail(f"is {text!r}", str(OPS), "choose one of these")


def _whole(text: str, place: _Place) -> int:
    if not _is_whole(text):
        place.fail(f"is {text!r}", "a whole number from 1, of at most nine digits", "write one")
    return int(text)


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0


def _bits(text: str, place: _Place) -> int:
    if text not in map(str, GRID[1:]):
        place.fail(f"is {text!r}", f"a width from {GRID[1:]}", "choose one of these")
    return int(text)


def _extents(text: str, place: _Place) -> tuple[int, ...]:
    parts = text.split("x")
    if not all(_is_whole(part) for part in parts) or len(parts) > 3:
        place.fail(f"is {text!r}", "one to three whole numbers from 1, such as 3x3", "write these")
    return tuple(int(part) for part in parts)


def _positive(text: str, place: _Place) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        place.fail(f"is {text!r}", "a positive number", "write one, or leave the line out")
    return value


_READERS: dict[str, Callable[[str, _Place], Any]] = {
    "op": _op, "kernel": _extents, "stride": _extents, "weight_bits": _bits, "activation_bits": _bits,
    "value": _positive,
}  # fmt: skip


def _joined(extents: tuple[int, ...]) -> str:
    return "x".join(map(str, extents))


#: How a cell is written, if not by `str`.
_SHOWN: dict[str, Callable[[Any], str]] = {"kernel": _joined, "stride": _joined, "value": repr}
