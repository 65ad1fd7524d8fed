"""What the commands do, on tasks and networks of the zoo and on run folders."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn

from zerobit.api import Normalisation, Result, compress, fitting_granularity, fitting_multiple
from zerobit.cost.base import AbstractCost
from zerobit.cost.own import load_costs
from zerobit.cost.parse import make_price, parse_budgets
from zerobit.cost.registry import device, device_names, named_cost
from zerobit.coverage import Coverage, inspect
from zerobit.cut.apply import QuantNet
from zerobit.cut.decide import check_limits
from zerobit.cut.store import load
from zerobit.errors import TrainingError
from zerobit.export.runtimes.onnx_runtime import absent
from zerobit.options import make_model, parse_input, parse_strength, parse_widths
from zerobit.report import Stage, layer_rows, layer_table, stage_table, write_text
from zerobit.runs import Run, load_float, save_float
from zerobit.search.attach import attach
from zerobit.search.control import Control
from zerobit.search.method import AbstractMethod, check_count
from zerobit.search.methods.softmax import ChannelSoftmax
from zerobit.train.loop import Hardware
from zerobit.train.objective import Objective, evaluate
from zerobit.train.phases import Data, Recipe, train_float
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
#: Of a network of the zoo that is measured without a task.
_CLASSES = 10


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

    Raises:
        TrainingError: `out` is a file.
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

    def __post_init__(self) -> None:
        """Look before hours of training, not after."""
        if self.out.exists() and not self.out.is_dir():
            msg = f"`out` is {str(self.out)!r}, which is a file; allowed is a folder; choose another name"
            raise TrainingError(msg)

    def load(self) -> tuple[ZooTask, ZooModel]:
        """The task's data and the network's definition.

        Raises:
            TrainingError: the network can't take the task's images.
        """
        task = load_task(self.task, self.data, self.download)
        definition = zoo_model(self.model or task.default_model)
        _check_images(definition, task)
        return task, definition

    def hardware(self) -> Hardware:
        """For the training loop."""
        return Hardware(self.device, seed=self.seed)


def train_task(
    settings: Settings, *, epochs: int, lr: float = 0.2, console: Console, task: ZooTask | None = None
) -> nn.Module:
    """Train a float network and write it to the run folder.

    Raises:
        ZerobitError: no epochs, or as `train_float`.
    """
    check_count("epochs", epochs)
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
    targets: Sequence[str] = (),
    float_path: Path | None = None,
    float_epochs: int = 40,
    method: AbstractMethod | None = None,
    control: Control | None = None,
    epochs: tuple[int, int] = (8, 4),
    lr: float = 1e-3,
    distillation: float = 0.5,
    console: Console,
) -> Result:
    """Compress a network of the zoo and write everything to the run folder.

    Raises:
        ZerobitError: an argument that can't be, before anything is trained; or as `compress`.
        ImportError: ONNX files can't be written and run here, before anything is trained.
    """
    if reason := absent():
        msg = f"a run ends with an ONNX file, but {reason}"
        raise ImportError(msg)
    limits, charge = parse_budgets(budget) if budget else None, parse_strength(strength)
    chooses = method is None or method.chooses
    price = make_price(limits, charge, max_drop, targets, chooses=chooses)
    Recipe.of(epochs, lr=lr)
    Objective(distillation=distillation)
    check_count("float_epochs", float_epochs)
    task, definition = settings.load()
    net, control = definition.build(task.num_classes), control or Control()
    if chooses:
        control = control.suited_to(fitting_multiple(price.costs))
    float_path = float_path or settings.out / _FLOAT
    if float_path.exists() or float_path != settings.out / _FLOAT:
        load_float(net, float_path)
        console.print(f"float network: {float_path}, trained before", highlight=False, markup=False, soft_wrap=True)
    else:
        default = ChannelSoftmax(granularity=fitting_granularity(price.costs))
        images = task.normalise(task.train.x[:1]).repeat(2, 1, 1, 1)
        untrained = attach(net, images, default if method is None else method, **vars(control))
        if max_drop is None:
            check_limits(untrained, price)
        net = train_task(settings, epochs=float_epochs, console=console, task=task)
    data = _data(task, settings)
    result = compress(
        net,
        data.train,
        data.val,
        budget=limits,
        max_drop=max_drop,
        strength=charge,
        targets=targets,
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


def _check_images(definition: ZooModel, task: ZooTask) -> None:
    """Some networks take images of several sizes: one is sent through."""
    image = task.normalise(task.train.x[:1])
    try:
        with torch.no_grad():
            definition.build(task.num_classes).eval()(image)
    except RuntimeError:
        msg = (
            f"`model` is {definition.name!r}, which is made for images of {definition.input_shape}; those of `task` "
            f"{task.name!r} are {tuple(image.shape[1:])}, which it can't take; choose another of the two"
        )
        raise TrainingError(msg) from None


def cost_rows(targets: Sequence[str]) -> list[tuple[str, str, str]]:
    """(name, unit, what it is) of every cost that a budget can name.

    Args:
        targets: of the user's own, as for `compress`.

    Raises:
        BudgetError: one of these can't be read.
    """
    rows = [(name, named_cost(name).unit, _first_line(named_cost(name))) for name in ("size", "macs", "bops", "ram")]
    for name in device_names():
        found = device(name)
        rows += [(f"{name}.{metric}", cost.unit, found.source) for metric, cost in found.metrics.items()]
    for target in targets:
        rows += [(name, cost.unit, target) for name, cost in load_costs(target).items()]
    return rows


def _first_line(cost: AbstractCost) -> str:
    return (type(cost).__doc__ or "").partition("\n")[0]


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
    return replace(last, name="exported", val=score(task.val), test=score(task.test), seconds=0.0)


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
    inputs = [parse_input(text) for text in shapes]
    args = tuple(value for name, value in inputs if not name)
    kwargs = {name: value for name, value in inputs if name}
    return inspect(make_model(target), args, None, kwargs, **vars(control))


def profile_model(
    model: str,
    shapes: Sequence[str],
    out: Path,
    *,
    runtime: str,
    weight_bits: str,
    activation_bits: str,
    grid: int,
    multiple_of: int,
    rounds: int,
    seed: int,
    command: str,
    console: Console,
) -> None:
    """Measure the layers of a model, fit a cost and write both.

    Args:
        model: of the zoo, or MODULE:FACTORY.
        shapes: of the inputs, as `--input` takes them; none for the zoo's own.
        out: TOML file of the fit.
        runtime: to measure in.
        weight_bits: widths, "2,4,8".
        activation_bits: widths.
        grid: as of `Sweep`.
        multiple_of: as of `Sweep`.
        rounds: as of `Sweep`.
        seed: as of `Sweep`.
        command: as typed, for the record.
        console: for progress and results.

    Raises:
        ZerobitError: an argument can't be read, or as `profile`.
    """
    from zerobit.measure.profile import Sweep, profile

    widths = parse_widths("weight_bits", weight_bits), parse_widths("activation_bits", activation_bits)
    sweep = Sweep(runtime, grid, multiple_of, *widths, rounds, seed)
    if ":" in model:
        net, inputs = make_model(model), [parse_input(text) for text in shapes]
    else:
        definition = zoo_model(model)
        net, inputs = definition.build(_CLASSES), [parse_input(text) for text in shapes]
        inputs = inputs or [("", torch.zeros(1, *definition.input_shape))]
    args = tuple(value for name, value in inputs if not name)
    kwargs = {name: value for name, value in inputs if name}
    profile(net, args, out, sweep, name=out.stem, source=command, console=console, kwargs=kwargs)
