"""`PruneThenQuantize`: gates first, then widths, by hooks alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zerobit as zb
from killed import Killed, until
from searches import attached, scramble
from zerobit.bits import NetBits
from zerobit.cost import Size
from zerobit.cost.price import Budget
from zerobit.cost.usage import usage
from zerobit.errors import FormatError
from zerobit.search.choice import AbstractChoice, AbstractGroupChoice
from zerobit.search.method import Searched
from zerobit.search.methods.sequential import PruneThenQuantize
from zerobit.search.net import SearchNet
from zerobit.train.loop import Hardware
from zerobit.train.objective import Objective
from zerobit.train.phases import Data, Recipe, search

METHOD = PruneThenQuantize(activation_bits=(4, 8))
HARDWARE = Hardware("cpu", progress=False)


def _choices(net: SearchNet) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Parameters of gates, and of widths of weights and activations."""
    gates, widths = dict[str, nn.Parameter](), dict[str, nn.Parameter]()
    for name, module in net.named_modules():
        if isinstance(module, AbstractChoice):
            into = gates if isinstance(module, AbstractGroupChoice) else widths
            into.update({f"{name}.{n}": p for n, p in module.named_parameters(recurse=False)})
    return gates, widths


def _data() -> Data:
    random = torch.Generator().manual_seed(3)
    batches = [
        (torch.randn(8, 1, 4, 4, generator=random), torch.randint(0, 3, (8,), generator=random)) for _ in range(4)
    ]
    return Data(batches, batches[:1])


def _snapshot(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in parameters.items()}


def _moved(parameters: dict[str, nn.Parameter], before: dict[str, Tensor]) -> set[bool]:
    return {not torch.equal(p.detach(), before[name]) for name, p in parameters.items()}


def test_gates_move_in_the_first_part_and_widths_in_the_second() -> None:
    net = scramble(attached("mlp", METHOD), 1, spread=0.1)
    gates, widths = _choices(net)
    assert gates
    assert len(widths) > len(net.graph.searched_weights), "of activations, too"
    optimizer = torch.optim.Adam(net.param_groups(lr=1e-2, choice_lr=1e-1))
    for progress in (0.0, 0.25, 0.49, 0.5, 0.75, 0.99):
        before = _snapshot(gates), _snapshot(widths)
        for x, y in _data().train:
            net.advance(progress)
            loss = F.cross_entropy(net.train()(x), y) + Size()(usage(net.graph, net.bits())) * 1e-2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        pruning = progress < 0.5
        assert _moved(gates, before[0]) == {pruning}, progress
        assert _moved(widths, before[1]) == {not pruning}, progress
        assert not any(p.requires_grad for p in (widths if pruning else gates).values())


class _Seen(PruneThenQuantize):
    """Notes the widths that its choices end with."""

    def commit(self, net: Searched, excess: Callable[[NetBits], float]) -> None:
        super().commit(net, excess)
        _seen.append({b for dist in net.bits(hard=True).weights.values() for b in dist.bits.tolist() if b})


_seen: list[set[float]] = []


def test_gates_are_searched_at_the_widest_width() -> None:
    """Also under a budget, near which other searches start; it is kept nonetheless."""
    model, train, val = _task()
    _seen.clear()
    result = zb.compress(
        model, train, val, budget="20%", method=_Seen((0, 2, 3, 6), prune_share=0.99), epochs=(1, 0), device="cpu",
        progress=False,
    )  # fmt: skip
    assert _seen == [{6}]
    assert result.stages[-1].size <= 0.2 * result.stages[0].size / 4


def test_what_stood_after_the_first_part_stays() -> None:
    """The units that are kept when the gates stand are those of the hard choice at the end."""
    net = scramble(attached("digits", METHOD), 2)
    before = net.bits(hard=True).keep
    net.advance(0.7)
    loss = Size()(usage(net.graph, net.bits()))
    loss.backward()
    gates, widths = _choices(net)
    assert all(p.grad is None for p in gates.values())
    assert any(p.grad is not None and p.grad.any() for p in widths.values())
    after = net.bits()
    assert all(torch.equal(after.keep[k], v) for k, v in before.items()), "the price sees hard gates"


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.0, 0.0),
        (0.125, 0.25 * 0.25 / 0.5),
        (0.25, 0.25),
        (0.4999, 0.25),
        (0.5, 0.25),
        (0.625, 0.25 + 0.75 * 0.5),
        (0.75, 1.0),
        (1.0, 1.0),
    ],
)
def test_the_limit_falls_in_two_parts(progress: float, expected: float) -> None:
    """Each over half of its part (ramp 1/2); a quarter of the logarithm by pruning."""
    method = PruneThenQuantize(prune_to=0.25)
    assert method.limit_share(progress, 0.5) == pytest.approx(expected, abs=1e-12)
    assert method.limit_share(progress, 0.0) == (0.25 if progress < 0.5 else 1.0)


def test_a_quarter_is_half_by_pruning() -> None:
    net = attached("digits", PruneThenQuantize())
    budget = Budget(Size(), "25%")
    budget.update(net)
    full = budget.current_limit(net)
    net.advance(0.49)
    assert budget.current_limit(net) == pytest.approx(full / 2)
    net.advance(1.0)
    assert budget.current_limit(net) == pytest.approx(full / 4)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_the_rate_of_choices_starts_anew_with_the_widths(share: float) -> None:
    method = PruneThenQuantize(prune_share=share)
    assert method.rate_progress(0.0) == 0
    assert method.rate_progress(share * 0.999) == pytest.approx(0.999)
    assert method.rate_progress(share) == 0
    assert method.rate_progress(1.0) == 1
    assert method.choosing_share == min(share, 1 - share)


@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_a_killed_search_goes_on_as_if_it_had_not_been(killed_after: int, tmp_path: Path) -> None:
    """Four epochs; gates stand after two. Killed in the first step of each of the others."""

    def run(loss: Any, file: Path | None) -> dict[str, list[Any]]:
        torch.manual_seed(1)
        net = attached("mlp", METHOD)
        recipe = Recipe(search_epochs=4, finetune_epochs=0, lr=1e-2, choice_lr=0.1, commit=1.0)
        search(net, Budget(Size(), "40%"), None, _data(), Objective(loss=loss), recipe, HARDWARE, checkpoint=file)
        return {name: t.tolist() for name, t in net.state_dict().items()}

    whole = run(F.cross_entropy, None)
    with pytest.raises(Killed):
        run(until(killed_after * len(_data().train)), tmp_path / "search.ckpt")
    assert run(until(1000), tmp_path / "search.ckpt") == whole


def _task() -> tuple[nn.Module, list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
    x = torch.randn(96, 12)
    batches = [(x[i : i + 32], x[i : i + 32, :3].argmax(1)) for i in range(0, 96, 32)]
    return model, batches[:2], batches[2:]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"weight_bits": (2, 4, 8)}, "`weight_bits`"),
        ({"weight_bits": (0, 8)}, "`weight_bits`"),
        ({"weight_bits": (0, 1, 8)}, "`weight_bits`"),
        ({"granularity": "tensor"}, "`granularity`"),
        ({"prune_share": 0.0}, "`prune_share`"),
        ({"prune_share": 1.0}, "`prune_share`"),
        ({"prune_share": "0.5"}, "`prune_share` is '0.5'; allowed are numbers"),
        ({"prune_to": 1.5}, "`prune_to`"),
        ({"prune_to": None}, "`prune_to`"),
        ({"min_channels": 0}, "`min_channels`"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(FormatError, match=named):
        PruneThenQuantize(**arguments)
