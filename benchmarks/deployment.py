"""Files and images of ResNet-8: bytes, latency in ONNX Runtime, flash, RAM and instructions of a Cortex-M4.

Writes a section of docs/results.md. Latencies are medians of interleaved runs in one process, one image, one thread;
instructions are counted by QEMU. Networks: float; all weights at 8 bits; two searched ones, which are searched if their
runs are not there.

    zerobit train --task cifar10 --data DIR --model resnet8 --epochs 30 --out RUNS/float
    python benchmarks/deployment.py --data DIR --runs RUNS
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from projections import Search, compressed
from results_common import Workplace, made, write_section

from zerobit.cut.apply import apply
from zerobit.cut.decide import decide
from zerobit.export.c99.library import Library
from zerobit.export.c99.toolchain import Image, run_image
from zerobit.export.onnx_file import write_onnx
from zerobit.export.onnx_run import open_session
from zerobit.integer.ir import Conv, IntegerGraph, Linear
from zerobit.integer.lower import lower
from zerobit.workflows import load_run, raw_images

_TITLE = "Files and images of ResNet-8"
_BUDGETS = {"searched": "25%", "size-50": "50%"}
_INT8 = "8 bit"


@dataclass(frozen=True)
class Written:
    """A file.

    Attributes:
        title: of its row.
        path: where it is.
        network: that it was made of.
    """

    title: str
    path: Path
    network: str


def in_bytes(graph: IntegerGraph) -> IntegerGraph:
    """The same network with every weight stored in 8 bits."""
    ops = [
        replace(op, weights=replace(op.weights, bits=np.full(op.weights.channels, 8)))
        if isinstance(op, Conv | Linear)
        else op
        for op in graph.ops
    ]
    return replace(graph, ops=tuple(ops))


def graphs(place: Workplace) -> dict[str, IntegerGraph]:
    """Integer networks by title."""
    net = place.attached((8,))
    task = place.task
    found = {_INT8: lower(apply(net, decide(net)).eval(), task.mean, task.std)}
    for name, share in _BUDGETS.items():
        run, small = load_run(place.settings(name).out)
        found[f"searched, size={share}"] = lower(small, run.mean, run.std)
    return found


def files(place: Workplace, networks: dict[str, IntegerGraph], folder: Path) -> list[Written]:
    """The float network as torch writes it, and each integer one in both containers."""
    float_path = folder / "float.onnx"
    example = torch.zeros(1, *place.task.train.x.shape[1:])
    torch.onnx.export(place.teacher.eval(), (example,), float_path, dynamo=True, external_data=False, verbose=False)
    result = [Written("float32", float_path, "float32")]
    for index, (title, graph) in enumerate(networks.items()):
        for container in ("int8",) if title == _INT8 else ("packcast", "int8"):
            path = write_onnx(graph, folder / f"{index}-{container}.onnx", container)
            result.append(Written(f"{title}, {container}", path, title))
    return result


def latencies(paths: Sequence[Path], image: np.ndarray, rounds: int) -> list[list[float]]:
    """Seconds of each file in each round."""
    sessions = [open_session(path, wide_sums=False) for path in paths]
    feeds = [{s.get_inputs()[0].name: image} for s in sessions]
    times: list[list[float]] = [[] for _ in paths]
    for number in range(rounds + 20):
        for seconds, session, feed in zip(times, sessions, feeds, strict=True):
            begin = time.perf_counter()
            session.run(None, feed)
            if number >= 20:  # warmed up
                seconds.append(time.perf_counter() - begin)
    return times


def ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """Median of the ratios of runs that were made one after the other."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def file_rows(written: Sequence[Written], times: Sequence[Sequence[float]]) -> list[str]:
    """Of the first table."""
    index = {file.title: i for i, file in enumerate(written)}
    rows = []
    for file, seconds in zip(written, times, strict=True):
        same = index.get(f"{file.network}, int8")
        cells = [
            f"{file.path.stat().st_size:,}", f"{1e6 * statistics.median(seconds):.0f}",
            f"{ratio(seconds, times[index['float32']]):.3f}", f"{ratio(seconds, times[index[f'{_INT8}, int8']]):.3f}",
            "" if same is None else f"{ratio(seconds, times[same]):.3f}",
        ]  # fmt: skip
        rows.append(f"| {file.title} | {' | '.join(cells)} |")
    return rows


def image_rows(networks: dict[str, IntegerGraph], image: np.ndarray) -> list[str]:
    """Of the second table."""
    found: dict[str, tuple[Library, Image]] = {}
    for title, graph in networks.items():
        for storage, stored in (("packed", graph), ("8 bit", in_bytes(graph))):
            if not (title == _INT8 and storage == "packed"):
                library = Library(stored, "zb", {})
                found[f"{title}, {storage}" if title != _INT8 else title] = (
                    library,
                    run_image(library, dict.fromkeys(stored.inputs, image), "cortex-m4"),
                )
    reference = found[_INT8][1]
    rows = []
    for title, (library, result) in found.items():
        assert not result.different, title
        own = found.get(title.replace(", packed", ", 8 bit"))
        instructions = result.instructions[0]
        versus = "" if own is None or ", packed" not in title else f"{instructions / own[1].instructions[0]:.3f}"
        cells = [
            f"{result.flash:,}", f"{result.flash / reference.flash:.3f}", f"{library.arena.size:,}",
            f"{instructions:,}", f"{instructions / reference.instructions[0]:.3f}", versus,
        ]  # fmt: skip
        rows.append(f"| {title} | {' | '.join(cells)} |")
    return rows


def main() -> None:
    """Write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    args = parser.parse_args()
    place = Workplace("cifar10", "resnet8", args.runs, args.data, (8, 4), args.seed)
    for name, share in _BUDGETS.items():
        compressed(place, Search(name, (f"size={share}",)))
    networks = graphs(place)
    image = raw_images(place.task.test)[:1]
    with tempfile.TemporaryDirectory() as folder:
        written = files(place, networks, Path(folder))
        times = latencies([file.path for file in written], image, args.rounds)
        rows = file_rows(written, times)
    text = [
        "One image at a time, one thread, medians of interleaved runs; ratios are medians of the ratios of",
        f"neighbouring runs ({args.rounds} rounds, ONNX Runtime {onnxruntime.__version__}).",
        "",
        "| file | bytes | latency [us] | of float32 | of 8 bit | of the same network in 8-bit storage |",
        "|---|---:|---:|---:|---:|---:|",
        *rows,
        "",
        "C for a Cortex-M4, counted by QEMU; the flash of an image holds the code, the example that runs it, and one",
        "image of 3,072 B. RAM is the arena. All tensors of all images are equal to the fixed-point reference.",
        "",
        "| network, storage of weights | flash [B] | of 8 bit | arena [B] | instructions | of 8 bit "
        "| of the same network in 8-bit storage |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *image_rows(networks, image),
        "",
        f"Command: `python benchmarks/deployment.py --data DIR --runs RUNS`. {made(args.seed)}",
    ]
    write_section(args.out, _TITLE, "\n".join(text))
    place.console.print(args.out.read_text(encoding="utf-8").partition(f"## {_TITLE}")[2], markup=False)


if __name__ == "__main__":
    main()
