"""`compress`: a trained network in, a pruned mixed-precision integer network out, in one call."""

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from zerobit.cost import Macs, Size
from zerobit.cost.amounts import written
from zerobit.cost.base import AbstractCost
from zerobit.cost.parse import make_price
from zerobit.cost.price import AbstractPrice, Budget, Limit
from zerobit.cost.usage import uniform, usage
from zerobit.cut.apply import QuantNet, apply
from zerobit.cut.decide import check_limits, decide
from zerobit.cut.store import save
from zerobit.errors import BudgetError, TrainingError
from zerobit.export.verify import Comparison, verify_onnx
from zerobit.export.writers import writer
from zerobit.graph.ir import Graph
from zerobit.integer.lower import lower, settle
from zerobit.plan import Plan
from zerobit.report import ACCURACY, Stage, html_page, layer_rows, write_text
from zerobit.search.attach import attach, calibrate
from zerobit.search.control import Control, Count, Widths
from zerobit.search.method import AbstractMethod, Granularity, check_method
from zerobit.search.methods.softmax import ChannelSoftmax
from zerobit.search.net import SearchNet
from zerobit.train.loop import Hardware, duration, loader_length
from zerobit.train.objective import Batch, Objective, accuracy, evaluate, split_batch
from zerobit.train.phases import Data, Recipe, finetune, search

#: Batches that activation ranges are calibrated on before a search.
_CALIBRATION_BATCHES = 4
#: Samples kept for `Result.verify`.
_VERIFY_SAMPLES = 256


@dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation that the data was normalised with; goes into exported files.

    Attributes:
        mean: of each channel.
        std: of each channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Result:
    """A compressed network and how it came about.

    Attributes:
        net: fine-tuned, fixed widths; an ordinary module.
        plan: what was decided.
        graph: of the uncut network, which the plan refers to.
        stages: metric and cost of the float, searched and fine-tuned network.
        normalisation: of the data, or None.
        samples: normalised inputs by name that `verify` uses.
        facts: settings, for the report.
        metric: name of what stages have of data.
    """

    net: QuantNet
    plan: Plan
    graph: Graph
    stages: tuple[Stage, ...]
    normalisation: Normalisation | None
    samples: Mapping[str, Tensor] = field(repr=False)
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    metric: str = ACCURACY

    def report(self, path: str | Path) -> Path:
        """Write one HTML page with accuracy, layers and settings."""
        rows = layer_rows(self.graph, self.plan)
        return write_text(path, html_page("Compressed network", self.stages, rows, self.facts, self.metric))

    def save(self, path: str | Path) -> Path:
        """Write weights and plan as one safetensors file; `zerobit.load` reads it."""
        return save(self.net, path)

    def export(self, path: str | Path, format: str = "onnx", **options: Any) -> Path:
        """Write a file, or a C library; with a normalisation it takes raw inputs.

        Args:
            path: the file, or the folder of a C library.
            format: onnx, c or tflite.
            options: as in `zerobit.export.onnx`, `.c` and `.tflite`; samples are those of this result if left out.

        Raises:
            FormatError: a format that does not exist.
            ExportError: the format can't hold the network; names the op.
        """
        form = writer(format)
        if form.samples:
            some = {name: self._raw(x[: form.samples]).numpy() for name, x in self.samples.items()}
            options.setdefault("samples", some)
        return form.write(self.net, path, **self._normalised(), **options)

    def verify(self, path: str | Path | None = None) -> list[Comparison]:
        """Compare an exported file with the integer reference, value by value.

        Args:
            path: an ONNX file that `export` wrote; a temporary one if None. For other formats: `zerobit verify`.
        """
        import tempfile

        graph = lower(self.net, **self._normalised())
        samples = {name: self._raw(x).numpy() for name, x in self.samples.items()}
        if path is not None:
            return verify_onnx(graph, Path(path), samples)
        with tempfile.TemporaryDirectory() as folder:
            return verify_onnx(graph, self.export(Path(folder) / "model.onnx"), samples)

    def _normalised(self) -> dict[str, Any]:
        n = self.normalisation
        return {} if n is None else {"mean": n.mean, "std": n.std}

    def _raw(self, x: Tensor) -> Tensor:
        if self.normalisation is None:
            return x
        shape = (1, -1, *(1,) * (x.dim() - 2))
        return x * torch.tensor(self.normalisation.std).reshape(shape) + torch.tensor(self.normalisation.mean).reshape(
            shape
        )


def compress(
    model: nn.Module,
    train_loader: Iterable[Batch],
    val_loader: Iterable[Batch],
    *,
    budget: Mapping[str, str | float] | str | float | None = None,
    strength: tuple[str, float] | None = None,
    max_drop: float | None = None,
    targets: Sequence[str | AbstractCost] = (),
    method: AbstractMethod | None = None,
    frozen: Sequence[str] = (),
    bits: Mapping[str, Widths] | None = None,
    min_channels: Count | None = None,
    multiple_of: Count | None = None,
    loss: Callable[[Any, Any], Tensor] = nn.functional.cross_entropy,
    metric: Callable[[Any, Any], Any] = accuracy,
    batch_format: Callable[[Batch], tuple[tuple[Any, ...], Mapping[str, Any], Any]] = split_batch,
    epochs: int | Sequence[int] = (8, 4),
    lr: float = 1e-3,
    choice_lr: float = 1e-2,
    distillation: float = 0.5,
    seed: int = 0,
    device: str = "auto",
    precision: str = "32-true",
    normalisation: Normalisation | None = None,
    test_loader: Iterable[Batch] | None = None,
    run: str | Path | None = None,
    progress: bool = True,
) -> Result:
    """Prune and quantise a trained network under a budget. The model given is never changed.

    Args:
        model: trained, in float.
        train_loader: batches with `len`; (inputs..., target) or a dict, or whatever `batch_format` splits.
        val_loader: for choosing; never trained on.
        budget: one limit or several: {"size": "64kB", "ram": "48kB", "ne16.cycles": 1e5}, or in percent of the network
            with all weights at 8 bit, {"bops": "25%"}; `zerobit targets` lists the names. A bare value is a size.
        strength: (cost, strength) instead of a budget.
        max_drop: points of the metric (0.01 = one point) that may be lost; the smallest network that keeps this on
            validation data is returned. Instead of a budget.
        targets: costs of your own that a budget or strength can name: costs, .toml or .csv files, or MODULE:NAME; see
            `zerobit.cost.own.load_costs`.
        method: how bits are chosen; if None, `ChannelSoftmax()` with a width per channel, or per layer for a device
            that pays for each width in a layer anew. Widths start near the budget, unless the method says where or
            has the coupled form.
        frozen: patterns of layers that stay as they are; this and the next three as for `attach`.
        bits: pattern -> width or widths of weights, such as {"stem.*": 8}.
        min_channels: channels that every group keeps, or pattern -> channels.
        multiple_of: the number of channels that stay is a multiple of this, or pattern -> number; if None, what suits
            the devices that are limited.
        loss: (output, target) -> scalar.
        metric: (output, target) -> mean over the batch, larger is better.
        batch_format: batch -> (positional inputs, named inputs, target).
        epochs: (search, fine-tuning), or their sum, of which two thirds are search.
        lr: of weights, bit planes and ranges. Adam moves all weights alike: take a tenth where a layer's are around
            0.01, as with thousands of inputs.
        choice_lr: of gates and widths.
        distillation: share of the loss taken from the float network's outputs.
        seed: of every random draw.
        device: "auto", "cpu", "cuda", "mps".
        precision: as Lightning Fabric's.
        normalisation: of the data; put into exported files.
        test_loader: for the last figures only.
        run: folder for checkpoints; a killed run resumes from it.
        progress: whether to show progress.

    Raises:
        BudgetError: no budget, or one that can't be read or met; names the smallest reachable value. A method that
            chooses nothing needs none, and can't keep a drop.
        CaptureError: the model can't be captured.
        FormatError: a pattern that matches nothing, a number or rate that can't be, or no method.
        TrainingError: epochs that can't be, a loss that is not finite, an empty loader, batches of another form.
    """
    if method is not None:
        check_method(method)
    objective = Objective(loss, metric, batch_format, distillation)
    loader_length(train_loader)
    chooses = method is None or method.chooses
    price = make_price(budget, strength, max_drop, targets, chooses=chooses)
    job = _Job(
        data=Data(train_loader, val_loader),
        test=test_loader,
        objective=objective,
        recipe=Recipe.of(epochs, lr=lr, choice_lr=choice_lr),
        hardware=Hardware(device, precision, seed, progress),
        run=None if run is None else Path(run),
        console=Console(quiet=not progress, markup=False),
        costs=price.costs,
    )
    control = Control.of(frozen, bits, min_channels, multiple_of)
    if chooses:
        control = control.suited_to(fitting_multiple(price.costs))
    torch.manual_seed(seed)
    teacher = copy.deepcopy(model).eval()
    net, examples = _prepare(teacher, job, method, price, control)
    _announce(net.graph, price, job.console)
    if max_drop is None:
        check_limits(net, price)
    float_stage = job.stage("float", teacher, net.graph, None)
    history = search(
        net, price, teacher, job.data, objective, job.recipe, job.hardware,
        checkpoint=job.file("search.ckpt"), console=job.console,
    )  # fmt: skip
    if max_drop is not None:
        plan, small, (searched, tuned) = _smallest_within(net, teacher, job, max_drop, float_stage)
    else:
        plan, small, (searched, tuned) = _finish(net, price, teacher, job)
    stages = (float_stage, replace(searched, seconds=duration(history)), tuned)
    facts = {
        "budget": price.describe(),
        "method": repr(net.method),
        "recipe": repr(job.recipe),
        "seed": str(seed),
        "control": control.describe(),
    }
    name = objective.names()["metric"]
    shown = name if name.isidentifier() else "metric"
    return Result(small.cpu(), plan, net.graph, stages, normalisation, examples, facts, shown)


@dataclass(frozen=True)
class _Job:
    """What all phases of one compression share."""

    data: Data
    test: Iterable[Batch] | None
    objective: Objective
    recipe: Recipe
    hardware: Hardware
    run: Path | None
    console: Console
    costs: tuple[AbstractCost, ...]

    def file(self, name: str) -> Path | None:
        return None if self.run is None else self.run / name

    def stage(self, name: str, net: nn.Module, graph: Graph, plan: Plan | None) -> Stage:
        """Metrics and cost of a network; the float one (no plan) counts 32 bits per weight."""
        val = evaluate(net, self.data.val, self.objective)
        test = None if self.test is None else evaluate(net, self.test, self.objective)
        use = usage(graph, uniform(graph, 8) if plan is None else plan.net_bits())
        size = float(Size()(use)) * (4 if plan is None else 1)
        others = [] if plan is None else [cost for cost in self.costs if cost.name not in ("size", "macs")]
        costs = {cost.name: written(float(cost(use)), cost.unit) for cost in others}
        return Stage(name, val, test, size, float(Macs()(use)), costs)


def _prepare(
    model: nn.Module, job: _Job, method: AbstractMethod | None, price: AbstractPrice, control: Control
) -> tuple[SearchNet, Mapping[str, Tensor]]:
    """The search network, calibrated on training batches, and validation samples for `verify`."""
    cpu = torch.device("cpu")
    model.to(cpu)
    batches = [job.objective.read(b, cpu)[:2] for b in itertools.islice(job.data.train, _CALIBRATION_BATCHES)]
    if not batches:
        msg = "`train_loader` gave no batch; it must give at least one; check its length"
        raise TrainingError(msg)
    args, kwargs = batches[0]
    default = ChannelSoftmax(granularity=fitting_granularity(price.costs))
    net = attach(model, args, method or default, kwargs, **vars(control))
    calibrate(net, batches)
    limits = price.limits(net.graph)
    if net.method.start_bits is None and limits:
        net.start_at(min(_start_bits(net, limit) for limit in limits))
    held = [job.objective.read(b, cpu)[:2] for b in itertools.islice(job.data.val, 4)]
    if not held:
        msg = "`val_loader` gave no batch; it must give at least one, each time anew; use a DataLoader or a list"
        raise TrainingError(msg)
    flat = [net.flatten_inputs(a, k) for a, k in held]
    samples = {
        name: torch.cat([row[i] for row in flat])[:_VERIFY_SAMPLES].contiguous()
        for i, name in enumerate(net.graph.inputs)
    }
    device = job.hardware.fabric().device
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net, samples


def fitting_granularity(costs: Sequence[AbstractCost]) -> Granularity:
    """Of widths: per channel, or per layer where a device pays for each width in a layer anew."""
    return "layer" if any(cost.run_per_width for cost in costs) else "channel"


def fitting_multiple(costs: Sequence[AbstractCost]) -> int:
    """Of channels: what the device that takes most at once takes."""
    return max(cost.channel_multiple for cost in costs)


#: Share of the cost at the widest width above which the narrowest saves little.
_WIDTH_MATTERS = 0.75


def _start_bits(net: SearchNet, limit: Limit) -> int:
    """The widest uniform network that keeps a limit, or the narrowest."""
    costs = {b: float(limit.cost(usage(net.graph, uniform(net.graph, b)))) for b in net.method.widths}
    within = [b for b, cost in costs.items() if cost <= limit.amount * (1 + 1e-9)]
    narrow, wide = min(costs), max(costs)
    # where width alone can't meet the budget and hardly matters (MACs, MPIC), the search prunes: it starts wide
    return max(within, default=wide if costs[narrow] > _WIDTH_MATTERS * costs[wide] else narrow)


def _announce(graph: Graph, price: AbstractPrice, console: Console) -> None:
    """Say what the limits are and what uniform networks cost."""
    limits = {limit.cost.name: limit.amount for limit in price.limits(graph)}
    uses = {b: usage(graph, uniform(graph, b)) for b in (8, 4, 2)}
    for cost in price.costs:
        budget = f" budget {written(limits[cost.name], cost.unit)};" if cost.name in limits else ""
        text = ", ".join(f"{b} bit {written(float(cost(use)), cost.unit)}" for b, use in uses.items())
        console.print(f"{cost.name}:{budget} uniform networks: {text}", highlight=False)


def _finish(
    net: SearchNet, price: AbstractPrice, teacher: nn.Module, job: _Job, name: str = "finetune.ckpt"
) -> tuple[Plan, QuantNet, tuple[Stage, Stage]]:
    """Decide, cut, fine-tune; then biases become what integers make of them, so that what is measured is exported."""
    plan = decide(net, price)
    small = apply(net, plan)
    searched = job.stage("searched", small, net.graph, plan)
    history = finetune(
        small, teacher, job.data, job.objective, job.recipe, job.hardware,
        checkpoint=job.file(name), console=job.console,
    )  # fmt: skip
    settle(small)
    tuned = replace(job.stage("fine-tuned", small, net.graph, plan), seconds=duration(history))
    return plan, small, (searched, tuned)


#: Shares tried where the drop is limited.
_MAX_DROP_ROUNDS = 5
_MAX_DROP_RANGE = (0.03, 1.0)


def _smallest_within(
    net: SearchNet, teacher: nn.Module, job: _Job, max_drop: float, reference: Stage
) -> tuple[Plan, QuantNet, tuple[Stage, Stage]]:
    """Bisect the size, on a logarithmic scale, for the smallest network within the drop on validation data.

    The preferences of one search are projected to each size; only fine-tuning is repeated.

    Raises:
        BudgetError: no size tried keeps the drop; names the best.
    """
    low, high = _MAX_DROP_RANGE
    best: tuple[Plan, QuantNet, tuple[Stage, Stage]] | None = None
    least = float("inf")
    share = 0.25
    for round_ in range(_MAX_DROP_ROUNDS):
        price = Budget(Size(), f"{100 * share:.4g}%")
        if not _is_reachable(net, price):
            low, share = share, float(np.sqrt(share * high))
            continue
        found = _finish(net, price, teacher, job, f"finetune-{round_}.ckpt")
        drop = (reference.val or 0.0) - (found[2][-1].val or 0.0)
        least = min(least, drop)
        job.console.print(f"size {100 * share:.3g} %: {100 * drop:.2f} points lost", highlight=False)
        if drop <= max_drop:
            best, high = found, share
        else:
            low = share
        share = float(np.sqrt(low * high))
    if best is None:
        msg = (
            f"`max_drop` is {max_drop}; the smallest drop reached is {least:.4f}; allow that, or train for more epochs"
        )
        raise BudgetError(msg)
    return best


def _is_reachable(net: SearchNet, budget: Budget) -> bool:
    try:
        check_limits(net, budget)
    except BudgetError:
        return False
    return True
