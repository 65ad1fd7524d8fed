"""What the scripts that write docs/results.md share: rows with plans made before training, files, sections."""

import itertools
import json
import os
import platform
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from zerobit.cost import Macs, Size
from zerobit.cost.usage import usage
from zerobit.cut.apply import apply
from zerobit.cut.decide import decide
from zerobit.report import Stage, write_text
from zerobit.runs import load_float
from zerobit.search.attach import SearchNet, attach, calibrate
from zerobit.search.methods.softmax import ChannelSoftmax
from zerobit.train.objective import Objective, evaluate
from zerobit.train.phases import Data, Recipe, finetune
from zerobit.workflows import Settings
from zerobit.zoo.data import Batches, Task
from zerobit.zoo.models import ZooModel

_CALIBRATION_BATCHES = 4
#: Of the page that both scripts write.
_TITLE = "# Results\n"


@dataclass(frozen=True)
class Workplace:
    """A task with its float network, from which all rows start.

    Attributes:
        task_name: of the zoo.
        model: of the zoo.
        runs: folder; a row has a folder or a file of its own in it.
        data: where the data is.
        epochs: of search and of fine-tuning; networks whose plan is made before training have the sum.
        seed: of every random draw.
        batch: samples per step.
        device: as Fabric's accelerator.
        console: where to print.
    """

    task_name: str
    model: str
    runs: Path
    data: Path | None
    epochs: tuple[int, int]
    seed: int
    batch: int = 128
    device: str = "auto"
    console: Console = field(default_factory=Console)

    def settings(self, name: str) -> Settings:
        """Of the run in the folder of that name."""
        return Settings(
            self.task_name, self.runs / name, self.data, self.model, self.seed, self.batch, self.device
        )  # fmt: skip

    @property
    def float_path(self) -> Path:
        """The float network."""
        return self.runs / "float" / "float.safetensors"

    @cached_property
    def _loaded(self) -> tuple[Task, ZooModel]:
        return self.settings("").load()

    @property
    def task(self) -> Task:
        """The data."""
        return self._loaded[0]

    def build(self) -> nn.Module:
        """The network, untrained."""
        return self._loaded[1].build(self.task.num_classes)

    @cached_property
    def teacher(self) -> nn.Module:
        """The float network."""
        return load_float(self.build(), self.float_path)

    @cached_property
    def batches(self) -> list[torch.Tensor]:
        """What ranges are calibrated on."""
        train = Batches(self.task.train, self.task, self.batch, shuffle=True, augment=True, seed=self.seed)
        return [x for x, _ in itertools.islice(train, _CALIBRATION_BATCHES)]

    @cached_property
    def val(self) -> Batches:
        """Validation images."""
        return Batches(self.task.val, self.task, 500)

    @cached_property
    def test(self) -> Batches:
        """Test images."""
        return Batches(self.task.test, self.task, 500)

    def attached(self, weight_bits: tuple[int, ...]) -> SearchNet:
        """The float network with these widths to choose from, calibrated."""
        net = attach(self.teacher, self.batches[0], ChannelSoftmax(weight_bits=weight_bits))
        return calibrate(net, [((x,), {}) for x in self.batches])

    def uniform(self, bits: int) -> Stage:
        """All weights at one width; trained if there is no such row yet."""
        name = f"uniform {bits} bit"
        return self.once(name, lambda: self.fixed(name, f"uniform-{bits}", self.attached((bits,))))

    def fixed(self, name: str, folder: str, net: SearchNet) -> Stage:
        """A network whose plan is made before training, trained for as many epochs as a search and its fine-tuning."""
        self.console.print(name)
        settings, plan = self.settings(folder), decide(net)
        small = apply(net, plan)
        train = Batches(self.task.train, self.task, self.batch, shuffle=True, augment=True, seed=self.seed)
        recipe = Recipe(search_epochs=0, finetune_epochs=sum(self.epochs))
        finetune(
            small, self.teacher, Data(train, self.val), Objective(), recipe, settings.hardware(),
            checkpoint=settings.out / "finetune.ckpt", console=self.console,
        )  # fmt: skip
        val, test = (evaluate(small, split, Objective()) for split in (self.val, self.test))
        use = usage(net.graph, plan.net_bits())
        return Stage(name, val, test, float(Size()(use)), float(Macs()(use)))

    def row_path(self, name: str) -> Path:
        """File of a row."""
        return self.runs / f"{name.replace(' ', '-')}.json"

    def once(self, name: str, make: Callable[[], Stage]) -> Stage:
        """A row from its file, or made now."""
        path = self.row_path(name)
        if path.exists():
            return Stage(**json.loads(path.read_text(encoding="utf-8"))["stage"])
        stage = make()
        write_text(path, json.dumps({"stage": asdict(stage)}, indent=2))
        return stage


def machine() -> str:
    """Processor, cores and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{platform.machine()} {cpu}, {os.cpu_count()} cores, {versions}"


def made(seed: int) -> str:
    """The line under a table: seed, date and machine."""
    return f"Seed {seed}. {datetime.now(UTC):%Y-%m-%d}. {machine()}."


def percent(value: float | None) -> str:
    """82.06, or nothing."""
    return "" if value is None else f"{100 * value:.2f}"


def write_section(path: Path, title: str, body: str) -> None:
    """Put a section in the place of the one of its title, or at the end; the others stay as they are.

    Args:
        path: markdown page; made if missing.
        title: of the section.
        body: its text.
    """
    page = path.read_text(encoding="utf-8") if path.exists() else _TITLE
    head, *sections = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    heading = f"## {title}\n"
    section = f"{heading}\n{body.strip()}\n"
    index = next((i for i, old in enumerate(sections) if old.startswith(heading)), len(sections))
    sections[index : index + 1] = [section]
    write_text(path, "\n".join(part.strip() + "\n" for part in [head, *sections]))
