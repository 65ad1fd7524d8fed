"""`BitDist`: rows are probabilities, and keep and bits are their expectations."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from zerobit.bits import BitDist, blend
from zerobit.formats import GRID

GATES = st.lists(st.floats(0, 1), min_size=1, max_size=6)
WIDTHS = st.lists(st.sampled_from(GRID[1:]), min_size=1, unique=True).map(sorted)


def _dist(gates: list[float], widths: list[int], seed: int) -> tuple[BitDist, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    gate = torch.tensor(gates, dtype=torch.float64)
    width = torch.rand(len(gates), len(widths), generator=random, dtype=torch.float64).softmax(1)
    return BitDist.from_gate_and_width(gate, width, widths), gate, width


@given(gates=GATES, widths=WIDTHS, seed=st.integers(0, 99))
def test_gate_and_width_compose(gates: list[float], widths: list[int], seed: int) -> None:
    dist, gate, width = _dist(gates, widths, seed)
    assert dist.p.shape == (len(gates), len(GRID))
    assert dist.p.dtype == torch.float64
    torch.testing.assert_close(dist.p.sum(1), torch.ones(len(gates), dtype=torch.float64), rtol=0, atol=1e-15)
    assert torch.equal(dist.p[:, 0], 1 - gate)
    for column, bits in enumerate(widths):
        assert torch.equal(dist.p[:, GRID.index(bits)], gate * width[:, column])
    assert not dist.p[:, [i for i, b in enumerate(GRID) if b and b not in widths]].any()


@given(gates=GATES, widths=WIDTHS, seed=st.integers(0, 99))
def test_keep_and_bits_are_expectations(gates: list[float], widths: list[int], seed: int) -> None:
    dist, gate, width = _dist(gates, widths, seed)
    expected = gate * (width @ torch.tensor(widths, dtype=torch.float64))
    torch.testing.assert_close(dist.keep, gate, rtol=1e-15, atol=1e-15)
    torch.testing.assert_close(dist.bits, expected, rtol=1e-14, atol=1e-14)


@given(st.integers(0, 8 * 64).map(lambda n: n / 64))
def test_a_width_is_blended_from_its_two_neighbours(bits: float) -> None:
    dist = BitDist(blend(torch.tensor([bits], dtype=torch.float64), GRID))
    used = [i for i, p in enumerate(dist.p[0].tolist()) if p]
    assert used == list(range(used[0], used[-1] + 1))
    assert len(used) == (1 if bits in GRID else 2)
    assert GRID[used[0]] <= bits <= GRID[used[-1]]
    assert dist.p.sum() == 1
    assert dist.bits.tolist() == [bits]


@given(st.lists(st.sampled_from(GRID), min_size=1, max_size=8))
def test_integer_widths_are_exact(bits: list[int]) -> None:
    blended = BitDist(blend(torch.tensor(bits, dtype=torch.float64), GRID))
    hot = BitDist.one_hot(bits)
    assert torch.equal(blended.p, hot.p)
    assert hot.bits.tolist() == bits
    assert hot.keep.tolist() == [float(b > 0) for b in bits]
    assert torch.equal(BitDist.one_hot(torch.tensor(bits)).p, hot.p)


def test_gradients_reach_gate_width_and_bits() -> None:
    gate = torch.tensor([0.3, 0.9], dtype=torch.float64, requires_grad=True)
    width = torch.full((2, 3), 1 / 3, dtype=torch.float64, requires_grad=True)
    bits = torch.tensor([1.0, 4.5], dtype=torch.float64, requires_grad=True)
    BitDist.from_gate_and_width(gate, width, (2, 4, 8)).bits.sum().backward()
    BitDist(blend(bits, GRID)).bits.sum().backward()
    assert gate.grad is not None
    assert width.grad is not None
    assert bits.grad is not None
    torch.testing.assert_close(gate.grad, torch.full((2,), 14 / 3, dtype=torch.float64))
    torch.testing.assert_close(width.grad, torch.tensor([[0.3], [0.9]]).double() * torch.tensor([2.0, 4, 8]))
    torch.testing.assert_close(bits.grad, torch.ones(2, dtype=torch.float64))


def test_who_asks_first_without_gradients_takes_none_from_others() -> None:
    """What is remembered of a grid would be an inference tensor for the rest of the process."""
    widths = (3, 5, 7)
    gate, share = torch.ones(2, dtype=torch.float64), torch.full((2, 3), 1 / 3, dtype=torch.float64)
    with torch.inference_mode():
        BitDist.from_gate_and_width(gate, share, widths)
    BitDist.from_gate_and_width(gate, share.requires_grad_(), widths).bits.sum().backward()
    assert share.grad is not None
