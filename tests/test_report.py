"""Tables and pages: everything that is in them can be read."""

import io

import pytest
from rich.console import Console

from zerobit.report import Stage, html_page, stage_table


def _stages() -> list[Stage]:
    costs = {"ne16.cycles": "123,456 cycle", "ram": "49,152 B", "mpic.energy": "1.234 mJ", "cortex_m.flash": "61,234 B"}
    numbers = 0.8150, 0.8147, 309_440.0, 12_501_632.0
    return [Stage("float", *numbers), *(Stage(n, *numbers, costs) for n in ("searched", "fine-tuned", "exported"))]


def _text(metric: str) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(stage_table(_stages(), metric))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_table_of_many_costs_is_whole_in_80_columns() -> None:
    text = _text("accuracy")
    for stage in _stages():
        assert stage.name in text
        for name, value in stage.costs.items():
            assert name in text
            assert text.count(value) == 3
    assert text.count("12,501,632") == 4
    assert "\u2026" not in text


@pytest.mark.parametrize(("metric", "shown"), [("accuracy", ("81.50 %", "81.47 %")), ("r2", ("0.815", "0.8147"))])
def test_only_accuracies_are_percentages(metric: str, shown: tuple[str, str]) -> None:
    page = html_page("Title", _stages(), [], {}, metric)
    for text in (_text(metric), page):
        assert all(text.count(value) >= 4 for value in shown)
        assert f"val {metric}" in text
    assert page.count("<td>123,456 cycle") == 3
