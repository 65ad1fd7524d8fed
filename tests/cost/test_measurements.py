"""Measurements of layers: fits to them, and their files."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from own_costs import EVERY, TERMS, WIDTHS, layer_rows, synthetic
from zerobit.cost import fit as fitting
from zerobit.cost.fit import fit, fit_terms, layer_splits, splits
from zerobit.cost.measured import MeasuredCost, Quality, parse_fit
from zerobit.cost.measurements import COLUMNS, OPS, Measurement, Table, parse_table
from zerobit.cost.terms import Widths, amounts_of_rows, term
from zerobit.errors import BudgetError
from zerobit.formats import GRID


@pytest.mark.parametrize(
    "terms",
    [
        {"call": 2.0, "macs": 1e-4},
        {"call": 0.5, "macs": 1e-4, "outputs": 3e-3},
        {"call": 1.0, "macs": 1e-4, "macs_w>4": 2e-4},
        {"call": 1.0, "inputs": 1e-2, "weight_bytes": 5e-3},
        {"call": 1.0, "tiles/16": 1e-2},
    ],
    ids=lambda t: "+".join(t),
)
def test_a_fit_finds_the_cost_that_measurements_were_made_with(terms: dict[str, float]) -> None:
    widths = Widths((2, 4, 8), (8,))
    rows = layer_rows(synthetic(terms, widths))
    found = fit(Table(rows, "us"), "made up")
    for op, coefficients in found.terms.items():
        ours = [row for row in rows if row.op == op]
        amounts = amounts_of_rows(ours, widths)
        predicted = sum(c * term(t, amounts, widths).numpy() for t, c in coefficients.items())
        np.testing.assert_allclose(predicted, [row.value for row in ours], rtol=1e-6)
    assert found.terms["conv"] == pytest.approx(terms, rel=1e-5)
    assert set(found.qualities) == {"channels", "layers"}
    for quality in found.qualities.values():
        assert quality.error < 1e-6
        assert quality.rank_correlation > 0.999999
    assert found.qualities["channels"].rows == len(rows)


def test_coefficients_are_the_best_that_are_not_negative() -> None:
    """Where more channels take less time, plain least squares would want some below 0.

    At the best of those from 0 on, the squared error has no slope along any that is not 0.
    """
    rng, widths = np.random.default_rng(0), Widths((2, 4, 8), (8,))
    rows = layer_rows(lambda row: float(rng.uniform(1, 2)) * 100 / row.out_channels)
    for op, coefficients in fit(Table(rows, "us"), "falling").terms.items():
        ours = [row for row in rows if row.op == op]
        amounts, values = amounts_of_rows(ours, widths), np.array([row.value for row in ours])
        relative = np.stack([term(t, amounts, widths).numpy() / values for t in coefficients], 1)
        assert all(c > 0 for c in coefficients.values())
        slope = relative.T @ (relative @ list(coefficients.values()) - 1)
        np.testing.assert_allclose(slope / np.linalg.norm(relative, axis=0), 0, atol=1e-9)


def test_each_shape_is_held_out_once_with_all_its_widths() -> None:
    rows = layer_rows(lambda row: 1.0)
    parts = splits(rows, seed=3)
    assert len(parts) == 4
    held = [row for _, theirs in parts for row in theirs]
    assert sorted(map(repr, held)) == sorted(map(repr, rows))
    for ours, theirs in parts:
        assert len(ours) + len(theirs) == len(rows)
        assert {row.shape for row in ours}.isdisjoint({row.shape for row in theirs})
        assert len({row.shape for row in theirs}) == pytest.approx(len({row.shape for row in rows}) / 4, abs=1)
    assert splits(rows, seed=3) == parts
    assert splits(rows, seed=4) != parts


def test_each_layer_is_held_out_with_all_its_channel_counts() -> None:
    rows = layer_rows(lambda row: 1.0)
    parts = layer_splits(rows)
    assert len(parts) == len({row.layer for row in rows}) == 12
    for ours, theirs in parts:
        assert len({row.layer for row in theirs}) == 1
        assert theirs[0].layer not in {row.layer for row in ours}
        assert len(ours) + len(theirs) == len(rows)


def test_what_is_held_out_does_not_enter_the_fit_that_predicts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[set[str]] = []
    predicted: list[set[str]] = []

    def fit_spied(rows: list[Measurement], widths: Widths, seed: int = 0) -> dict[str, dict[str, float]]:
        fitted.append(set(map(repr, rows)))
        return fit_terms(rows, widths, seed)

    def amounts_spied(rows: list[Measurement], widths: Widths) -> object:
        if sys._getframe(1).f_code.co_name == "predicted":
            predicted.append(set(map(repr, rows)))
            assert predicted[-1].isdisjoint(fitted[-1])
        return amounts_of_rows(rows, widths)

    monkeypatch.setattr(fitting, "fit_terms", fit_spied)
    monkeypatch.setattr(fitting, "amounts_of_rows", amounts_spied)
    rows = layer_rows(synthetic({"call": 1.0, "macs": 1e-3}, Widths((2, 4, 8), (8,))))
    fit(Table(rows, "us"), "spied")
    assert len(fitted) == 4 + 12 + 1
    assert len(predicted) == 4 * len(OPS) + 12
    assert set().union(*predicted) == {repr(row) for row in rows}


def test_held_out_errors_are_large_where_the_rest_says_nothing_of_a_layer() -> None:
    """One layer takes seven times what the others tell: a fit that had seen it would know."""
    strange = ("conv", (3, 3), (1, 1), 16, 16)
    made = synthetic({"call": 1.0, "macs": 1e-3}, Widths((2, 4, 8), (8,)))
    rows = [row for row in layer_rows(lambda row: made(row) * (7 if row.layer == strange else 1)) if row.op == "conv"]
    ours, theirs = next(parts for parts in layer_splits(rows) if parts[1][0].layer == strange)
    pairs = fitting.predicted(ours, theirs, Widths((2, 4, 8), (8,)), 0)
    assert [p / m for p, m in pairs] == pytest.approx([1 / 7] * len(theirs))


@pytest.mark.parametrize(("count", "expected"), [(1, {"macs": 1e-3 + 2 / 9216}), (2, {"call": 2.0, "macs": 1e-3}),
                                                (3, {"call": 2.0, "macs": 1e-3})])  # fmt: skip
def test_few_shapes_give_arithmetic_and_calls_alone(count: int, expected: dict[str, float]) -> None:
    shapes = [Measurement("conv", 8 * i, 8, (3, 3), (1, 1), 4, 4, 8, 8, 2 + 9.216 * i) for i in range(1, count + 1)]
    assert fit(Table(tuple(shapes), "us"), "few").terms == {"conv": pytest.approx(expected)}


def test_no_measurements_are_refused() -> None:
    with pytest.raises(BudgetError, match="`table` 'nothing' has no rows"):
        fit(Table((), "us", "nothing"), "x")


# Files.

_SIZES = st.integers(1, 10**9 - 1)
_LINE = st.text(st.characters(exclude_categories=("C", "Z")), max_size=20)


@st.composite
def measurements(draw: st.DrawFn) -> Measurement:
    """Any legal row."""
    op, rank = draw(st.sampled_from(OPS)), draw(st.integers(1, 3))
    window = st.tuples(*[st.just(1) if op == "linear" else _SIZES] * rank)
    ins = draw(_SIZES)
    value = draw(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
    kernel, stride = draw(window), draw(window)
    height = draw(_SIZES) if op == "linear" or rank == 2 else 1
    return Measurement(
        op, ins, ins if op == "depthwise" else draw(_SIZES), kernel, stride, height, draw(_SIZES),
        draw(st.sampled_from(GRID[1:])), draw(st.sampled_from(GRID[1:])), value,
    )  # fmt: skip


@given(rows=st.lists(measurements(), min_size=1, max_size=4), unit=_LINE.filter(bool), notes=st.tuples(_LINE, _LINE))
def test_what_is_written_as_csv_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Measurement], unit: str, notes: tuple[str, str]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "made" / "table.csv"
    table = Table(tuple(rows), unit, *notes, channel_multiple=4)
    table.write(path)
    assert Table.read(path) == table
    assert [p.name for p in path.parent.iterdir()] == ["table.csv"]


GOOD = ["conv", "16", "32", "3x3", "2x2", "8", "8", "4", "8", "2.5"]


def _text(*lines: list[str], notes: str = "# unit: us\n") -> str:
    return notes + "\n".join(",".join(cells) for cells in (COLUMNS, *lines)) + "\n"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("op", "pool"), ("in_channels", "0"), ("in_channels", "-1"), ("out_channels", "1.5"), ("out_channels", ""),
        ("out_channels", "9" * 5000), ("kernel", "3x"), ("kernel", "0x3"), ("kernel", "3x3x3x3"), ("stride", "2"),
        ("stride", "a"), ("out_height", "x"), ("out_width", "\u00b2"), ("weight_bits", "1"), ("weight_bits", "16"),
        ("activation_bits", "0"), ("value", "0"), ("value", "-1"), ("value", "nan"), ("value", "inf"),
        ("value", "fast"),
    ],
)  # fmt: skip
def test_a_cell_that_cannot_be_is_named_by_line_and_column(column: str, value: str) -> None:
    bad = [value if c == column else good for c, good in zip(COLUMNS, GOOD, strict=True)]
    with pytest.raises(BudgetError, match=rf"t\.csv, line 4, column `{column}` is '?{value[:20]}.*; allowed is .*; "):
        parse_table(_text(GOOD, bad), "t.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_text(GOOD, notes=""), r"`unit` of t.csv is not known"),
        (_text(GOOD, GOOD[:-1]), r"t.csv, line 4 has 9 cells"),
        (_text(GOOD, [*GOOD, "1"]), r"t.csv, line 4 has 11 cells"),
        (_text(), r"t.csv, line 2 .*at least one line"),
        ("# unit: us\n", r"t.csv, line 2 has the titles \[\]"),
        ("# unit: us\nop,value\n", r"t.csv, line 2 has the titles \['op', 'value'\]"),
        (_text(["linear", *GOOD[1:]]), r"t.csv, line 3, column `kernel` has a window"),
        (
            _text([*GOOD[:3], "3", "2", *GOOD[5:]]),
            r"t.csv, line 3, column `kernel` is '3', where .* is 8; .*3x3",
        ),
        (_text(["depthwise", *GOOD[1:]]), r"t.csv, line 3, column `in_channels` is 16; allowed is 32"),
        (_text(GOOD, notes="# unit: us\n# unit: ms\n"), r"t.csv, line 2 says 'unit' again"),
        (_text(GOOD, notes="# unit: us\n# channel_multiple: 0\n"), r"t.csv, line 2, column `channel_multiple` is '0'"),
        (_text(['"conv', *GOOD[1:]]), r"t.csv, line 3 is not CSV"),
    ],
)
def test_a_table_that_cannot_be_read_says_where(text: str, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        parse_table(text, "t.csv")


@given(st.text(st.sampled_from('#unit: s\n,x13.conv-"\x00\r'), max_size=60), st.booleans())
def test_any_other_text_is_refused_with_its_name(text: str, good_titles: bool) -> None:
    whole = "# unit: us\n" + (",".join(COLUMNS) + "\n" if good_titles else "") + text
    with pytest.raises(BudgetError, match=r"t\.csv"):
        parse_table(whole, "t.csv")


def test_columns_may_be_in_any_order_and_the_unit_an_argument() -> None:
    order = [*range(len(COLUMNS))][::-1]
    text = "\n".join(",".join(cells[i] for i in order) for cells in (COLUMNS, GOOD))
    (row,) = parse_table(text, "t.csv", "ms").rows
    assert row == Measurement("conv", 16, 32, (3, 3), (2, 2), 8, 8, 4, 8, 2.5)
    with pytest.raises(BudgetError, match=r"`unit` is 'ms', but t\.csv says 'us'"):
        parse_table(_text(GOOD), "t.csv", "ms")


_NUMBERS = st.floats(0, allow_nan=False, allow_infinity=False)


@given(
    terms=st.dictionaries(st.sampled_from(OPS), st.dictionaries(st.sampled_from(TERMS), _NUMBERS), min_size=1),
    texts=st.tuples(*[st.text(st.characters(codec="utf-8"), max_size=10)] * 4),
    qualities=st.dictionaries(
        st.sampled_from(["channels", "layers"]), st.builds(Quality, st.integers(1, 9), _NUMBERS, st.floats(-1, 1))
    ),
)
def test_what_is_written_as_toml_is_read_again(
    tmp_path_factory: pytest.TempPathFactory,
    terms: dict[str, dict[str, float]],
    texts: tuple[str, str, str, str],
    qualities: dict[str, Quality],
) -> None:
    path = tmp_path_factory.mktemp("toml") / "fit.toml"
    name, unit, source, machine = texts
    cost = MeasuredCost(name, unit, terms, WIDTHS, source, machine, 8, qualities)
    cost.save(path)
    assert MeasuredCost.load(path) == cost
    assert [p.name for p in path.parent.iterdir()] == ["fit.toml"]


@pytest.mark.parametrize("text", ["a\x7fb", 'quote " and \\', "tab\tnew\nline", "\U0001f600 \u00e4"])
def test_any_text_can_be_written_as_toml(tmp_path: Path, text: str) -> None:
    replace(EVERY, name=text).save(tmp_path / "fit.toml")
    assert MeasuredCost.load(tmp_path / "fit.toml").name == text


_FIT = {
    "kind": "fit", "name": "n", "unit": "us", "source": "s", "machine": "m", "channel_multiple": 1,
    "weight_bits": [2, 8], "activation_bits": [8], "terms": {"conv": {"macs": 1.0}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("kind", "table"), ("name", 3), ("unit", None), ("source", []), ("machine", 1.0), ("channel_multiple", 0),
        ("channel_multiple", True), ("weight_bits", []), ("weight_bits", [8, 2]), ("weight_bits", [1]),
        ("weight_bits", [True]), ("activation_bits", 8), ("terms", 3), ("terms.conv", 3), ("terms.pool", {}),
        ("terms.conv.mac", 1.0), ("terms.conv.macs", -1.0), ("terms.conv.macs", "1"), ("terms.conv.macs_w>8", 1.0),
        ("terms.conv.macs_a>2x", 1.0), ("terms.conv.tiles/0", 1.0), ("terms.conv.windows/4", 1.0),
        ("terms.conv.macs", float("inf")), ("terms.conv.macs", True), ("quality", 1), ("quality.channels", 1),
        ("quality.channels.rows", 0), ("extra", 1),
    ],
)  # fmt: skip
def test_an_entry_that_cannot_be_is_named(entry: str, value: object) -> None:
    first, *rest = entry.split(".")
    data = {**_FIT, "quality": {"channels": {"rows": 3, "error": 0.1, "rank_correlation": 0.9}}}
    assert parse_fit(data, "f.toml").name == "n"
    inner: dict[str, object] = {first: value}
    if rest:
        deep: object = value
        for key in reversed(rest[1:]):
            deep = {key: deep}
        old = data[first]
        assert isinstance(old, dict)
        kept = {} if not isinstance(deep, dict) else old.get(rest[0], {})
        inner = {
            first: {**old, rest[0]: {**kept, **deep} if isinstance(deep, dict) and entry != "terms.pool" else deep}
        }
    with pytest.raises(BudgetError, match=f"`{entry}` of f.toml is .*; allowed is "):
        parse_fit({**data, **inner}, "f.toml")


@pytest.mark.parametrize("missing", sorted(_FIT))
def test_an_entry_that_is_missing_is_named(missing: str) -> None:
    with pytest.raises(BudgetError, match=f"`{missing}` of f.toml is missing"):
        parse_fit({k: v for k, v in _FIT.items() if k != missing}, "f.toml")


@pytest.mark.parametrize("suffix", [".csv", ".toml"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    path = tmp_path / f"old{suffix}"
    path.write_text("old")

    def fail(*args: object, **kwargs: object) -> None:
        msg = "disk full"
        raise OSError(msg)

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        EVERY.save(path) if suffix == ".toml" else Table(layer_rows(lambda row: 1.0), "us").write(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"
