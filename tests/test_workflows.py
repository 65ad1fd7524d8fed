"""What the commands do: checks before any training, runs that go on, runs that must not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from zerobit.errors import BudgetError
from zerobit.runs import save_float
from zerobit.search.control import Control
from zerobit.search.methods.fixed import Fixed
from zerobit.workflows import Settings, compress_task
from zerobit.zoo.models import MODELS, digits_net


class _ReachedError(Exception):
    """A test has seen what it wants to see."""


def _stop(seen: dict[str, Any]) -> Callable[..., None]:
    def stand_in(*_: Any, **arguments: Any) -> None:
        seen.update(arguments)
        raise _ReachedError

    return stand_in


@pytest.mark.parametrize(
    ("arguments", "multiple"),
    [
        ({"budget": ["gap8=60%"]}, 4),
        ({"budget": ["gap8=60%", "diana=60%"]}, 16),
        ({"budget": ["gap8=60%"], "control": Control.of(multiple_of=2)}, 2),
        ({"budget": ["size=60%"]}, 1),
        ({"method": Fixed(bits=4)}, None),
    ],
)
def test_channels_suit_the_device_of_a_budget(
    arguments: dict[str, Any], multiple: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `compress`: a device that works on several channels at once gets multiples of them."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr("zerobit.workflows.compress", _stop(seen))
    path = save_float(digits_net(), tmp_path / "float.safetensors")
    with pytest.raises(_ReachedError):
        compress_task(Settings("digits", tmp_path), float_path=path, console=Console(quiet=True), **arguments)
    assert seen["multiple_of"] == multiple


def test_what_a_run_ends_with_is_there_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerobit.export.runtimes.onnx_runtime.find_spec", lambda name: None)
    monkeypatch.setattr("zerobit.workflows.train_task", _stop({}))
    with pytest.raises(ImportError, match=r"ONNX file, but onnx and onnxruntime not installed: .*'zerobit\[onnx\]'"):
        compress_task(Settings("digits", tmp_path / "run"), budget=["size=50%"], console=Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_budgets_are_checked_at_the_size_of_the_task_s_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNet-8 is made for 32 x 32; at 16 x 16 its activations are a quarter."""
    x, y = np.zeros((4, 3, 16, 16), np.uint8), np.arange(4)
    x[:, :, :8] = 200
    splits = {f"{name}_{part}": value for part in ("train", "val", "test") for name, value in (("x", x), ("y", y))}
    np.savez(tmp_path / "small.npz", **splits)
    monkeypatch.setattr("zerobit.workflows.train_task", _stop({}))
    settings = Settings("npz", tmp_path / "run", tmp_path / "small.npz", "resnet8")
    assert MODELS["resnet8"].input_shape == (3, 32, 32)
    with pytest.raises(_ReachedError):
        compress_task(settings, budget=["ram=2kB"], console=Console(quiet=True))
    with pytest.raises(BudgetError, match=r"smallest reachable"):
        compress_task(settings, budget=["ram=1kB"], console=Console(quiet=True))
