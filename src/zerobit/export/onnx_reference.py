"""What an ONNX file should compute: the twin of its container, on the inputs that the file takes.

Shape legend: N batch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zerobit.export.comparison import input_sets
from zerobit.export.onnx_metadata import CONTAINER, takes_pixels
from zerobit.export.pixels import pixels_to_real, real_to_pixels
from zerobit.integer.ir import IntegerGraph
from zerobit.integer.twins.fixed31 import run_fixed31
from zerobit.integer.twins.float32 import run_float32
from zerobit.integer.walk import batches

Array = NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class Reference:
    """The twin of one file.

    Attributes:
        graph: what the file was written from.
        exact: whether its container is "exact", whose twin is the fixed-point one; else it is the float32 one.
        image: whether it takes uint8 pixels.
    """

    graph: IntegerGraph
    exact: bool
    image: bool

    @classmethod
    def of(cls, graph: IntegerGraph, metadata: Mapping[str, str]) -> "Reference":
        """The twin of a file with this metadata."""
        return cls(graph, metadata.get(CONTAINER) == "exact", takes_pixels(metadata))

    def input_sets(self, samples: Mapping[str, Array], seed: int) -> Iterator[tuple[str, dict[str, Array]]]:
        """Titles, and inputs [N, ...] by graph input as the file takes them: samples, and random extremes.

        Args:
            samples: real inputs by name; for a file that takes pixels uint8, or float in 0..1.
            seed: of the random ones.

        Raises:
            ZerobitError: an input is missing, has the wrong shape or holds a NaN.
            ExportError: a float sample is no pixel.
        """
        whole = self.graph.batch is not None or bool(self.graph.unbatched)
        return input_sets(self._as_taken(samples), seed, whole=whole)

    def _as_taken(self, samples: Mapping[str, Array]) -> dict[str, Array]:
        """Float samples are rounded to the nearest pixels where the file takes those."""
        next(batches(self.graph, samples, 1))
        if not self.image:
            return dict(samples)
        return {name: x if x.dtype == np.uint8 else real_to_pixels(x) for name, x in samples.items()}

    def feeds(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """What is fed to the file, by graph input in the file's order, in its types."""
        kinds = {**self.graph.input_types, **(dict.fromkeys(inputs, np.dtype(np.uint8)) if self.image else {})}
        return {name: np.asarray(inputs[name], kinds[name]) for name in self.graph.inputs}

    def outputs(self, inputs: Mapping[str, Array], floats: Mapping[str, Array] | None) -> tuple[Array, ...]:
        """The graph's outputs as the file should hand them out.

        Args:
            inputs: as the file takes them.
            floats: what the file's islands made, by tensor name; None without islands.
        """
        if not self.exact:
            return run_float32(self.graph, self._real(inputs), floats=floats)
        values = run_fixed31(self.graph, self._real(inputs))
        return tuple(values[name] for name in self.graph.outputs)

    def tensors(self, inputs: Mapping[str, Array], floats: Mapping[str, Array] | None) -> dict[str, Array]:
        """Every tensor by name: integers, logits as the file should make them, and `floats`.

        Args:
            inputs: as the file takes them.
            floats: what the file's islands made, by tensor name; None without islands.
        """
        if self.exact:
            return run_fixed31(self.graph, self._real(inputs), keep=True)
        return run_float32(self.graph, self._real(inputs), keep=True, floats=floats)

    def _real(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if not self.image:
            return dict(inputs)
        return {name: pixels_to_real(np.asarray(x, np.uint8)) for name, x in inputs.items()}
