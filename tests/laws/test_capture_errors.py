"""What can't be captured or run says why in one message, without a traceback of torch."""

import logging
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import captured, case
from zerobit.errors import CaptureError
from zerobit.graph.capture import capture


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        result = x + self.memory
        self.memory.copy_(x.mean(0))
        return result


class Uncopyable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.product = self.fc.weight * 2

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.product


def _error(run: Callable[[], Any], capfd: pytest.CaptureFixture[str]) -> str:
    """The message: one line, without a second error above it or anything printed beside it."""
    with pytest.raises(CaptureError) as caught:
        run()
    assert "During handling" not in "".join(traceback.format_exception(caught.value))
    message = str(caught.value)
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")
    return message


@pytest.mark.parametrize(
    ("model", "example", "expected"),
    [
        (Branching(), torch.ones(2, 3), ["`model` (Branching)", "data-dependent", "torch.where"]),
        (nn.Conv2d(3, 4, 1), torch.ones(2, 5, 4, 4), ["`model` (Conv2d)", "3 channels", "5 channels", "`example`"]),
        (nn.Linear(3, 4), torch.ones(2, 5), ["`model` (Linear)", "[3, 4]", "`example`"]),
        (nn.Linear(3, 4), (torch.ones(2, 3), torch.ones(2, 3)), ["TypeError", "too many positional"]),
        (nn.Bilinear(3, 3, 2), torch.ones(2, 3), ["TypeError", "missing a required argument: 'input2'"]),
        (Stateful(), torch.ones(2, 3), ["`model` (Stateful)", "`memory`", "take the state as an input"]),
        (Uncopyable(), torch.ones(2, 3), ["`model` (Uncopyable)", "copy.deepcopy", "freshly built"]),
    ],
    ids=["branch", "channels", "features", "too many", "missing", "state", "uncopyable"],
)
def test_capture_names_the_cause(
    model: nn.Module, example: Any, expected: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    message = _error(lambda: capture(model, example), capfd)
    assert logging.root.manager.disable == logging.NOTSET
    assert [part for part in expected if part not in message] == []


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ((torch.ones(2, 3, 4, 4),), ["shape (2, 3, 4, 4)", "('batch', 2, 4, 4)", "resize"]),
        ((torch.ones(2, 4, 4),), ["shape (2, 4, 4)", "('batch', 2, 4, 4)"]),
        ((torch.ones(2, 2, 4, 4), torch.ones(1)), ["nested otherwise", "call the network as"]),
        (([torch.ones(2, 2, 4, 4)],), ["hold a list", "pass a tensor"]),
        ((), ["nested otherwise"]),
        ((3,), ["hold a int", "pass a tensor"]),
    ],
    ids=["channels", "no batch", "too many", "list", "none", "int"],
)
def test_call_names_the_input(inputs: tuple[Any, ...], expected: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    _, program = captured(case("barrier"))
    message = _error(lambda: program(*inputs), capfd)
    assert [part for part in expected if part not in message] == []
