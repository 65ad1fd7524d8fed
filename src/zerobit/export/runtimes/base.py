"""`AbstractRuntime`: something that runs an exported network."""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zerobit.export.comparison import LayerComparison
from zerobit.integer.ir import IntegerGraph


@dataclass(frozen=True, eq=False)
class Exported:
    """A network and where its files are.

    Attributes:
        graph: what the files were made from.
        folder: where `zerobit export` puts them; a runtime whose file is not there makes one for itself.
        samples: real inputs by name, [N, ...].
        metadata: that C libraries were written with, but for zerobit's version.
        seed: of random extremes.
    """

    graph: IntegerGraph
    folder: Path
    samples: Mapping[str, NDArray[np.generic]]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    seed: int = 0

    def first(self, count: int) -> Mapping[str, NDArray[np.generic]]:
        """Some of the samples, for runtimes that are slow."""
        return {name: x[:count] for name, x in self.samples.items()}

    @contextmanager
    def file(self, name: str, write: Callable[[Path], object]) -> Generator[Path]:
        """The file in the folder; where there is none, one that is gone afterwards.

        Args:
            name: of the file.
            write: makes it.
        """
        path = self.folder / name
        if path.is_file():
            yield path
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            write(path)
            yield path


class AbstractRuntime(ABC):
    """Something that runs an exported network.

    Attributes:
        title: for tables.
    """

    title: str

    @abstractmethod
    def missing(self, exported: Exported) -> str:
        """Why it can't run this network here, and what to install; "" if it can."""

    @abstractmethod
    def rows(self, exported: Exported) -> list[LayerComparison]:
        """Every tensor against the twin, in order of execution, on samples and on random extremes.

        Raises:
            ExportError: a file is cut off, or is not what this network makes; names it.
        """
