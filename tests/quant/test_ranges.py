"""Steps found from data."""

import pytest
import torch

from zerobit.quant import ranges
from zerobit.quant.ranges import least_squares_step, min_max_step


def _error(x: torch.Tensor, step: torch.Tensor, low: int, high: int) -> torch.Tensor:
    s = step[:, None]
    return (s * torch.clamp(torch.round(x / s), low, high) - x).square().sum(1)


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize(("low", "high"), [(-1, 1), (-3, 3), (-7, 7), (-127, 127), (0, 255), (0, 3)])
def test_least_squares_is_never_worse_than_the_largest_magnitude(low: int, high: int, heavy: bool) -> None:
    x = torch.randn(16, 200, generator=torch.Generator().manual_seed(0))
    x = x**3 if heavy else x
    x = x.abs() if low == 0 else x
    found = _error(x, least_squares_step(x, low, high), low, high)
    scaled = _error(x, x.abs().amax(1) / high, low, high)
    assert (found <= scaled * (1 + 1e-4)).all()  # both try the largest magnitude, up to its rounding
    if high < 8 and not heavy:
        assert (found < scaled).all()
        assert found.sum() < 0.9 * scaled.sum()


def test_a_row_of_zeros_gets_a_positive_step() -> None:
    x = torch.zeros(2, 8)
    x[1, 0] = 1.0
    for step in (least_squares_step(x, -7, 7), min_max_step(x, 4)):
        assert (step > 0).all()
        assert step.isfinite().all()


def test_a_row_of_zeros_can_be_trained() -> None:
    """A branch that starts at zero, as residual branches may, has a step that its first weights are rounded by."""
    x = torch.randn(5, 200, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [0], [4], [0], [2]])
    step = least_squares_step(x, -7, 7)
    assert step[[1, 3]].tolist() == [float(step[4])] * 2
    assert least_squares_step(torch.zeros(2, 3), 0, 255).tolist() == pytest.approx([1 / 255] * 2)


@pytest.mark.parametrize("values", [40, 50_000, 200_000])
def test_rows_do_not_see_each_other(values: int) -> None:
    """Many values are looked at in parts: a part may be some rows, or one."""
    scales = torch.tensor([[1e-6], [1], [10], [1e4], [3]])
    x = torch.randn(5, values, generator=torch.Generator().manual_seed(0)) * scales
    together = least_squares_step(x, -1, 1)
    assert torch.equal(together, torch.cat([least_squares_step(row[None], -1, 1) for row in x]))


@pytest.mark.parametrize("shape", [(16, 27), (64, 576), (3, 50_000)])
def test_clips_tried_together_give_the_step_of_one_after_the_other(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) ** 3
    together = least_squares_step(x, -7, 7)
    monkeypatch.setattr(ranges, "_AT_ONCE", 1)
    assert torch.equal(together, least_squares_step(x, -7, 7))


def test_min_max_step_is_the_published_one() -> None:
    """Motetti et al., IEEE TC 2024, official code: 2 m / (2^b - 1)."""
    x = torch.tensor([[0.5, -3.0], [1.0, 0.0]])
    torch.testing.assert_close(min_max_step(x, 2), torch.tensor([2.0, 2 / 3]), rtol=2e-5, atol=0)
    torch.testing.assert_close(min_max_step(x, 8), torch.tensor([6.0, 2.0]) / 255, rtol=2e-5, atol=0)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_largest_weight_does_not_depend_on_how_a_step_is_stored(bits: int) -> None:
    x = torch.randn(200, 1, generator=torch.Generator().manual_seed(0)).abs().neg() * 10
    step = min_max_step(x, bits)
    for stored in (step, step.log().exp(), step.double().log().float().exp()):
        assert torch.equal(torch.round(x[:, 0] / stored), torch.full((200,), -(2.0 ** (bits - 1))))
