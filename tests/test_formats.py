"""Number formats: their levels, what is stored, what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerobit.errors import FormatError
from zerobit.formats import GRID, Format, check_bits


@pytest.mark.parametrize(
    ("bits", "signed", "full_range", "low", "high"),
    [
        (2, True, False, -1, 1),
        (2, True, True, -2, 1),
        (2, False, False, 0, 3),
        (3, True, False, -3, 3),
        (4, True, False, -7, 7),
        (8, True, False, -127, 127),
        (8, True, True, -128, 127),
        (8, False, False, 0, 255),
        (8, False, True, 0, 255),
    ],
)
def test_levels(bits: int, signed: bool, full_range: bool, low: int, high: int) -> None:
    number = Format(bits, signed=signed, full_range=full_range)
    assert (number.low, number.high) == (low, high)


@given(bits=st.sampled_from(GRID[1:]), signed=st.booleans(), full_range=st.booleans())
def test_a_format_has_two_to_the_bits_levels_but_for_the_one_a_symmetric_grid_leaves_out(
    bits: int, signed: bool, full_range: bool
) -> None:
    number = Format(bits, signed=signed, full_range=full_range)
    left_out = 1 if signed and not full_range else 0
    assert number.high - number.low + 1 == 2**bits - left_out


@pytest.mark.parametrize(
    ("storage", "expected"),
    [((2, 4, 8), (2, 4, 4, 8, 8, 8, 8)), ((8,), (8,) * 7), ((2, 3, 4, 5, 6, 7, 8), (2, 3, 4, 5, 6, 7, 8))],
)
def test_storage_is_the_narrowest_that_fits(storage: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert tuple(Format(b, signed=True, storage=storage).storage_bits for b in GRID[1:]) == expected


@pytest.mark.parametrize("bits", [0, 1, 9, -2])
def test_width_off_the_grid_is_refused(bits: int) -> None:
    with pytest.raises(FormatError, match=r"`bits`"):
        Format(bits, signed=True)


def test_width_that_the_target_cannot_store_is_refused() -> None:
    with pytest.raises(FormatError, match=r"`bits` is 8, but the target stores at most 4 bits"):
        Format(8, signed=True, storage=(2, 4))


@pytest.mark.parametrize(
    ("widths", "allow_zero"),
    [((1,), True), ((0, 1, 8), True), ((9,), True), ((0, 8), False), ((0,), True), ((), True), ((), False)],
)
def test_widths_that_cannot_be_are_refused_by_the_argument_name(widths: tuple[int, ...], allow_zero: bool) -> None:
    with pytest.raises(FormatError, match=r"`weight_bits` holds .*allowed are .*choose"):
        check_bits("weight_bits", widths, allow_zero=allow_zero)


@given(st.lists(st.sampled_from(GRID), min_size=1).filter(any))
def test_widths_come_back_sorted_and_unique(widths: list[int]) -> None:
    found = check_bits("weight_bits", tuple(widths), allow_zero=True)
    assert list(found) == sorted(set(widths))
