"""Fake quantisation: the fused functions equal the naive ones, values and gradients, and keep one copy."""

from typing import Any

import pytest
import torch
from torch import Tensor

from zerobit.quant.fake import fake_quantize, mix_precisions, quantize
from zerobit.quant.slot import FixedWeightSlot, MinMaxGrid

LEVELS = {
    "one": ([-7.0], [7.0]),
    "symmetric": ([-1.0, -7.0, -127.0], [1.0, 7.0, 127.0]),
    "full range": ([-2.0, -8.0, -128.0], [1.0, 7.0, 127.0]),
}


def _operands(levels: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    low, high = (torch.tensor(x, dtype=torch.float64) for x in LEVELS[levels])
    x = torch.randn(6, 20, generator=random, dtype=torch.float64)
    choice = torch.rand(6, len(low), generator=random, dtype=torch.float64)
    step = torch.rand(6, len(low), generator=random, dtype=torch.float64) * 2 / high + 1e-3
    return x.requires_grad_(), choice.requires_grad_(), step.requires_grad_(), low, high


def _naive(x: Tensor, choice: Tensor, step: Tensor, low: Tensor, high: Tensor, learned: bool) -> Tensor:
    """A stack of copies; the straight-through estimator is spelled out for autograd."""
    total = torch.zeros_like(x)
    for p in range(choice.shape[1]):
        s = step[:, p, None]
        if learned:
            inside = torch.clamp(x / s, low[p], high[p])
            copy = s * (inside + (torch.round(inside) - inside).detach())
        else:
            copy = (s * torch.clamp(torch.round(x / s), low[p], high[p])).detach()
        total = total + choice[:, p, None] * copy
    return total if learned else total + (x - x.detach())


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("levels", LEVELS)
def test_mixture_equals_the_naive_stack_of_copies(levels: str, learned: bool) -> None:
    x, choice, step, low, high = _operands(levels)
    fused = mix_precisions(x, choice, step, low, high, learned=learned)
    naive = _naive(x, choice, step, low, high, learned)
    torch.testing.assert_close(fused, naive, rtol=1e-14, atol=1e-14)
    upstream = torch.randn(fused.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = torch.autograd.grad(naive, (x, choice, step), upstream, allow_unused=True)
    found = torch.autograd.grad(fused, (x, choice, step), upstream, allow_unused=True)
    assert (found[2] is None) == (wanted[2] is None) == (not learned)
    for a, b in zip(found, wanted, strict=True):
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradient_of_a_choice_is_the_inner_product_with_its_copy() -> None:
    x, choice, step, low, high = _operands("symmetric")
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mix_precisions(x, choice, step, low, high).backward(upstream)
    assert choice.grad is not None
    for p in range(3):
        copy = step[:, p, None] * quantize(x, step[:, p, None], low[p], high[p])
        torch.testing.assert_close(choice.grad[:, p], (upstream * copy).sum(1))


def _saved_bytes(run: Any) -> int:
    storages: dict[int, tuple[Tensor, int]] = {}  # holds the tensors: a freed address would be given again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = tensor, storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        keep = run()
    del keep
    return sum(size for _, size in storages.values())


def test_mixture_keeps_one_copy_of_the_weight() -> None:
    x = torch.randn(64, 576, requires_grad=True)
    choice, step = torch.rand(64, 3, requires_grad=True), torch.rand(64, 3, requires_grad=True)
    low, high = (torch.tensor(v) for v in LEVELS["symmetric"])
    copies = {
        "fused": _saved_bytes(lambda: mix_precisions(x, choice, step, low, high)),
        "naive": _saved_bytes(lambda: _naive(x, choice, step, low, high, True)),
    }
    weight = x.untyped_storage().nbytes()
    assert copies["fused"] < 1.1 * weight
    assert copies["naive"] > 3 * weight


def test_many_nets_are_mixed_side_by_side_under_vmap() -> None:
    nets = [_operands("symmetric", seed) for seed in range(4)]
    low, high = nets[0][3:]
    stacked = [torch.stack([net[i].detach() for net in nets]) for i in range(3)]

    def loss(x: Tensor, choice: Tensor, step: Tensor) -> Tensor:
        return mix_precisions(x, choice, step, low, high).square().sum()

    together = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(*stacked)
    for i, net in enumerate(nets):
        alone = torch.autograd.grad(loss(*net[:3]), net[:3])
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-12, atol=1e-12)


def test_published_min_max_quantizer_has_its_lopsided_levels_at_two_bit() -> None:
    """Motetti et al., IEEE TC 2024, official code: -4/3, -2/3, 0 and 2/3 of the largest magnitude."""
    largest = 3.0
    w = torch.linspace(-largest, largest, 1001).reshape(1, -1).requires_grad_()
    grid = MinMaxGrid((2,), w)
    out = grid.mix(w, torch.ones(1, 1))
    levels = torch.tensor([-4 / 3, -2 / 3, 0, 2 / 3]) * largest
    torch.testing.assert_close(out.detach().unique(), levels, rtol=2e-5, atol=0)
    upstream = torch.randn(w.shape)
    out.backward(upstream)
    assert w.grad is not None
    assert torch.equal(w.grad, upstream)


def test_published_min_max_quantizer_passes_gradients_whatever_the_share_of_zero_bit() -> None:
    w = torch.randn(4, 9).requires_grad_()
    out = MinMaxGrid((2, 8), w).mix(w, torch.tensor([[0.0, 0.0], [0.1, 0.2], [0.0, 1.0], [0.5, 0.5]]))
    upstream = torch.randn(w.shape)
    out.backward(upstream)
    assert w.grad is not None
    assert torch.equal(w.grad, upstream)


@pytest.mark.parametrize(("low", "high"), [(0, 255), (0, 3), (-128, 127), (-2, 1)])
def test_activation_quantizer_has_the_gradients_of_lsq(low: int, high: int) -> None:
    """Against autograd on the form with the straight-through estimator spelled out (Esser et al., ICLR 2020)."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 5, 6, generator=random, dtype=torch.float64).requires_grad_()
    step = torch.tensor(1.5 / high, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(x.shape, generator=random, dtype=torch.float64)
    inside = torch.clamp(x / step, low, high)
    wanted = step * (inside + (torch.round(inside) - inside).detach())
    found = fake_quantize(x, step, low, high)
    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=0)
    assert bool((inside == high).any())
    for a, b in zip(
        torch.autograd.grad(found, (x, step), upstream),
        torch.autograd.grad(wanted, (x, step), upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("upstream_layout", [torch.contiguous_format, torch.channels_last])
def test_memory_layout_changes_no_gradient(upstream_layout: torch.memory_format) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 5, 6, generator=random, dtype=torch.float64)
    upstream = torch.randn(x.shape, generator=random, dtype=torch.float64)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        value = x.contiguous(memory_format=layout).requires_grad_()
        step = torch.tensor(0.01, dtype=torch.float64, requires_grad=True)
        out = fake_quantize(value, step, -128, 127)
        found.append(torch.autograd.grad(out, (value, step), upstream.contiguous(memory_format=upstream_layout)))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-12, atol=0)


def test_fixed_widths_differ_by_row() -> None:
    bits = (2, 8, 3, 4, 2)
    w = torch.randn(5, 2, 3, 3, requires_grad=True)
    step = torch.rand(5) * 0.2 + 0.05
    slot = FixedWeightSlot(bits, step, full_range=False)
    integers = slot.integers(w)
    for c, b in enumerate(bits):
        top = 2 ** (b - 1) - 1
        assert integers[c].abs().max() == min(top, int((w[c] / slot.log_step.exp()[c]).abs().max().round()))
    assert torch.equal(slot(w), integers * slot.log_step.exp()[..., None, None])
    slot(w).square().sum().backward()
    assert w.grad is not None
    assert slot.log_step.grad is not None
    assert slot.log_step.grad.all()


def test_ties_go_to_even() -> None:
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5]])
    assert quantize(x, torch.ones(1, 1), -7, 7).tolist() == [[0, 2, 2, 0, -2]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_steps_gradient_is_summed_in_float32(dtype: torch.dtype) -> None:
    """It is the difference of two nearly equal sums: in 16 bits little of it would be left."""
    random = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(64, 32, 8, 8, generator=random).to(dtype) for _ in range(2))
    found = []
    for cast in (dtype, torch.float32):
        step = torch.tensor([2.0**-5], requires_grad=True)
        y = fake_quantize(x.to(cast), step.to(cast), -128, 127)
        (y.float() * grad.float()).sum().backward()
        assert step.grad is not None
        found.append(float(step.grad))
    assert found[0] == pytest.approx(found[1], rel=0.01)
