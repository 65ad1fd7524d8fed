"""The script that writes docs/coverage.md finds every way in which the file can be out of date."""

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from matrix.rows import MATRIX

_SCRIPT = Path(__file__).parents[2] / "benchmarks" / "coverage.py"


def _load() -> ModuleType:
    # Under another name: there is a package called coverage.
    spec = importlib.util.spec_from_file_location("coverage_script", _SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


script = _load()
ONE = script.Line("one", "conv", (200, 150), (1000, 900), (3, 2), 2e-16, captured=True, notes=("float: why: x (1)",))
TWO = script.Line("two", "mixed", (10, 10), (0, 0), (1, 0), None, captured=True)
LINES = [ONE, TWO]


def test_what_is_written_is_current() -> None:
    text = script.render(LINES)
    assert script.check(LINES, text, is_whole=True) == []
    assert "| one | conv | yes | 75.0 % | 90.0 % | 2 of 3 | 2e-16 | yes |" in text
    assert "| two | mixed | yes | 100.0 % | - | 0 of 1 | nothing to cut | yes |" in text
    assert "| conv | 1 | 75.0 % | 75.0 % | 90.0 % | 90.0 % |" in text
    assert "### one\n\n- float: why: x (1)\n" in text


@pytest.mark.parametrize("gap", [0.0, 9e-16, 9e-10])
def test_the_size_of_rounding_errors_may_differ(gap: float) -> None:
    assert script.check([replace(ONE, cut=gap), TWO], script.render(LINES), is_whole=True) == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (replace(ONE, weights=(200, 140)), r"one: the file has .*75\.0 %.*; now it is .*70\.0 %"),
        (replace(ONE, macs=(1000, 0)), r"one: the file has"),
        (replace(ONE, groups=(3, 1)), r"one: the file has .*2 of 3.*1 of 3"),
        (replace(ONE, cut=None), r"one: the file has .*nothing to cut"),
        (replace(ONE, cut=1e-8), r"one: cut networks differ from masked ones by 1e-08"),
        (replace(ONE, problem="no"), r"one: no"),
        (replace(ONE, name="three"), r"three: the file has 'no row'"),
        (replace(ONE, notes=()), r"one: the file's reasons"),
        (replace(ONE, notes=("float: why: x (2)",)), r"one: the file's reasons"),
    ],
    ids=["weights", "macs", "groups", "nothing", "cut", "problem", "name", "no_reasons", "reasons"],
)
def test_a_difference_is_found(line: object, expected: str) -> None:
    wrong = script.check([line, TWO], script.render(LINES), is_whole=False)
    assert re.search(expected, "\n".join(wrong))


def test_a_row_that_is_no_more_is_found_when_all_are_measured() -> None:
    text = script.render(LINES)
    assert script.check([TWO], text, is_whole=False) == []
    assert script.check([TWO], text, is_whole=True) == ["one: no such row in the matrix"]


def test_sums_of_families_are_compared() -> None:
    text = script.render(LINES).replace("| conv | 1 | 75.0 %", "| conv | 1 | 76.0 %")
    assert script.check(LINES, text, is_whole=True) == [f"the file lacks {script.families(LINES)[2]!r}"]


def test_a_network_that_fails_is_a_row() -> None:
    """With its reason, and not the end of the table."""
    line = script.Line("one", "conv", problem="CaptureError: why")
    assert line.cells() == ("one", "conv", "no", "-", "-", "0 of 0", "nothing to cut", "no")
    assert not line.is_good


def test_the_file_holds_the_rows_of_the_matrix() -> None:
    text = script.FILE.read_text()
    rows = [row.split(" | ")[0].removeprefix("| ") for row in text.splitlines() if row.startswith("| ")]
    assert [name for name in rows if name in {row.name for row in MATRIX}] == [row.name for row in MATRIX]
