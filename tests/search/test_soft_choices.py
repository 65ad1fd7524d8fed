"""Soft choices: one at the start, what is cut at the end, and told apart at every temperature."""

import pytest
import torch
from torch import nn

from zerobit.cut.apply import apply
from zerobit.cut.decide import decide
from zerobit.search.attach import attach
from zerobit.search.choice import Sampling, UnitRule
from zerobit.search.gates.logit import LogitGate
from zerobit.search.methods.softmax import ChannelSoftmax
from zerobit.search.widths.coupled import CoupledChoice
from zerobit.search.widths.softmax import SoftmaxWidth


@pytest.mark.parametrize("temperature", [1.0, 5.0, 0.2])
def test_soft_gates_are_one_at_the_start_and_at_the_end_what_is_cut(temperature: float) -> None:
    """Motetti et al., IEEE TC 2024: weights are divided by the share that is not removed at the start, for good."""
    gate = LogitGate(5, "softmax", UnitRule(), temperature)
    coupled = CoupledChoice(5, (2, 4, 8), "softmax", temperature, removable=True, rule=UnitRule())
    for choice in (gate, coupled):
        choice.temperature = temperature
        torch.testing.assert_close(choice().factor, torch.ones(5))
        assert (choice.factor() > 1).all()
        choice.temperature = 1e-2
        for trained in (choice, choice.eval()):
            torch.testing.assert_close(trained().factor, choice.factor(), rtol=1e-6, atol=0)
            assert torch.equal(trained().mask, torch.ones(5)), "activations can't be scaled in the cut network"
    assert torch.equal(coupled().shares, coupled.factor()[:, None] * torch.tensor([[0.0, 0.0, 1.0]] * 5))


@pytest.mark.parametrize("shared", [False, True])
def test_a_soft_search_is_cut_as_it_was_trained(shared: bool) -> None:
    """At the end all gates are open and cold: trained and cut network compute the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(64, 6)
    method = ChannelSoftmax(weight_bits=(0, 8), shared=shared, sampling="softmax", end_temperature=0.05)
    net = attach(model, x, method)
    net.advance(1.0)
    with torch.no_grad():
        for name in net.choosing_groups:
            for parameter in net.choice(name).parameters():
                parameter.copy_(torch.linspace(0, 4, parameter.shape[-1]) if parameter.dim() == 2 else 4.0)
    trained = net.train()(x)
    torch.testing.assert_close(net.eval()(x), trained, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(apply(net, decide(net))(x), trained, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sampling", ["hard", "softmax"])
def test_cold_choices_are_still_told_apart(sampling: Sampling) -> None:
    """At 0.01 probabilities of float32 are 0 and 1."""
    gate = LogitGate(6, sampling, UnitRule())
    coupled = CoupledChoice(6, (2, 4, 8), sampling, removable=True, rule=UnitRule(at_least=3))
    width = SoftmaxWidth(6, (2, 4, 8), sampling, torch.zeros(3))
    order = torch.tensor([0.5, 3.0, 1.0, 2.5, 2.0, 1.5])
    with torch.no_grad():
        gate.gate.copy_(order)
        coupled.width.copy_(torch.stack([torch.full((6,), 4.0), order, order - 1, order - 2], 1))
        width.width.copy_(torch.stack([order, order - 1, order - 2], 1))
    for choice in (gate, coupled, width):
        choice.temperature = 1e-2
    assert torch.equal(gate.log_odds().argsort(), order.argsort())
    assert torch.equal(coupled.log_odds().argsort(), order.argsort())
    assert coupled.hard().argmax(1).tolist() == [0, 1, 0, 1, 1, 0], "three must stay"
    for preference in (coupled.preference(), width.preference()):
        torch.testing.assert_close(preference.diff(dim=1), torch.full((6, 2), -100.0).double())


def test_published_start() -> None:
    """Motetti et al., IEEE TC 2024: logits b / max(b) give (.150, .193, .248, .409) for {0, 2, 4, 8}."""
    theta = CoupledChoice(1, (2, 4, 8), "softmax", removable=True, rule=UnitRule()).probability()
    torch.testing.assert_close(theta, torch.tensor([[0.150, 0.193, 0.248, 0.409]]), rtol=0, atol=5e-4)
    theta = CoupledChoice(1, (2, 4, 8), "softmax", removable=False, rule=UnitRule()).probability()
    torch.testing.assert_close(theta, torch.tensor([[0, 0.227, 0.292, 0.481]]), rtol=0, atol=5e-4)
