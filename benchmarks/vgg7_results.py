r"""VGG7 on CIFAR-10 at the bit operations of published joint pruning and quantization; a section of docs/results.md.

The full recipe, for a GPU:

    python benchmarks/vgg7_results.py --data DIR --runs RUNS

A shortened one, whose epochs see fewer images; its rows stand beside the others, marked as such:

    python benchmarks/vgg7_results.py --data DIR --runs RUNS --images 2560 --held 1000 --epochs 8 8 4 --batch 64 \
        --methods djpq

Stopped runs go on where they were. Nothing is chosen on test data.
"""

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import torch
from projections import counted
from results_common import machine, percent, write_section
from rich.console import Console
from torch import Tensor, nn

from zerobit.api import Normalisation, compress
from zerobit.cost import Bops
from zerobit.cost.base import FLOAT_BITS
from zerobit.formats import GRID
from zerobit.report import write_text
from zerobit.runs import load_float, save_float
from zerobit.search.method import AbstractMethod
from zerobit.search.methods.djpq import Djpq
from zerobit.search.methods.softmax import ChannelSoftmax
from zerobit.train.loop import Hardware, duration
from zerobit.train.objective import Objective
from zerobit.train.phases import Data, train_float
from zerobit.zoo.data import Batches, Split, Task
from zerobit.zoo.models import model
from zerobit.zoo.tasks import load_task

_TITLE = "VGG7 on CIFAR-10"
#: Share of the bit operations at 32 x 32 bit that DJPQ is published with: the budget of the rows here.
_SHARE = 0.0048
#: Of the 8-bit network, which has 8 * 8 of 32 * 32.
_BUDGET = f"{100 * _SHARE * FLOAT_BITS**2 / 64:g}%"
_BATCH = 128
#: Of the float network, at that batch.
_FLOAT_LR = 0.1
#: Of search and fine-tuning. Weights of a layer with thousands of inputs are small: at ten times this rate one step of
#: Adam, which moves all of them alike, is a tenth of the largest, and after five all images have one answer.
_SEARCH_LR = 1e-4
#: Title in the table -> what makes it. Activations are 2 to 8 bit, as in the publications.
_METHODS: dict[str, tuple[str, Callable[[], AbstractMethod]]] = {
    "djpq": ("DJPQ", Djpq),
    "djpq-pow2": ("DJPQ, powers of two", lambda: Djpq(restrict="power_of_two")),
    "softmax": ("channel softmax", lambda: ChannelSoftmax(activation_bits=GRID[1:])),
}
#: Network, relative BOPs [%], test accuracy or drop, source; on the lossless data.
_PUBLISHED = (
    ("DJPQ", "0.48", "", "1.5", "Wang et al., ECCV 2020"),
    ("Bayesian Bits", "0.51", "93.23", "", "README of the code of van Baalen et al., NeurIPS 2020"),
    ("GETA", "0.41", "92.57", "", "tutorial of GETA"),
)
_HEAD = (
    "| network | epochs: float, search + fine-tuning | BOPs [%] | float test [%] | test [%] | points below float "
    "| val [%] | images of val and test | weights [B] | training [s]: float, search, fine-tuning "
    "| values of the ONNX file that differ |"
)


class Part:
    """The first batches of each pass; as these are shuffled, every epoch sees other images.

    Args:
        batches: of all images.
        images: seen per epoch, to the next whole batch; all if None.
        batch: images in each.
    """

    def __init__(self, batches: Batches, images: int | None, batch: int) -> None:
        self.batches = batches
        self.count = len(batches) if images is None else min(len(batches), math.ceil(images / batch))

    def set_epoch(self, epoch: int) -> None:
        """Choose order and augmentation."""
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return itertools.islice(self.batches, self.count)


@dataclass(frozen=True)
class Row:
    """A network.

    Attributes:
        method: key of `_METHODS`.
        epochs: of the float network, of search and of fine-tuning.
        images: per epoch; None for all.
        batch: images per step.
        held: images that accuracies are of, at most; None for all.
        float_test: accuracy of the float network.
        val: accuracy on validation images.
        test: accuracy on test images.
        bops: of the cut network, share of those at 32 x 32 bit.
        size: bytes of weights.
        seconds: of training: float network, search, fine-tuning.
        differences: values in which the exported file differs from its reference.
        machine: where it ran.
    """

    method: str
    epochs: tuple[int, int, int]
    images: int | None
    batch: int
    held: int | None
    float_test: float
    val: float
    test: float
    bops: float
    size: float
    seconds: tuple[float, float, float]
    differences: int
    machine: str


@dataclass(frozen=True)
class Lab:
    """Data and settings of all rows.

    Attributes:
        options: of the command line.
        console: where to print.
    """

    options: argparse.Namespace
    console: Console

    @property
    def folder(self) -> Path:
        """Of this recipe; other epochs, images or batches have another."""
        o = self.options
        epochs = "+".join(map(str, o.epochs))
        return o.runs / f"vgg7-{epochs}-{o.images or 'all'}-{o.held or 'all'}-batch{o.batch}-seed{o.seed}"

    @cached_property
    def task(self) -> Task:
        """CIFAR-10."""
        return load_task("cifar10", self.options.data)

    @property
    def train(self) -> Part:
        """Augmented images."""
        o = self.options
        return Part(
            Batches(self.task.train, self.task, o.batch, shuffle=True, augment=True, seed=o.seed), o.images, o.batch
        )

    def held(self, split: Split) -> Batches:
        """Images of a split that are evaluated."""
        return Batches(Split(split.x[: self.options.held], split.y[: self.options.held]), self.task, 250)

    def float_network(self) -> tuple[nn.Module, float]:
        """The float network and the seconds that its training took; trained if it is not there."""
        o, path = self.options, self.folder / "float.safetensors"
        torch.manual_seed(o.seed)
        net = model("vgg7").build(self.task.num_classes)
        seconds = self.folder / "float.json"
        if not path.exists():
            self.console.rule("float")
            history = train_float(
                net, Data(self.train, self.held(self.task.val)), Objective(), Hardware(o.device, seed=o.seed),
                epochs=o.epochs[0], lr=_FLOAT_LR * o.batch / _BATCH, checkpoint=self.folder / "float.ckpt",
                console=self.console,
            )  # fmt: skip
            write_text(seconds, json.dumps(duration(history)))
            save_float(net, path)
        return load_float(net.cpu(), path), float(json.loads(seconds.read_text(encoding="utf-8")))

    def run(self, method: str) -> Row:
        """Compress, export and verify; or go on with it."""
        o, folder = self.options, self.folder / method
        net, float_seconds = self.float_network()
        self.console.rule(method)
        result = compress(
            net, self.train, self.held(self.task.val), budget={"bops": _BUDGET}, method=_METHODS[method][1](),
            epochs=tuple(o.epochs[1:]), lr=_SEARCH_LR, seed=o.seed, device=o.device, run=folder,
            normalisation=Normalisation(self.task.mean, self.task.std), test_loader=self.held(self.task.test),
        )  # fmt: skip
        start, searched, tuned = result.stages
        result.save(folder / "small.safetensors")
        path = result.export(folder / "model.onnx")
        return Row(
            method, tuple(o.epochs), o.images, o.batch, o.held, start.test, tuned.val, tuned.test,
            counted(result.net, Bops()) / (start.macs * FLOAT_BITS**2), tuned.size,
            (float_seconds, searched.seconds, tuned.seconds),
            sum(c.differences for c in result.verify(path)), machine(),
        )  # fmt: skip


def outcomes(folder: Path) -> list[Row]:
    """Of all recipes in a folder."""
    rows = [Row(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("vgg7-*/*/row.json"))]
    return sorted(rows, key=lambda row: (-sum(row.epochs) * (row.images or 10**9), [*_METHODS].index(row.method)))


def line(row: Row) -> str:
    """A row of the table."""
    seen = "" if row.images is None else f"; {row.images:,} images per epoch, {row.batch} per step (shortened)"
    held = "all" if row.held is None else f"{row.held:,}"
    cells = [
        _METHODS[row.method][0], f"{row.epochs[0]}, {row.epochs[1]} + {row.epochs[2]}{seen}", f"{100 * row.bops:.3f}",
        percent(row.float_test), percent(row.test), f"{100 * (row.float_test - row.test):.2f}", percent(row.val), held,
        f"{row.size:,.0f}", ", ".join(f"{s:,.0f}" for s in row.seconds), str(row.differences),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def section(rows: list[Row], seed: int) -> str:
    """Published points and ours, with what is needed to read and to repeat them."""
    return "\n".join(
        [
            "BOPs: multiplications times weight width times activation width, of those at 32 x 32 bit. Published, on",
            "the lossless images:",
            "",
            "| network | BOPs [%] | test [%] | points below float | source |",
            "|---|---:|---:|---:|---|",
            *(f"| {' | '.join(cells)} |" for cells in _PUBLISHED),
            "",
            "Ours, on a copy of CIFAR-10 whose images were recompressed as JPEG, train and test alike, which costs",
            "some points: compare what is lost, not the accuracies. The budget is DJPQ's"
            f" {100 * _SHARE:.2f} % (bops={_BUDGET} of the 8-bit network),",
            "kept by the cut network, on which BOPs are counted. Rows marked as shortened saw fewer images than the",
            "full recipe and can't be compared with the published points; they say that the method runs on this",
            "network. Nothing was chosen on test images.",
            "",
            _HEAD,
            "|---|---|---:|---:|---:|---:|---:|---:|---:|---|---:|",
            *map(line, rows),
            "",
            "Command of the full recipe: `python benchmarks/vgg7_results.py --data DIR --runs RUNS`; shortened: with",
            "`--epochs`, `--images`, `--batch`, `--held` and `--methods` as in the table.",
            f"Seed {seed}. {datetime.now(UTC):%Y-%m-%d}. {'; '.join(sorted({row.machine for row in rows}))}.",
        ]
    )


def main() -> None:
    """Run what is missing, then write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--epochs", type=int, nargs=3, default=(200, 200, 100), help="float, search, fine-tuning")
    parser.add_argument("--images", type=int, help="training images per epoch, other ones in each; all if left out")
    parser.add_argument("--held", type=int, help="images of validation and of test that are evaluated; all if left out")
    parser.add_argument("--methods", nargs="*", choices=tuple(_METHODS), default=("djpq", "softmax"))
    parser.add_argument("--batch", type=int, default=_BATCH)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    options = parser.parse_args()
    lab = Lab(options, Console())
    for method in options.methods:
        path = lab.folder / method / "row.json"
        if not path.exists():
            write_text(path, json.dumps(asdict(lab.run(method)), indent=2))
    if rows := outcomes(options.runs):
        write_section(options.out, _TITLE, section(rows, options.seed))
    lab.console.print(options.out.read_text(encoding="utf-8").partition(f"## {_TITLE}")[2], markup=False)


if __name__ == "__main__":
    main()
