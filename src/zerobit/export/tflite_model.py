"""Tensors, operators and buffers of a TFLite file while it is written, through the schema that tflite-micro ships.

Operator versions are those that TFLite's tools/versioning/op_version.cc gives the int8 forms; TFLite Micro reads none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from numpy.typing import ArrayLike, NDArray
from tflite_micro import runtime

from zerobit.integer.ir import IntegerTensor

#: The generated classes of the file format's schema.
schema: Any = runtime.schema_fb

#: Version 3 of the format, the only one in use.
_FORMAT_VERSION = 3
FILE_IDENTIFIER = b"TFL3"
#: Entry of the metadata that says which tensor holds which activation.
PLACES = "zerobit.tensors"
_VERSIONS = {
    "ADD": 2,
    "BROADCAST_TO": 3,
    "CAST": 1,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 12,
    "GATHER": 2,
    "MAXIMUM": 2,
    "MAX_POOL_2D": 2,
    "MEAN": 2,
    "MINIMUM": 2,
    "MUL": 2,
    "PAD": 2,
    "PADV2": 2,
    "QUANTIZE": 2,
    "RESHAPE": 1,
    "RESIZE_NEAREST_NEIGHBOR": 3,
    "STRIDED_SLICE": 2,
    "SUB": 2,
    "TRANSPOSE": 2,
}
#: Convolutions with 4-bit weights.
_INT4_VERSION = 7
#: Builtin operators from here on no longer fit the field of old readers, which holds this instead.
_OLD_CODES = 127


def zero_point(tensor: IntegerTensor) -> int:
    """Where TFLite files store the integer 0: all tensors are int8, unsigned ones moved down by 128."""
    return 0 if tensor.signed else -128


@dataclass
class Model:
    """One file."""

    tensors: list[Any] = field(default_factory=list)
    operators: list[Any] = field(default_factory=list)
    codes: dict[tuple[str, int], int] = field(default_factory=dict)
    #: Buffer 0 is the empty one that tensors without data name.
    buffers: list[bytes] = field(default_factory=lambda: [b""])
    constants: dict[tuple[Any, ...], int] = field(default_factory=dict)

    def shape(self, index: int) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(int(size) for size in self.tensors[index].shape)

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        kind: str = "INT8",
        *,
        scale: ArrayLike | None = None,
        zero: int = 0,
        axis: int = 0,
        data: bytes | None = None,
    ) -> int:
        """Declare a tensor.

        Args:
            name: for people; need not be unique.
            shape: batch included.
            kind: name of the element type.
            scale: float32, one or one per position along `axis`; None for numbers that are not quantised.
            zero: zero point.
            axis: dimension along which the scale varies.
            data: of a constant, packed.

        Returns:
            Its index.
        """
        entry = schema.TensorT()
        entry.name, entry.shape, entry.buffer = name, np.asarray(shape, np.int32), 0
        entry.type = getattr(schema.TensorType, kind)
        if scale is not None:
            entry.quantization = schema.QuantizationParametersT()
            entry.quantization.scale = np.atleast_1d(np.asarray(scale, np.float32))
            entry.quantization.zeroPoint = np.full(entry.quantization.scale.shape, zero, np.int64)
            entry.quantization.quantizedDimension = axis
        if data is not None:
            entry.buffer = self._buffer(data)
        self.tensors.append(entry)
        return len(self.tensors) - 1

    def like(self, tensor: IntegerTensor, name: str, shape: Sequence[int]) -> int:
        """Declare an activation on the grid of `tensor`."""
        return self.tensor(name, shape, scale=tensor.step, zero=zero_point(tensor))

    def integers(self, values: ArrayLike, name: str) -> int:
        """An int32 constant; equal ones are stored once."""
        array = np.asarray(values, np.int32)
        key = (array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = self.tensor(name, array.shape, "INT32", data=array.tobytes())
        return self.constants[key]

    def stored(self, values: NDArray[np.int8], tensor: IntegerTensor, name: str) -> int:
        """An int8 constant on the grid of `tensor`, zero point included."""
        return self.tensor(name, values.shape, scale=tensor.step, zero=zero_point(tensor), data=values.tobytes())

    def operator(
        self, kind: str, inputs: Sequence[int], output: int, options: str | None = None, *, bits: int = 8, **fields: Any
    ) -> int:
        """Append an operator.

        Args:
            kind: name of the builtin operator.
            inputs: indices of tensors.
            output: index of a tensor.
            options: name of its table of options, without "Options"; None if it has none.
            bits: of its weights.
            fields: of the options.

        Returns:
            `output`.
        """
        entry = schema.OperatorT()
        entry.opcodeIndex = self.codes.setdefault(
            (kind, _VERSIONS[kind] if bits == 8 else _INT4_VERSION), len(self.codes)
        )
        entry.inputs, entry.outputs = np.asarray(inputs, np.int32), np.asarray([output], np.int32)
        if options is not None:
            entry.builtinOptionsType = getattr(schema.BuiltinOptions, f"{options}Options")
            entry.builtinOptions = getattr(schema, f"{options}OptionsT")()
            for name, value in fields.items():
                assert hasattr(entry.builtinOptions, name), name
                setattr(entry.builtinOptions, name, value)
        self.operators.append(entry)
        return output

    def finish(self, inputs: Sequence[int], outputs: Sequence[int], metadata: Mapping[str, str]) -> bytes:
        """The file.

        Args:
            inputs: tensors that enter.
            outputs: tensors that leave.
            metadata: entries of the file's metadata.
        """
        graph = schema.SubGraphT()
        graph.name, graph.tensors, graph.operators = "main", self.tensors, self.operators
        graph.inputs, graph.outputs = np.asarray(inputs, np.int32), np.asarray(outputs, np.int32)
        model = schema.ModelT()
        model.version, model.description, model.subgraphs = _FORMAT_VERSION, "zerobit", [graph]
        model.operatorCodes = [_operator_code(kind, version) for kind, version in self.codes]
        model.metadata = [self._metadata(name, text) for name, text in sorted(metadata.items())]
        model.buffers = [_buffer_entry(data) for data in self.buffers]
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), file_identifier=FILE_IDENTIFIER)
        return bytes(builder.Output())

    def _buffer(self, data: bytes) -> int:
        self.buffers.append(data)
        return len(self.buffers) - 1

    def _metadata(self, name: str, text: str) -> Any:
        entry = schema.MetadataT()
        entry.name, entry.buffer = name, self._buffer(text.encode())
        return entry


def _operator_code(kind: str, version: int) -> Any:
    entry = schema.OperatorCodeT()
    entry.builtinCode, entry.version = getattr(schema.BuiltinOperator, kind), version
    entry.deprecatedBuiltinCode = min(entry.builtinCode, _OLD_CODES)
    return entry


def _buffer_entry(data: bytes) -> Any:
    entry = schema.BufferT()
    if data:
        entry.data = np.frombuffer(data, np.uint8)
    return entry
