"""Forms of calls that torch takes and few networks have: cut, they compute what was searched, or are left alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import randomised
from searches import scramble
from zerobit.cut.apply import apply
from zerobit.cut.decide import decide
from zerobit.graph.capture import capture
from zerobit.graph.folding import fold
from zerobit.integer.lower import lower
from zerobit.search.attach import attach
from zerobit.search.methods.softmax import ChannelSoftmax


class _Net(nn.Module):
    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def _linear() -> dict[str, Any]:
    return {"stem": nn.Linear(6, 7), "wide": _parameter(7, 9), "square": _parameter(7, 7), "nine": _parameter(9)}


#: Name -> network, shape of a sample.
FORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "addmm, normalised": (
        lambda: _Net(
            lambda m, x: m.head(F.relu(m.norm(torch.addmm(m.nine, m.stem(x), m.wide)))),
            **_linear(), norm=nn.BatchNorm1d(9), head=nn.Linear(9, 3),
        ),
        (6,),
    ),
    "addmm of a square, normalised": (
        lambda: _Net(
            lambda m, x: m.head(F.relu(m.norm(torch.addmm(m.seven, m.stem(x), m.square)))),
            **_linear(), seven=_parameter(7), norm=nn.BatchNorm1d(7), head=nn.Linear(7, 3),
        ),
        (6,),
    ),
    "product, normalised": (
        lambda: _Net(
            lambda m, x: m.head(F.relu(m.norm(m.stem(x) @ m.wide))),
            **_linear(), norm=nn.BatchNorm1d(9), head=nn.Linear(9, 3),
        ),
        (6,),
    ),
    "product of constants": (
        lambda: _Net(
            lambda m, x: m.head(F.relu(m.stem(x) + m.one.softmax(-1) @ m.other)),
            stem=nn.Linear(6, 7), one=_parameter(1, 30), other=_parameter(30, 7), head=nn.Linear(7, 3),
        ),
        (6,),
    ),
    "compared in place": (
        lambda: _Net(lambda m, x: m.head(m.stem(x).gt_(0.1)), stem=nn.Linear(6, 7), head=nn.Linear(7, 3)),
        (6,),
    ),
    "a parameter as wide as a result": (
        lambda: _Net(
            lambda m, x: (lambda y: m.head(m.scale.expand_as(y) * y))(m.stem(x)),
            stem=nn.Linear(6, 7), scale=_parameter(7), head=nn.Linear(7, 3),
        ),
        (6,),
    ),
    "linear with a vector": (
        lambda: _Net(lambda m, x: F.linear(F.relu(m.stem(x)), m.seven), stem=nn.Linear(6, 7), seven=_parameter(7)),
        (6,),
    ),
    "linear with a row as bias": (
        lambda: _Net(
            lambda m, x: m.head(F.relu(F.linear(m.stem(x), m.weight, m.row))),
            stem=nn.Linear(6, 7), weight=_parameter(8, 7), row=_parameter(1, 8), head=nn.Linear(8, 3),
        ),
        (6,),
    ),
    "linear with one bias for all": (
        lambda: _Net(
            lambda m, x: m.head(F.relu(F.linear(m.stem(x), m.weight, m.one))),
            stem=nn.Linear(6, 7), weight=_parameter(8, 7), one=_parameter(1), head=nn.Linear(8, 3),
        ),
        (6,),
    ),
    "addmm with one bias for all": (
        lambda: _Net(
            lambda m, x: m.head(F.relu(torch.addmm(m.one, m.stem(x), m.wide))),
            **_linear(), one=_parameter(1), head=nn.Linear(9, 3),
        ),
        (6,),
    ),
    "maximum over rows": (
        lambda: _Net(
            lambda m, x: m.head(F.max_pool2d(m.stem(x), 2).flatten(1)), stem=nn.Linear(6, 8), head=nn.Linear(8, 3)
        ),
        (4, 6),
    ),
    "mean over rows": (
        lambda: _Net(
            lambda m, x: m.head(F.adaptive_avg_pool2d(m.stem(x), 2).flatten(1)),
            stem=nn.Linear(6, 8), head=nn.Linear(4, 3),
        ),
        (8, 6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_what_is_cut_and_lowered_computes_what_was_searched(name: str) -> None:
    build, shape = FORMS[name]
    torch.manual_seed(0)
    x = torch.randn(5, *shape)
    model = randomised(build()).eval()
    expected: Tensor = model(x)
    assert torch.allclose(fold(capture(model, x))(x), expected, atol=1e-4)
    net = scramble(attach(model, x, ChannelSoftmax()), 3).eval()
    small = apply(net, decide(net)).eval()
    assert torch.allclose(small(x), net(x), atol=1e-4)
    lower(small)
