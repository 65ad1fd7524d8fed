"""One loop for every phase: epochs of steps on Lightning Fabric, checked, shown, and resumable after a kill.

Every epoch draws from its own seed, so a phase that was stopped goes on exactly as if it had not been.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn

from zerobit.atomic import replacing
from zerobit.errors import CheckpointError, TrainingError


@dataclass(frozen=True)
class Hardware:
    """Where and how training runs.

    Attributes:
        device: "auto", "cpu" or "cuda"; as Fabric's accelerator. Not "mps": costs are counted in float64, which it has
            not.
        precision: as Fabric's, such as "32-true" or "bf16-mixed".
        seed: of every random draw.
        progress: whether to show a bar.
    """

    device: str = "auto"
    precision: str = "32-true"
    seed: int = 0
    progress: bool = True

    def fabric(self) -> Fabric:
        """A Fabric on one device.

        Raises:
            TrainingError: there is no such device or precision here.
        """
        device = "cpu" if self.device == "auto" and torch.backends.mps.is_available() else self.device
        if device == "mps":
            msg = "`device` 'mps' can't be used: it has no float64, which costs are counted in; use 'cpu' or 'auto'"
            raise TrainingError(msg)
        try:
            return Fabric(accelerator=device, devices=1, precision=self.precision)  # type: ignore[arg-type]
        except Exception as error:  # Lightning raises several types of its own
            msg = (
                f"`device` {self.device!r} with `precision` {self.precision!r} can't be used: "
                f"{str(error).splitlines()[0]}; use 'cpu' or 'auto', and '32-true'"
            )
            raise TrainingError(msg) from None


class Stateful(Protocol):
    """Anything with state besides the network's that a resumed phase needs."""

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Take up where the state was taken."""
        ...


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to.

    Attributes:
        number: from 1.
        loss: mean over its steps.
        metric: on validation data.
        note: what the phase says of itself, such as the cost of the hard network.
        seconds: wall time of its steps and of its validation; two epochs that differ in it only are equal.
    """

    number: int
    loss: float
    metric: float
    note: str = ""
    seconds: float = field(default=0.0, compare=False)


def duration(history: Sequence[Epoch]) -> float:
    """Seconds of all epochs, those before a resumption among them."""
    return sum(epoch.seconds for epoch in history)


@dataclass
class Phase:
    """One stretch of training.

    Attributes:
        name: shown and used as the name of the checkpoint.
        epochs: how many.
        net: trained in place.
        optimizer: of its parameters.
        loss: batch -> scalar.
        validate: -> metric.
        schedule: progress 0..1 -> factor on learning rates, by group name.
        before_step: called with the progress 0..1.
        after_step: called without.
        note: -> short text for the epoch's line.
        extra: further state to keep in checkpoints, by name.
    """

    name: str
    epochs: int
    net: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Any], Tensor]
    validate: Callable[[], float]
    schedule: Callable[[str, float], float]
    before_step: Callable[[float], None] = lambda progress: None
    after_step: Callable[[], None] = lambda: None
    note: Callable[[], str] = lambda: ""
    extra: Mapping[str, Stateful] | None = None


def run_phase(
    phase: Phase,
    loader: Iterable[Any],
    hardware: Hardware,
    *,
    fabric: Fabric | None = None,
    checkpoint: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> list[Epoch]:
    """Train for a phase's epochs.

    Args:
        phase: what to train and how.
        loader: batches; `len` is needed. `set_epoch(number)` is called where it exists, before each epoch. Its length
            and, where it has one, its `identity` are settings.
        hardware: device, precision, seed, progress bar.
        fabric: one that is set up already.
        checkpoint: file to write after each epoch and to resume from.
        settings: what the run depends on; a checkpoint made with others is refused.
        console: where to print.

    Returns:
        One record per epoch.

    Raises:
        TrainingError: the loader is empty, or a loss is not finite.
        CheckpointError: the checkpoint can't be read, or belongs to other settings.
    """
    fabric = fabric or hardware.fabric()
    console = console or Console(quiet=not hardware.progress, markup=False)
    steps = loader_length(loader)
    mark = "" if checkpoint is None else _fingerprint(phase, loader, {**(settings or {}), "steps": steps})
    history = _resume(phase, checkpoint, mark, fabric.device)
    base = [float(g["lr"]) for g in phase.optimizer.param_groups] if not history else _base_rates(phase)
    for group, lr in zip(phase.optimizer.param_groups, base, strict=True):
        group["base_lr"] = lr
    if history:
        console.print(f"{phase.name}: resumed after epoch {len(history)} of {phase.epochs}")
    with _bar(console, hardware.progress) as bar:
        task = bar.add_task(phase.name, total=phase.epochs * steps, completed=len(history) * steps, note="")
        for number in range(len(history), phase.epochs):
            torch.manual_seed(hardware.seed * 10_007 + number)
            begin = time.perf_counter()
            loss = _run_epoch(phase, loader, fabric, number, steps, lambda: bar.advance(task))
            metric = phase.validate()
            record = Epoch(number + 1, loss, metric, phase.note(), time.perf_counter() - begin)
            history.append(record)
            if checkpoint is not None:
                _save(phase, history, checkpoint, mark)
            bar.update(task, note=f"val {record.metric:.4f} {record.note}")
            _print(console, phase, record)
    return history


def loader_length(loader: Iterable[Any]) -> int:
    """Batches of a pass.

    Raises:
        TrainingError: it has no length, or 0.
    """
    try:
        steps = getattr(loader, "__len__", lambda: None)()
    except TypeError:  # of a DataLoader whose samples are a stream
        steps = None
    if not steps:
        what = "has no length" if steps is None else "has length 0"
        msg = f"`train_loader` {what}; it must give at least one batch, each epoch anew; use a DataLoader or a list"
        raise TrainingError(msg)
    return int(steps)


def _run_epoch(
    phase: Phase, loader: Iterable[Any], fabric: Fabric, number: int, steps: int, tick: Callable[[], None]
) -> float:
    set_epoch = getattr(loader, "set_epoch", None) or getattr(getattr(loader, "sampler", None), "set_epoch", None)
    if set_epoch is not None:
        set_epoch(number)
    phase.net.train()
    total = 0.0
    for step, batch in enumerate(loader):
        progress = (number * steps + step) / (phase.epochs * steps)
        for group in phase.optimizer.param_groups:
            group["lr"] = group["base_lr"] * phase.schedule(str(group.get("name", "")), progress)
        phase.before_step(progress)
        with fabric.autocast():
            loss = phase.loss(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            msg = (
                f"`loss` is {value} in {phase.name}, epoch {number + 1}, step {step + 1}; it must be finite; lower the "
                f"learning rate (now {phase.optimizer.param_groups[0]['lr']:.3g}), or look for values in the data that "
                "are not finite"
            )
            raise TrainingError(msg)
        phase.optimizer.zero_grad()
        fabric.backward(loss)
        phase.optimizer.step()
        phase.after_step()
        total += value
        tick()
    return total / steps


def cosine(progress: float) -> float:
    """From 1 to 0 along half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def one_cycle(progress: float, *, peak: float = 0.25, start: float = 0.04) -> float:
    """Up to 1 at `peak`, down to 0 at the end, along half cosines (Smith, arXiv 1803.09820)."""
    if progress < peak:
        return start + (1 - start) * (1 - cosine(progress / peak))
    return cosine((progress - peak) / (1 - peak))


# ------------------------------------------------------------------------------------------- checkpoints


def _fingerprint(phase: Phase, loader: Iterable[Any], settings: Mapping[str, Any]) -> str:
    """Of the settings, the data, and the weights that the phase starts from."""
    state = phase.net.state_dict()
    shapes = {name: tuple(t.shape) for name, t in state.items()}
    data = getattr(loader, "identity", "")
    text = json.dumps([phase.name, phase.epochs, shapes, data, dict(settings)], sort_keys=True, default=str)
    mark = hashlib.sha256(text.encode())
    for name, tensor in state.items():
        if not name.startswith("slots."):  # ours are fitted; the last digit may depend on the machine
            mark.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return mark.hexdigest()[:16]


def _save(phase: Phase, history: list[Epoch], path: Path, mark: str) -> None:
    state = {
        "mark": mark,
        "history": [asdict(e) for e in history],
        "net": phase.net.state_dict(),
        "optimizer": phase.optimizer.state_dict(),
        "extra": {k: v.state_dict() for k, v in (phase.extra or {}).items()},
    }
    with replacing(path) as temporary:
        torch.save(state, temporary)


def _resume(phase: Phase, path: Path | None, mark: str, device: torch.device) -> list[Epoch]:
    if path is None or not path.exists():
        return []
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        saved = state["mark"]
    except Exception as error:  # a truncated zip raises one of many types
        msg = (
            f"`checkpoint` {path} can't be read ({type(error).__name__}); it must be a whole file written by zerobit; "
            "delete it to start this phase anew"
        )
        raise CheckpointError(msg) from None
    if saved != mark:
        msg = (
            f"`checkpoint` {path} was made with other settings (mark {saved}, now {mark}); "
            "use the settings it was made with, another folder, or delete it"
        )
        raise CheckpointError(msg)
    phase.net.load_state_dict(state["net"])
    phase.optimizer.load_state_dict(state["optimizer"])
    for name, part in (phase.extra or {}).items():
        part.load_state_dict(state["extra"][name])
    return [Epoch(**e) for e in state["history"]]


def _base_rates(phase: Phase) -> list[float]:
    return [float(g["base_lr"]) for g in phase.optimizer.param_groups]


# ------------------------------------------------------------------------------------------- display


def _bar(console: Console, visible: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        disable=not (visible and console.is_terminal),
        transient=True,
    )


def _print(console: Console, phase: Phase, record: Epoch) -> None:
    text = f"{phase.name} {record.number}/{phase.epochs}: loss {record.loss:.4f}, val {record.metric:.4f}"
    console.print(f"{text}, {record.note}" if record.note else text, highlight=False)
