"""An ONNX file layer by layer: every tensor that ONNX Runtime computes against the twin's, value by value.

Inner tensors are handed out by a copy of the file in memory. ONNX Runtime fuses a layer with the QuantizeLinear
behind it as long as only DequantizeLinear nodes and moves of integers read the result, so a copy hands tensors out
through DequantizeLinear nodes of its own: a stored tensor among the outputs would undo the fusion, and with it
change the arithmetic that is to be compared. Real values are turned back into integers exactly.

Shape legend: N batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime import InferenceSession

from zerobit.errors import ExportError
from zerobit.export.comparison import LayerComparison, compare_tensors, joined
from zerobit.export.onnx_file import Container, Written, build_written
from zerobit.export.onnx_metadata import CONTAINER, takes_pixels
from zerobit.export.onnx_reference import Reference
from zerobit.export.onnx_run import entries_of, load_model, open_session
from zerobit.integer.ir import Feed, IntegerGraph, IntegerTensor, Island, Op
from zerobit.integer.twins.float32 import zero_point

Array = NDArray[np.generic]

#: Inputs at a time; every tensor of as many is in memory.
_BATCH = 64


def layer_rows(
    graph: IntegerGraph, path: str | Path, samples: Mapping[str, Array], *, seed: int = 0
) -> list[LayerComparison]:
    """Compare every integer tensor and every logit of a file with its twin.

    The twin is the float32 one, for the container "exact" the fixed-point one. What islands make is taken from ONNX
    Runtime and fed to the twin (`verify_islands` compares the islands themselves); `verify_onnx` compares the outputs
    of the file as it is, without a copy.

    Args:
        graph: what the file was written from.
        path: the file, of any container.
        samples: real inputs by name, [N, ...]; of a file that takes pixels uint8, or float in 0..1.
        seed: of the random extremes.

    Returns:
        A row for each tensor in order of execution, first on the samples, then on random extremes. The first row with
        differences names the layer that diverges first.

    Raises:
        ExportError: the file is truncated, was not written by zerobit, is not what this graph makes, or can't be run.
        ZerobitError: a sample is missing, has the wrong shape or holds a NaN.
        OSError: it can't be read.
    """
    tapped = _Tapped.of(graph, Path(path))
    rows: list[LayerComparison] = []
    for title, inputs in tapped.reference.input_sets(samples, seed):
        rows += joined(tapped.compare(batch, title) for batch in _batches(graph, inputs))
    return rows


def _batches(graph: IntegerGraph, inputs: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    if graph.unbatched or graph.batch is not None:
        yield dict(inputs)
        return
    for start in range(0, max(map(len, inputs.values())), _BATCH):
        yield {name: x[start : start + _BATCH] for name, x in inputs.items()}


@dataclass(frozen=True, eq=False)
class _Tapped:
    """A copy of a file that hands out all that is compared.

    Attributes:
        path: the file.
        reference: what it should compute.
        model: the copy.
        taps: tensor -> name of its real values or logits in the copy, in order of execution.
        made: tensor that an island makes -> its name in the copy.
    """

    path: Path
    reference: Reference
    model: onnx.ModelProto
    taps: Mapping[str, str]
    made: Mapping[str, str]

    @classmethod
    def of(cls, graph: IntegerGraph, path: Path) -> "_Tapped":
        model = load_model(path)
        reference = Reference.of(graph, entries_of(model))
        written = _written_again(graph, model, path)
        names = [name for op in graph.ops for name in _compared(op)]
        taps = {name: _tap(model, graph.by_name[name], written, exact=reference.exact) for name in names}
        made = {name: written.real[name] for name in graph.float_tensors}
        given = {info.name for info in model.graph.output}
        wanted = dict.fromkeys(name for name in (*taps.values(), *made.values()) if name not in given)
        # The runtime knows their types.
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        return cls(path, reference, model, taps, made)

    @cached_property
    def session(self) -> InferenceSession:
        """The copy, loaded."""
        return open_session(self.model.SerializeToString())

    def _run(self, fed: Mapping[str, Array]) -> Sequence[Any]:
        try:
            return self.session.run(None, dict(fed))
        except Exception as error:  # the runtime's own types, or ours around one of them
            msg = (
                f"`path` {self.path} can't be run by ONNX Runtime: {error.__cause__ or error}; export the network again"
            )
            raise ExportError(msg) from error

    def compare(self, inputs: Mapping[str, Array], title: str) -> list[LayerComparison]:
        """Rows of one batch, in order of execution."""
        names = [info.name for info in self.model.graph.input]
        fed = dict(zip(names, self.reference.feeds(inputs).values(), strict=True))
        results = map(np.asarray, self._run(fed))
        values = dict(zip((info.name for info in self.model.graph.output), results, strict=True))
        floats = {name: values[own] for name, own in self.made.items()} or None
        tensors = self.reference.graph.by_name
        found = {name: _integers(values[own], tensors[name]) for name, own in self.taps.items()}
        return compare_tensors(list(self.taps), found, self.reference.tensors(inputs, floats), title)


def _compared(op: Op) -> tuple[str, ...]:
    """Tensors of an op that the twin computes itself."""
    return () if isinstance(op, Island | Feed) else (op.output,)


def _tap(model: onnx.ModelProto, tensor: IntegerTensor, written: Written, *, exact: bool) -> str:
    """Name of a tensor's real values or logits in a model; of integers, behind a node that is added."""
    name = tensor.name
    if tensor.is_float or (name in written.final and not exact):
        return written.final.get(name) or written.real[name]
    # No name in a file that zerobit writes has a colon.
    output = f"tap:{written.stored[name]}"
    grid = {f"{output}:scale": np.array(tensor.step), f"{output}:zero": np.array(zero_point(tensor), np.uint8)}
    model.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in grid.items())
    model.graph.node.append(helper.make_node("DequantizeLinear", [written.stored[name], *grid], [output], name=output))
    return output


def _integers(values: Array, tensor: IntegerTensor) -> Array:
    """Integers of real values: q * scale is rounded once, by less than half a step, so that division gives q back."""
    return values if tensor.is_float else np.rint(values.astype(np.float32) / tensor.step)


def _written_again(graph: IntegerGraph, model: onnx.ModelProto, path: Path) -> Written:
    """What the graph makes, after a check that the model has its nodes and tensors; values may differ.

    Raises:
        ExportError: it hasn't.
    """
    entries = entries_of(model)
    container = entries.get(CONTAINER)
    if container not in get_args(Container):
        msg = (
            f"`path` {path} has {container!r} as {CONTAINER!r} in its metadata; allowed are {get_args(Container)}; "
            "give a file that zerobit wrote"
        )
        raise ExportError(msg)
    written = build_written(graph, cast(Container, container), {}, image=takes_pixels(entries))
    # torch, which writes islands, does not name its nodes alike each time.
    difference = _missing(model.graph, written) if graph.islands else _difference(model.graph, written.model.graph)
    if difference:
        msg = (
            f"`path` {path} is not the file that this network makes: {difference} differs; give the file and the "
            "network that belong together, or export again"
        )
        raise ExportError(msg)
    return written


def _missing(found: onnx.GraphProto, written: Written) -> str:
    """The first tensor beside islands that a graph should have and has not; "" if it has all."""
    made = {output for node in found.node for output in node.output} | {info.name for info in found.input}
    wanted = (*written.stored.values(), *written.real.values(), *written.final.values())
    return next((f"node {name!r}" for name in wanted if name not in made), "")


def _difference(found: onnx.GraphProto, wanted: onnx.GraphProto) -> str:
    """What differs first in two graphs but for values; "" if nothing does."""
    for kind in ("input", "output", "node"):
        for one, other in zip_longest(getattr(found, kind), getattr(wanted, kind)):
            if one != other:
                return f"{kind} {_name(other, one)!r}"
    for one, other in zip_longest(found.initializer, wanted.initializer):
        if one is None or other is None or _form(one) != _form(other):
            return f"initializer {_name(other, one)!r}"
    return ""


def _name(*candidates: Any) -> str:
    return next(each.name for each in candidates if each is not None)


def _form(tensor: onnx.TensorProto) -> tuple[str, int, list[int]]:
    return tensor.name, tensor.data_type, list(tensor.dims)
