"""What can say what a single layer takes: ONNX Runtime on this machine, or the compiler of an NPU."""

import os
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from zerobit.errors import BudgetError, ZerobitError
from zerobit.measure import bench
from zerobit.measure.layers import Configuration
from zerobit.measure.npu_compiler import PREFIX, accelerators, check_accelerator, estimate, vela_version

_ONNX = "onnxruntime"
#: Layers in the larger of two files; of some layers every second one is a little cheaper, so that two are added.
_MANY = 3


class AbstractLayerRuntime(ABC):
    """Says what configurations of layers take.

    Attributes:
        unit: of what they take.
    """

    unit: str

    @abstractmethod
    def steps(self, chosen: Sequence[Configuration]) -> int:
        """How often `measure` calls `advance`.

        Args:
            chosen: what to measure.
        """

    @abstractmethod
    def measure(self, chosen: Sequence[Configuration], advance: Callable[[], None]) -> list[float]:
        """What each takes; 0 or less where that can't be told.

        Args:
            chosen: what to measure.
            advance: called `steps` times.
        """

    @abstractmethod
    def untold(self) -> str:
        """Why some may not be told, for the user."""

    @abstractmethod
    def how(self) -> str:
        """Name and version, and how it measures."""

    @abstractmethod
    def machine(self) -> str:
        """What the measurements hold for."""


class OnnxRuntimeLayers(AbstractLayerRuntime):
    """Timed on one thread of this machine.

    Attributes:
        settings: of the bench.
    """

    unit = "us"

    def __init__(self, settings: bench.Settings) -> None:
        self.settings = settings

    def steps(self, chosen: Sequence[Configuration]) -> int:
        """One for each round."""
        return bench.steps(chosen, self.settings)

    def measure(self, chosen: Sequence[Configuration], advance: Callable[[], None]) -> list[float]:
        """Microseconds."""
        return bench.measure(chosen, self.settings, advance)

    def untold(self) -> str:
        """Noise."""
        return f"faster than the noise of {self.settings.rounds} rounds"

    def how(self) -> str:
        """Rounds and version."""
        import onnxruntime  # an extra

        return f"{self.settings.rounds} rounds, onnxruntime {onnxruntime.__version__}"

    def machine(self) -> str:
        """This one."""
        return machine()


class CompiledLayers(AbstractLayerRuntime):
    """Estimated by Vela, from int8 files that hold narrower weights as bytes.

    In a network the weights of a layer are fetched while the one before is computed; the first layer of a file waits
    for its own. So each configuration has two files, of `_MANY` layers that read the same input and of one, and the
    layer is what more of them add. In ResNet-8 a layer of 16 channels, 3 x 3 at 32 x 32, is 28,627 cycles in a file of
    its own, and 25,715 in the network as by this difference.

    Attributes:
        target: of Vela's accelerators.
    """

    unit = "cycle"

    def __init__(self, target: str) -> None:
        self.target = target
        self._setting = ""

    def steps(self, chosen: Sequence[Configuration]) -> int:
        """One for each configuration."""
        return len(chosen)

    def measure(self, chosen: Sequence[Configuration], advance: Callable[[], None]) -> list[float]:
        """Cycles; 0 for a layer of which the NPU can't run all."""
        pairs = [(layer_file(c, _MANY), layer_file(c, 1)) for c in chosen]
        distinct = dict.fromkeys(file for pair in pairs for file in pair)
        values: list[float] = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # a thread waits for each compiler, which is a process
            tasks = {file: pool.submit(estimate, file, self.target) for file in distinct}
            try:
                for pair in pairs:
                    many, one = (tasks[file].result() for file in pair)
                    self._setting = one.setting
                    values.append(0.0 if many.cpu_operators else (many.cycles - one.cycles) / (_MANY - 1))
                    advance()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return values

    def untold(self) -> str:
        """Vela leaves what it can't compile to the CPU."""
        return "the NPU can't run them"

    def how(self) -> str:
        """Version of the compiler."""
        return f"estimates of ethos-u-vela {vela_version()}"

    def machine(self) -> str:
        """The accelerator, and what Vela takes to be around it."""
        return f"{self.target}, {self._setting}" if self._setting else self.target


def layer_runtime(name: str, settings: bench.Settings) -> AbstractLayerRuntime:
    """The runtime of a name.

    Args:
        name: "onnxruntime", or an accelerator that the installed Vela knows.
        settings: of a runtime that is timed.
    """
    return OnnxRuntimeLayers(settings) if name == _ONNX else CompiledLayers(name)


def check_runtime(name: str) -> None:
    """Refuse a name that is no runtime.

    Args:
        name: as of `layer_runtime`.

    Raises:
        BudgetError: it is neither, or can't be used here; says why.
    """
    if name == _ONNX:
        return
    if name.startswith(PREFIX):
        try:
            check_accelerator(name)
        except ZerobitError as error:
            msg = f"`runtime` is {name!r}: {error}"
            raise BudgetError(msg) from None
        return
    msg = f"`runtime` is {name!r}; allowed are {runtime_names()}; choose one of these"
    raise BudgetError(msg)


def runtime_names() -> str:
    """All of them, for messages."""
    try:
        return ", ".join((_ONNX, *accelerators()))
    except ZerobitError:
        return f"{_ONNX} and, once ethos-u-vela is installed, names such as {PREFIX}55-128"


def layer_file(configuration: Configuration, layers: int) -> bytes:
    """A .tflite file of equal layers that read the same input, int8.

    Args:
        configuration: of the layers.
        layers: how many.
    """
    from zerobit.export.tflite_file import build_tflite  # tflite-micro is an extra

    return build_tflite(bench.layer_graph(configuration, layers, 0), "int8", {})


def machine() -> str:
    """Processor and system, one line."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return f"{cpu}, {platform.machine()}, {os.cpu_count()} cores, one thread, {platform.system()}"
