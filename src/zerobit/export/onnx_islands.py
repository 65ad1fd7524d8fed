"""Islands as ONNX: torch writes them all in one go, and their nodes become part of the file.

Names of their tensors are kept where they are free. Quantised weights enter as packed integers, everything else
that an island knows is a float initializer.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Generator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import Tensor, nn

from zerobit.errors import ExportError
from zerobit.export.onnx_builder import Builder
from zerobit.graph.program import ANY_SIZE
from zerobit.integer.ir import IntegerGraph, Island, Weights
from zerobit.integer.twins.float32 import run_float32
from zerobit.integer.walk import to_real

#: Entry of the file's metadata that says what is computed in float, and why.
ISLANDS = "zerobit.islands"

#: Type and shape of an output; a name where a size is free.
Made = tuple[int, list[int | str]]


def describe_islands(graph: IntegerGraph, builder: Builder) -> dict[str, Any]:
    """Islands for the metadata: ops with their reasons, and the file's names of the tensors they make."""
    return {
        island.name: {
            "ops": [vars(op) for op in island.ops],
            "tensors": {name: builder.real[name] for name in island.outputs},
        }
        for island in graph.islands
    }


class _All(nn.Module):
    """All islands as one module.

    Args:
        islands: of a graph.
    """

    def __init__(self, islands: Sequence[Island]) -> None:
        super().__init__()
        self.functions = nn.ModuleList(island.function for island in islands)
        self.counts = [len(island.inputs) + len(island.weights) for island in islands]

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Run each on its part of the inputs."""
        results: list[Tensor] = []
        start = 0
        for function, count in zip(self.functions, self.counts, strict=True):
            results += function(*values[start : start + count])
            start += count
        return tuple(results)


class IslandWriter:
    """Writes the islands of a graph into its file, one by one.

    Args:
        builder: of the file.
        opset: version of the ops.
        final: graph output -> its name in the file.

    Raises:
        ExportError: torch can't write an op as ONNX.
    """

    def __init__(self, builder: Builder, opset: int, final: Mapping[str, str]) -> None:
        self._builder, self._final = builder, final
        self._graph = _written_by_torch(builder.graph, opset).graph
        #: Type and shape of each tensor that an island makes.
        self.made: dict[str, Made] = {}
        self._names: dict[str, str] = {}
        self._inputs = iter(self._graph.input)
        self._outputs = iter(self._graph.output)
        self._pending = list(self._graph.node)
        self._initializers = {tensor.name: tensor for tensor in self._graph.initializer}

    def write(self, island: Island) -> None:
        """Append the nodes of the next island."""
        inputs = [next(self._inputs).name for _ in range(len(island.inputs) + len(island.weights))]
        infos = [next(self._outputs) for _ in island.outputs]
        nodes = self._needed([info.name for info in infos])
        read = {info.name for info in infos}.union(*({*node.input} | _captured(node) for node in nodes))
        for name, own in zip(island.inputs, inputs, strict=False):
            if own in read:  # of some only the size is asked, which torch may take from another one
                self._names[own] = self._builder.real_values(name)
        for weight, own in zip(island.weights, inputs[len(island.inputs) :], strict=True):
            self._names[own] = _real_weight(self._builder, weight.weights, weight.name)
        for node in nodes:
            self._append(node)
        for name, info in zip(island.outputs, infos, strict=True):
            self._finish(name, info)

    def _finish(self, name: str, info: onnx.ValueInfoProto) -> None:
        builder, kind = self._builder, info.type.tensor_type.elem_type
        shape: list[int | str] = [d.dim_value or "batch" for d in info.type.tensor_type.shape.dim]
        self.made[name] = kind, shape
        source = self._name(info.name)
        output = self._final.get(name) or builder.unique(name)
        builder.types[name] = kind
        if kind == TensorProto.FLOAT:
            builder.real[name] = builder.keep_apart(source, name, output)
        else:
            builder.real[name] = builder.node_to("Identity", [source], output)

    def _needed(self, outputs: Sequence[str]) -> list[onnx.NodeProto]:
        """The nodes that some tensors depend on and that are not yet written, in order."""
        wanted, chosen = {*outputs}, list[onnx.NodeProto]()
        for node in reversed(self._pending):
            if wanted & {*node.output}:
                wanted |= {*node.input} | _captured(node)
                chosen.append(node)
        ours = {id(node) for node in chosen}
        self._pending = [node for node in self._pending if id(node) not in ours]
        return chosen[::-1]

    def _name(self, name: str) -> str:
        """Our name of one of torch's tensors; an initializer is taken over when it is first read."""
        if name not in self._names:
            self._names[name] = self._builder.unique(name)
            if name in self._initializers:
                own = onnx.TensorProto()
                own.CopyFrom(self._initializers[name])
                own.name = self._names[name]
                self._builder.initializers.append(own)
        return self._names[name]

    def _append(self, node: onnx.NodeProto) -> None:
        own = onnx.NodeProto()
        own.CopyFrom(node)
        self._rename(own)
        self._builder.nodes.append(own)

    def _rename(self, node: onnx.NodeProto) -> None:
        """Our names for all tensors of a node and of the graphs inside it."""
        for names in (node.input, node.output):
            names[:] = [self._name(name) if name else "" for name in names]
        node.name = f"{next(filter(None, node.output), 'nothing')}_node"
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        for inner in _graphs(node):
            for entry in (*inner.input, *inner.output, *inner.initializer):
                entry.name = self._name(entry.name)
            for child in inner.node:
                self._rename(child)


def _graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Graphs inside a node: branches and loops."""
    return [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]


def _captured(node: onnx.NodeProto) -> set[str]:
    """Tensors that graphs inside a node read; their own are among them."""
    return {name for inner in _graphs(node) for child in inner.node for name in (*child.input, *_captured(child))}


def _real_weight(builder: Builder, weights: Weights, name: str) -> str:
    """Packed integers times their scales.

    The runtime computes that once, at load, which it does not do for a DequantizeLinear.
    """
    levels = builder.node("Cast", [builder.weights(weights, name)], f"{name}_levels", to=TensorProto.FLOAT)
    scale = builder.constant(weights.scale[:, None], f"{name}_w_scale")
    return builder.node("Mul", [levels, scale], f"{name}_real")


def _examples(graph: IntegerGraph) -> tuple[list[Tensor], list[dict[int, Any] | None]]:
    """What all islands read on zeros, and which sizes of it grow with the batch."""
    runs = [_island_inputs(graph, batch) for batch in ((graph.batch,) * 2 if graph.batch else (2, 3))]
    sizes: list[dict[int, Any] | None] = []
    for two, three in zip(*runs, strict=True):
        grows = [d for d, (a, b) in enumerate(zip(two.shape, three.shape, strict=True)) if a != b]
        sizes.append(dict.fromkeys(grows, ANY_SIZE) or None)
    return runs[0], sizes


def _island_inputs(graph: IntegerGraph, batch: int) -> list[Tensor]:
    feeds = {
        name: np.zeros(shape if name in graph.unbatched else (batch, *shape), graph.input_types[name])
        for name, shape in graph.inputs.items()
    }
    values = run_float32(graph, feeds, keep=True)
    found: list[Tensor] = []
    for island in graph.islands:
        found += [torch.from_numpy(np.ascontiguousarray(to_real(values[n], graph.by_name[n]))) for n in island.inputs]
        found += [torch.zeros(w.weights.values.shape) for w in island.weights]
    return found


@lru_cache(maxsize=1)  # torch takes seconds; a file is compared with what its graph makes
def _written_by_torch(graph: IntegerGraph, opset: int) -> onnx.ModelProto:
    """All islands of a graph as one model, which is not to be changed."""
    values, sizes = _examples(graph)
    return _converted(_All(graph.islands), values, sizes, opset)


def _converted(
    module: nn.Module, values: Sequence[Tensor], sizes: Sequence[dict[int, Any] | None], opset: int
) -> onnx.ModelProto:
    """The module as torch writes it."""
    try:
        with _quiet():
            program = torch.onnx.export(
                module.eval(),
                tuple(values),
                dynamo=True,
                dynamic_shapes=(tuple(sizes),),
                opset_version=opset,
                verbose=False,
            )
    except ImportError as error:
        msg = f"the network has ops without an integer form, which torch writes with onnxscript: {error}; install it"
        raise ExportError(msg) from error
    except Exception as error:  # the exporter raises many types
        msg = (
            f"`net` has ops without an integer form that torch can't write as ONNX ({_root(error)}); "
            "rewrite them in the model with ops that ONNX has"
        )
        raise ExportError(msg) from error
    assert program is not None
    model = program.model_proto
    for value, wanted in zip(model.graph.input, sizes, strict=True):
        dims = value.type.tensor_type.shape.dim
        if any(dims[d].HasField("dim_value") for d in wanted or ()):
            msg = "`net` has ops without an integer form that torch can write for one batch size only; free the batch"
            raise ExportError(msg)
    return model


def _root(error: BaseException) -> str:
    """First line of what an error goes back to."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = " ".join(str(error).strip().splitlines()[:1])
    return f"{type(error).__name__}: {line[:300]}"


@contextlib.contextmanager
def _quiet() -> Generator[None, None, None]:
    """Without the exporter's warnings, logs and prints: they are about its own workings, and what fails raises."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
