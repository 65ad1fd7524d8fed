"""What the commands do, on tasks and networks of the zoo and on run folders."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn

from zerobit.api import Normalisation, Result, compress
from zerobit.cost.parse import make_price, parse_budgets
from zerobit.coverage import Coverage, OpRow, inspect
from zerobit.cut.apply import QuantNet
from zerobit.cut.store import load
from zerobit.errors import BudgetError, CaptureError, FormatError, TrainingError
from zerobit.export import onnx as export_onnx
from zerobit.export.verify import Comparison, verify_onnx
from zerobit.integer.ir import IntegerGraph
from zerobit.integer.lower import lower
from zerobit.report import Stage, layer_rows, layer_table, stage_table, write_text
from zerobit.runs import Run, load_float, save_float
from zerobit.search.control import Control, Count
from zerobit.search.method import AbstractMethod, ChannelSoftmax
from zerobit.train.loop import Hardware
from zerobit.train.objective import Objective, evaluate
from zerobit.train.phases import Data, train_float
from zerobit.zoo.data import Batches, Split
from zerobit.zoo.data import Task as ZooTask
from zerobit.zoo.models import ZooModel
from zerobit.zoo.models import model as zoo_model
from zerobit.zoo.tasks import load_task

_FLOAT, _SMALL, _PLAN, _ONNX, _REPORT = (
    "float.safetensors",
    "small.safetensors",
    "plan.json",
    "model.onnx",
    "report.html",
)
_EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Settings:
    """What all commands on a task share.

    Attributes:
        task: name of the task.
        out: run folder.
        data: where the data is.
        model: name of the network, or the task's own.
        seed: of every random draw.
        batch: samples per step.
        device: as Fabric's accelerator.
        download: whether to fetch missing data.
        command: as typed, for the record.
    """

    task: str
    out: Path
    data: Path | None = None
    model: str | None = None
    seed: int = 0
    batch: int = 128
    device: str = "auto"
    download: bool = False
    command: str = ""

    def load(self) -> tuple[ZooTask, ZooModel]:
        """The task's data and the network's definition."""
        task = load_task(self.task, self.data, self.download)
        return task, zoo_model(self.model or task.default_model)

    def hardware(self) -> Hardware:
        """For the training loop."""
        return Hardware(self.device, seed=self.seed)


def train_task(
    settings: Settings, *, epochs: int, lr: float = 0.2, console: Console, task: ZooTask | None = None
) -> nn.Module:
    """Train a float network and write it to the run folder.

    Raises:
        TrainingError: no epochs, or as `run_phase`.
    """
    if epochs < 1:
        msg = f"`epochs` is {epochs}; allowed are whole numbers from 1; choose more"
        raise TrainingError(msg)
    loaded, definition = settings.load() if task is None else (task, zoo_model(settings.model or task.default_model))
    torch.manual_seed(settings.seed)
    net = definition.build(loaded.num_classes)
    train_float(
        net, _data(loaded, settings), Objective(), settings.hardware(),
        epochs=epochs, lr=lr, checkpoint=settings.out / "float.ckpt", console=console,
    )  # fmt: skip
    path = save_float(net, settings.out / _FLOAT)
    score = evaluate(net, _evaluation(loaded.test, loaded), Objective())
    console.print(f"float network: test accuracy {100 * score:.2f} %, written to {path}", highlight=False)
    return net.cpu().eval()


def compress_task(
    settings: Settings,
    *,
    budget: Sequence[str] | None = None,
    max_drop: float | None = None,
    strength: str | None = None,
    float_path: Path | None = None,
    float_epochs: int = 40,
    method: AbstractMethod | None = None,
    control: Control | None = None,
    epochs: tuple[int, int] = (8, 4),
    lr: float = 1e-3,
    distillation: float = 0.5,
    console: Console,
) -> Result:
    """Compress a network of the zoo and write everything to the run folder."""
    limits, charge = parse_budgets(budget) if budget else None, _strength(strength)
    make_price(limits, charge, max_drop)  # a mistake here is better known before a float network is trained
    task, definition = settings.load()
    net, control = definition.build(task.num_classes), control or Control()
    if control != Control():
        inspect(net, torch.zeros(1, *definition.input_shape), method, **vars(control))  # a mistake is found here
    float_path = float_path or settings.out / _FLOAT
    if float_path.exists() or float_path != settings.out / _FLOAT:
        load_float(net, float_path)
    else:
        net = train_task(settings, epochs=float_epochs, console=console, task=task)
    data = _data(task, settings)
    result = compress(
        net,
        data.train,
        data.val,
        budget=limits,
        max_drop=max_drop,
        strength=charge,
        method=method,
        **vars(control),
        epochs=epochs,
        lr=lr,
        distillation=distillation,
        seed=settings.seed,
        device=settings.device,
        normalisation=Normalisation(task.mean, task.std),
        test_loader=_evaluation(task.test, task),
        run=settings.out,
    )
    _write(result, settings, task, definition, console)
    return result


def make_method(name: str, *, shared: bool, sampling: str) -> AbstractMethod | None:
    """The method of a name; None for the default, which starts near the budget.

    Raises:
        FormatError: there is none of that name, or no such sampling.
    """
    if name != "softmax":
        msg = f"`method` is {name!r}; allowed are ('softmax',); choose one of these"
        raise FormatError(msg)
    if not shared and sampling == "hard":
        return None
    soft = sampling != "hard"
    return ChannelSoftmax(shared=shared, sampling=sampling, end_temperature=0.05 if soft else 1.0)  # type: ignore[arg-type]


def _strength(text: str | None) -> tuple[str, float] | None:
    if text is None:
        return None
    ((name, value),) = parse_budgets([text]).items()
    try:
        return name, float(value)
    except ValueError:
        msg = f"`strength` is {text!r}; allowed is COST=NUMBER, such as size=0.5; write that"
        raise BudgetError(msg) from None


def _data(task: ZooTask, settings: Settings) -> Data:
    augment = task.augment is not None
    train = Batches(task.train, task, settings.batch, shuffle=True, augment=augment, seed=settings.seed)
    return Data(train, _evaluation(task.val, task))


def _evaluation(split: Split, task: ZooTask) -> Batches:
    return Batches(split, task, _EVALUATION_BATCH)


def _write(result: Result, settings: Settings, task: ZooTask, definition: ZooModel, console: Console) -> None:
    """Plan, weights, ONNX file, report and record; then the tables."""
    out = settings.out
    write_text(out / _PLAN, result.plan.to_json())
    result.save(out / _SMALL)
    onnx = result.export(out / _ONNX)
    stages = (*result.stages, _exported_stage(result, onnx, task))
    run = Run(settings.task, definition.name, task.num_classes, task.mean, task.std, settings.command, stages)
    run.write(out)
    result.report(out / _REPORT)
    console.print(stage_table(stages))
    console.print(layer_table(layer_rows(result.graph, result.plan)))
    console.print(
        f"files in {out}: {_ONNX} ({onnx.stat().st_size:,} bytes), {_SMALL}, {_PLAN}, {_REPORT}",
        highlight=False,
    )


def _exported_stage(result: Result, path: Path, task: ZooTask) -> Stage:
    """The file itself, run by ONNX Runtime."""
    from zerobit.export.onnx_run import run_onnx

    def score(split: Split) -> float:
        (logits,) = run_onnx(path, raw_images(split))
        return float((logits.argmax(1) == split.y.numpy()).mean())

    last = result.stages[-1]
    return Stage("exported", score(task.val), score(task.test), last.size, last.macs)


def raw_images(split: Split) -> np.ndarray:
    """Images as the exported file takes them: float32 in 0..1."""
    x = split.x.float() / 255 if split.x.dtype == torch.uint8 else split.x
    return np.ascontiguousarray(x.numpy())


def load_run(folder: Path) -> tuple[Run, QuantNet]:
    """A run's record and its compressed network.

    Raises:
        CheckpointError: the folder or a file in it is missing or can't be read.
    """
    run = Run.read(folder)
    definition = zoo_model(run.model)
    return run, load(folder / _SMALL, definition.build(run.num_classes))


def export_run(folder: Path, format_: str, container: str, out: Path | None) -> tuple[Path, tuple[OpRow, ...]]:
    """Write a run's network as a file.

    Returns:
        The file, and the ops in it that are computed in float.

    Raises:
        FormatError: a format that does not exist.
    """
    if format_ != "onnx":
        msg = f"`format` is {format_!r}; allowed are ('onnx',); choose one of these"
        raise FormatError(msg)
    run, net = load_run(folder)
    path = export_onnx(net, out or folder / _ONNX, mean=run.mean, std=run.std, container=container)  # type: ignore[arg-type]
    return path, _float_ops(lower(net, run.mean, run.std))


def _float_ops(graph: IntegerGraph) -> tuple[OpRow, ...]:
    return tuple(OpRow(op.name, op.target, op.module, op.reason) for island in graph.islands for op in island.ops)


@dataclass(frozen=True)
class Outcome:
    """What a verification found.

    Attributes:
        rows: one per output and set of inputs.
        accuracy: of the exported file on the test images.
        agreement: share of test images on which it predicts what the trained network predicts.
        float_ops: what the file computes in float.
    """

    rows: list[Comparison]
    accuracy: float
    agreement: float
    float_ops: tuple[OpRow, ...]


def verify_run(folder: Path, data: Path | None) -> Outcome:
    """Run a run's ONNX file on every test image and compare it with the integer reference and the trained network."""
    from zerobit.export.onnx_run import run_onnx

    run, net = load_run(folder)
    task = load_task(run.task, data)
    graph = lower(net, run.mean, run.std)
    path = folder / _ONNX
    if not path.is_file():
        path, _ = export_run(folder, "onnx", "packcast", None)
    images = raw_images(task.test)
    rows = verify_onnx(graph, path, {next(iter(graph.inputs)): images})
    (logits,) = run_onnx(path, images, wide_sums=True)
    with torch.no_grad():
        trained = torch.cat([net(x).argmax(1) for x, _ in _evaluation(task.test, task)]).numpy()
    labels = task.test.y.numpy()
    accuracy, agreement = float((logits.argmax(1) == labels).mean()), float((logits.argmax(1) == trained).mean())
    return Outcome(rows, accuracy, agreement, _float_ops(graph))


def make_control(
    frozen: Sequence[str] | None,
    bits: Sequence[str] | None,
    min_channels: Sequence[str] | None,
    multiple_of: Sequence[str] | None,
) -> Control:
    """The user's wishes from the entries of options.

    Args:
        frozen: patterns.
        bits: "PATTERN=8" or "PATTERN=4,8".
        min_channels: "8", or "PATTERN=8".
        multiple_of: as `min_channels`.

    Raises:
        FormatError: an entry that can't be read, or a number that can't be.
    """
    widths: dict[str, list[int]] = {}
    for entry in bits or ():
        pattern, _, text = entry.rpartition("=")
        parts = text.split(",")
        if not pattern or not all(part.strip().isdigit() for part in parts):
            msg = f"`bits` is {entry!r}; allowed is PATTERN=WIDTHS, such as stem.*=8 or head=4,8; write that"
            raise FormatError(msg)
        widths[pattern] = [int(part) for part in parts]
    return Control.of(frozen or (), widths, _counts("min_channels", min_channels), _counts("multiple_of", multiple_of))


def _counts(argument: str, entries: Sequence[str] | None) -> Count | None:
    """A number for all groups, or pattern -> number."""
    found: dict[str, int] = {}
    for entry in entries or ():
        pattern, _, text = entry.rpartition("=")
        if not text.strip().isdigit() or (not pattern and len(entries or ()) > 1):
            msg = (
                f"`{argument}` is {list(entries or ())}; allowed is one NUMBER, or entries PATTERN=NUMBER; "
                "write for example 8 or stem.*=8"
            )
            raise FormatError(msg)
        found[pattern] = int(text)
    return None if not found else found.get("", found)


def inspect_model(target: str, shapes: Sequence[str], control: Control) -> Coverage:
    """What can be pruned and quantised of a model that a factory makes.

    Args:
        target: MODULE:FACTORY.
        shapes: of the inputs, as `--input` takes them.
        control: what the user wants kept.

    Raises:
        CaptureError: the factory or a shape can't be read, or the model can't be captured.
        FormatError: a pattern that matches nothing.
    """
    inputs = [_input(text) for text in shapes]
    args = tuple(value for name, value in inputs if not name)
    kwargs = {name: value for name, value in inputs if name}
    return inspect(_make(target), args, None, kwargs, **vars(control))


def _input(text: str) -> tuple[str, torch.Tensor]:
    """Name, or "", and zeros of "1,3,32,32", "1,16:int64" or "tokens=1,16:int64"."""
    name, _, rest = text.rpartition("=")
    shape, _, kind = rest.partition(":")
    kinds = {"float32": torch.float32, "int64": torch.int64, "int32": torch.int32, "bool": torch.bool}
    kind = kind or "float32"
    parts = shape.replace("x", ",").split(",")
    if kind not in kinds or not all(p.strip().isdigit() and int(p) > 0 for p in parts):
        msg = (
            f"`input` is {text!r}; allowed are positive sizes with commas, behind a colon one of the types "
            f"{(*kinds,)}, before an equals sign a name; write for example 1,3,32,32 or tokens=1,16:int64"
        )
        raise CaptureError(msg)
    return name, torch.zeros([int(p) for p in parts], dtype=kinds[kind])


def _make(target: str) -> nn.Module:
    module_name, colon, factory_name = target.partition(":")
    advice = "write MODULE:FACTORY, such as zerobit.zoo.models:resnet8"
    if not colon:
        msg = f"`target` is {target!r}; allowed is MODULE:FACTORY; {advice}"
        raise CaptureError(msg)
    sys.path.insert(0, str(Path.cwd()))  # a module beside the user, as `python -m` finds it
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError) as error:
        msg = f"`target` {target!r} can't be imported ({error}); {advice}"
        raise CaptureError(msg) from None
    finally:
        sys.path.pop(0)
    model = factory()
    if not isinstance(model, nn.Module):
        msg = f"`target` {target!r} made a {type(model).__name__}; it must make a torch.nn.Module; {advice}"
        raise CaptureError(msg)
    return model
