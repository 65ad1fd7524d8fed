"""Files of a run: written for a device, and run here to prove that they compute the same."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from zerobit.coverage import OpRow
from zerobit.cut.apply import QuantNet
from zerobit.errors import ExportError, FormatError
from zerobit.export.c99.folder import write_library
from zerobit.export.c99.library import Library
from zerobit.export.c99.toolchain import TARGETS, missing_tools, run_image, too_large
from zerobit.export.comparison import LayerComparison
from zerobit.export.runtimes.base import AbstractRuntime, Exported
from zerobit.export.runtimes.c_library import EmulatedC, HostC
from zerobit.export.runtimes.onnx_runtime import OnnxRuntime
from zerobit.export.runtimes.tflite_micro import TfliteMicro
from zerobit.export.verify import Comparison, verify_onnx
from zerobit.export.writers import ONNX_FILE, writer
from zerobit.integer.agreement import Agreement, agreement
from zerobit.integer.ir import IntegerGraph
from zerobit.integer.lower import lower
from zerobit.measure.network_costs import NetworkCost, check_targets, network_costs
from zerobit.runs import Run
from zerobit.workflows import load_run, raw_images
from zerobit.zoo.data import Batches
from zerobit.zoo.tasks import load_task, needs_data

Array = NDArray[np.generic]

#: Samples that are compared in every layer, and by the trained network; outputs are compared on all.
_LAYER_SAMPLES = 1024
_AGREEMENT_SAMPLES = 256
#: The microcontroller that an exported C library is counted on.
_COUNTED_ON = "cortex-m4"
_EVALUATION_BATCH = 500


@dataclass(frozen=True)
class FileOptions:
    """What the formats can be told; each takes what concerns it.

    Attributes:
        container: of ONNX: packcast, int8 or exact.
        weights: of TFLite: int8 or int4.
        name: of C: what functions begin with.
    """

    container: str = "packcast"
    weights: str = "int8"
    name: str = "zb"

    @staticmethod
    def of(format_: str, **given: str | None) -> "FileOptions":
        """Those that were given, for a format.

        Raises:
            FormatError: a format that does not exist, or an option that it does not have.
        """
        writer(format_)
        asked = {option: value for option, value in given.items() if value is not None}
        wrong = next((option for option in asked if _FORMAT_OF[option] != format_), None)
        if wrong is not None:
            msg = (
                f"`{wrong}` is {asked[wrong]!r}, but `format` is {format_!r}, which has no such option; "
                f"leave it out, or write {_FORMAT_OF[wrong]!r}"
            )
            raise FormatError(msg)
        return FileOptions(**asked)


#: Option -> the format that has it.
_FORMAT_OF = {"container": "onnx", "weights": "tflite", "name": "c"}


@dataclass(frozen=True)
class Written:
    """A file that was written.

    Attributes:
        path: the file or folder.
        facts: what to say of it.
        float_ops: what it computes in float.
    """

    path: Path
    facts: tuple[str, ...]
    float_ops: tuple[OpRow, ...] = ()


def export_run(folder: Path, format_: str, options: FileOptions, out: Path | None, data: Path | None) -> Written:
    """Write a run's network in a format.

    Args:
        folder: of the run.
        format_: onnx, c or tflite.
        options: of the formats.
        out: file, or folder of C; in the run's folder if None.
        data: where the task's data is, for samples; None for tasks that need no folder, and for C, which then has
            random samples.

    Raises:
        FormatError: a format that does not exist.
        ExportError: the format can't hold the network; names the node.
    """
    form = writer(format_)
    run, net = load_run(folder)
    path = out or folder / form.name
    metadata = {"zerobit.plan": net.plan.hash}
    match format_:
        case "onnx":
            from zerobit.export.onnx_file import write_onnx  # onnx is an extra

            graph = lower(net, run.mean, run.std)
            write_onnx(graph, path, options.container, metadata)  # type: ignore[arg-type]
            return Written(path, (_size(path),), _float_ops(graph))
        case "tflite":
            samples = raw_images(load_task(run.task, data).val)[: form.samples]
            form.write(net, path, samples, mean=run.mean, std=run.std, weights=options.weights)
            return Written(path, (_size(path),))
        case _:
            samples = _vectors(run, net, data)
            graph = lower(net, run.mean, run.std)
            library = write_library(graph, path, samples, name=options.name, metadata=metadata)
            return Written(path, _c_facts(library, samples))


def _size(path: Path) -> str:
    return f"{path.stat().st_size:,} bytes"


def _vectors(run: Run, net: QuantNet, data: Path | None) -> Array:
    """Samples for a C library: of the task where its data is at hand, else random."""
    count = writer("c").samples
    if data is not None or not needs_data(run.task):
        return raw_images(load_task(run.task, data).test)[:count]
    shape = net.graph.shapes[net.graph.inputs[0]][1:]
    return np.random.default_rng(0).uniform(0, 1, (count, *shape)).astype(np.float32)


def _c_facts(library: Library, samples: Array) -> tuple[str, ...]:
    """Memory, and what the image of a microcontroller takes where it can be built here."""
    facts = [f"arena {library.arena.size:,} B, constants {library.constant_bytes:,} B"]
    if tools := missing_tools(_COUNTED_ON):
        return (*facts, f"to count flash and instructions, install {', '.join(tools)}, or `make {_COUNTED_ON}` there")
    if reason := too_large(library, len(samples), _COUNTED_ON):
        return (*facts, f"not counted on {_COUNTED_ON}: {reason}")
    image = run_image(library, dict.fromkeys(library.graph.inputs, samples), _COUNTED_ON)
    if image.different:
        msg = f"`{_COUNTED_ON}` computes other values than the reference in {sorted(image.different)}; please report"
        raise ExportError(msg)
    return (
        *facts,
        f"{_COUNTED_ON} image: {image.flash:,} B of flash with {len(samples)} samples in it, {image.ram:,} B of RAM, "
        f"{image.instructions[0]:,} instructions per sample (QEMU); all tensors equal to the reference",
    )


def _float_ops(graph: IntegerGraph) -> tuple[OpRow, ...]:
    return tuple(OpRow(op.name, op.target, op.module, op.reason) for island in graph.islands for op in island.ops)


# ---------------------------------------------------------------------------------------------- cost


def cost_run(folder: Path, targets: Sequence[str], data: Path | None) -> tuple[NetworkCost, ...]:
    """What a run's network costs.

    Args:
        folder: of the run.
        targets: as of `network_costs`.
        data: where the task's data is; without it the logits of a file to compile are scaled by random samples.

    Raises:
        BudgetError: a name or file that is no target.
        ExportError: TFLite can't hold the network, or the compiler is not installed or fails.
    """
    check_targets(targets)
    run, net = load_run(folder)
    return network_costs(net, _vectors(run, net, data), targets, run.mean, run.std)


def cost_table(rows: Sequence[NetworkCost]) -> Table:
    """A row per target."""
    table = Table(title="What the network costs", title_justify="left")
    table.add_column("target", no_wrap=True)
    table.add_column("cost", justify="right", no_wrap=True)
    amounts = {
        "SRAM [B]": [row.sram for row in rows],
        "DRAM [B]": [row.dram for row in rows],
        "flash [B]": [row.flash for row in rows],
        "ops on the CPU": [row.cpu_operators for row in rows],
    }
    shown = {title: column for title, column in amounts.items() if any(amount is not None for amount in column)}
    for title in shown:
        table.add_column(title, justify="right")
    for row, *cells in zip(rows, *shown.values(), strict=True):
        table.add_row(row.target, row.cost, *("" if cell is None else f"{cell:,}" for cell in cells))
    return table


# ---------------------------------------------------------------------------------------------- verify


@dataclass(frozen=True)
class Outcome:
    """What a verification found.

    Attributes:
        outputs: of the ONNX file, on every test image: one per output and set of inputs.
        layers: by title of a runtime, a row per tensor and set of inputs, in order of execution.
        skipped: title of a runtime -> why it could not run.
        order: names of all tensors, in order of execution.
        trained: the trained network's quantised tensors against the integers.
        accuracy: of the ONNX file on the test images; None where ONNX Runtime is not installed.
        agreement: share of test images on which it predicts what the trained network predicts; likewise.
        float_ops: what the file computes in float.
    """

    outputs: Sequence[Comparison]
    layers: Mapping[str, Sequence[LayerComparison]]
    skipped: Mapping[str, str]
    order: Sequence[str]
    trained: Sequence[Agreement]
    accuracy: float | None
    agreement: float | None
    float_ops: tuple[OpRow, ...]

    @property
    def first_difference(self) -> str:
        """The first layer of the first runtime that diverges, or the first output; "" if all is equal."""
        for title, rows in self.layers.items():
            for row in rows:
                if row.differences:
                    return f"{title}: first at layer {row.layer}, {row.inputs}"
        return next((f"ONNX Runtime: output {r.output}, {r.inputs}" for r in self.outputs if r.differences), "")


def runtimes() -> tuple[AbstractRuntime, ...]:
    """Everything that could run an exported network."""
    return (OnnxRuntime(), HostC(), *(EmulatedC(target) for target in TARGETS), TfliteMicro())


def verify_run(folder: Path, data: Path | None, say: Callable[[str], None] = lambda text: None) -> Outcome:
    """Run a run's files on test images and compare every layer with the integer reference and the trained network.

    Args:
        folder: of the run.
        data: where the task's data is.
        say: is told what is being done.

    Raises:
        ExportError: a file is cut off, or is not what the network makes; names it.
    """
    run, net = load_run(folder)
    task = replace(load_task(run.task, data), mean=run.mean, std=run.std)  # what the network was trained with
    graph = lower(net, run.mean, run.std)
    images = raw_images(task.test)
    name = next(iter(graph.inputs))
    exported = Exported(graph, folder, {name: images[:_LAYER_SAMPLES]}, metadata={"zerobit.plan": net.plan.hash})
    layers, skipped = _layers(exported, say)
    say("the trained network")
    batches = [x for x, _ in Batches(task.test, task, _EVALUATION_BATCH)]
    with torch.no_grad():
        predicted = torch.cat([net(x).argmax(1) for x in batches]).numpy()
    some = batches[0][:_AGREEMENT_SAMPLES]
    trained = agreement(net, graph, [some], {name: images[: len(some)]})
    order = [tensor.name for tensor in graph.tensors]
    outputs, accuracy, same = (), None, None
    if OnnxRuntime.title in layers:
        say(f"outputs of {len(images):,} test images in ONNX Runtime")
        outputs, logits = _outputs(exported, {name: images})
        accuracy = float((logits.argmax(1) == task.test.y.numpy()).mean())
        same = float((logits.argmax(1) == predicted).mean())
    return Outcome(outputs, layers, skipped, order, trained, accuracy, same, _float_ops(graph))


def _outputs(exported: Exported, images: Mapping[str, Array]) -> tuple[Sequence[Comparison], Array]:
    """The ONNX file's outputs against the twin's, and its logits."""
    from zerobit.export.onnx_file import write_onnx  # onnx is an extra
    from zerobit.export.onnx_run import run_onnx

    with exported.file(ONNX_FILE, partial(write_onnx, exported.graph)) as path:
        (logits,) = run_onnx(path, next(iter(images.values())))
        return verify_onnx(exported.graph, path, images), logits


def _layers(
    exported: Exported, say: Callable[[str], None]
) -> tuple[dict[str, Sequence[LayerComparison]], dict[str, str]]:
    layers: dict[str, Sequence[LayerComparison]] = {}
    skipped: dict[str, str] = {}
    for runtime in runtimes():
        if reason := runtime.missing(exported):
            skipped[runtime.title] = re.sub(r"\s+", " ", reason)
            continue
        say(f"every layer: {runtime.title}")
        layers[runtime.title] = runtime.rows(exported)
    return layers, skipped


def runtime_table(outcome: Outcome) -> Table:
    """A row per runtime that ran."""
    table = Table(title="Every layer against the integer reference", title_justify="left")
    table.add_column("")
    table.add_column("runtime", overflow="fold")
    for title in ("tensors", "values compared", "different"):
        table.add_column(title, justify="right")
    table.add_column("first at layer", overflow="fold")
    for number, (title, rows) in enumerate(outcome.layers.items(), 1):
        first = next((row.layer for row in rows if row.differences), "")
        counts = (len({row.layer for row in rows}), sum(r.values for r in rows), sum(r.differences for r in rows))
        table.add_row(str(number), title, *(f"{count:,}" for count in counts), first)
    return table


def comparison_table(outcome: Outcome) -> Table:
    """A row per layer, a column per row of `runtime_table`: values that differ, over all sets of inputs."""
    table = Table(title="Values that differ, by layer", title_justify="left")
    table.add_column("layer", overflow="fold")
    found: dict[str, dict[str, int]] = {}
    for number, (title, rows) in enumerate(outcome.layers.items(), 1):
        table.add_column(str(number), justify="right")
        for row in rows:
            own = found.setdefault(row.layer, {})
            own[title] = own.get(title, 0) + row.differences
    for layer in outcome.order:
        if layer in found:
            cells = [found[layer].get(title) for title in outcome.layers]
            table.add_row(layer, *("" if cell is None else f"{cell:,}" for cell in cells))
    return table


def trained_table(outcome: Outcome) -> Table:
    """How far fake quantisation in float is from the integers, layer by layer."""
    table = Table(title="The trained network (float) against its integers", title_justify="left")
    for title in ("layer", "values", "different [%]", "largest [LSB]"):
        table.add_column(title, justify="left" if title == "layer" else "right")
    for row in outcome.trained:
        share = f"{100 * row.differences / row.values:.4f}"
        table.add_row(row.tensor, f"{row.values:,}", share, str(row.largest))
    return table
