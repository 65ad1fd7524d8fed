"""What can't be captured or run says why in one message, without a traceback of torch."""

import logging
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
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
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        return x


class Outer(nn.Module):
    """Its line is not the one to mend: that of the inner module, or of the helper it calls, is."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Helped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _helper(x)


def _helper(x: Tensor) -> Tensor:
    return x if bool((x > 0).any()) else -x


class ThroughNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() * 2)


class ItemSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        count = x.sum().item()
        return x[: int(count)] if count > 1 else x


def _error(run: Callable[[], Any], capfd: pytest.CaptureFixture[str]) -> str:
    """The message, without a second error above it or anything printed beside it."""
    with pytest.raises(CaptureError) as caught:
        run()
    assert "During handling" not in "".join(traceback.format_exception(caught.value))
    message = str(caught.value)
    assert message.count("\n") <= 2
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
    ("model", "code"),
    [
        (Branching(), "return x * 2 if x.sum() > 0 else x"),
        (Outer(Branching()), "return x * 2 if x.sum() > 0 else x"),
        (Outer(Helped()), "return x if bool((x > 0).any()) else -x"),
        (ThroughNumpy(), "return torch.from_numpy(x.detach().numpy() * 2)"),
        (ItemSize(), "return x[: int(count)] if count > 1 else x"),
        (Outer(nn.Linear(5, 2)), "return self.inner(x)"),
    ],
    ids=["branch", "nested", "helper", "numpy", "item", "a layer of torch"],
)
def test_capture_names_the_line_of_the_model(model: nn.Module, code: str, capfd: pytest.CaptureFixture[str]) -> None:
    reason, place, advice = _error(lambda: capture(model, torch.ones(2, 3)), capfd).splitlines()
    source = Path(__file__).read_text(encoding="utf-8").splitlines()
    number = next(i for i, line in enumerate(source, 1) if line.strip() == code)
    assert reason.startswith(f"`model` ({type(model).__name__}) can't be captured by torch.export: ")
    assert place == f"at {Path(__file__).name}:{number}: {code}"
    assert "torch.where" in advice


def test_a_call_that_binds_to_no_argument_names_no_line(capfd: pytest.CaptureFixture[str]) -> None:
    reason, advice = _error(lambda: capture(Branching(), (torch.ones(2, 3),) * 2), capfd).splitlines()
    assert "too many positional" in reason
    assert "`example`" in advice


def test_capture_leaves_the_settings_of_torch_alone() -> None:
    for enabled in (True, False):
        torch.backends.mha.set_fastpath_enabled(enabled)
        with pytest.raises(CaptureError):
            capture(Branching(), torch.ones(2, 3))
        capture(nn.Linear(3, 3), torch.ones(2, 3))
        assert torch.backends.mha.get_fastpath_enabled() is enabled
    torch.backends.mha.set_fastpath_enabled(True)


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
