"""Run an ONNX file with ONNX Runtime on the CPU."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from zerobit.errors import ExportError

Array = NDArray[np.generic]


Model = str | os.PathLike[str] | bytes


def open_session(
    path: Model,
    *,
    threads: int = 1,
    wide_sums: bool = True,
    optimized_path: str | os.PathLike[str] | None = None,
) -> onnxruntime.InferenceSession:
    """Load a file for inference on the CPU, with full graph optimisation.

    Args:
        path: the file, or what is in one.
        threads: threads within an operation; 1 is fastest for small networks.
        wide_sums: set `session.x64quantprecision`, which avoids the kernels that saturate their 16-bit sums
            on x86 processors without VNNI; about twice as slow, the same result where VNNI is present. Without it
            the runtime is timed as it runs by default, whose results may be wrong where weights have 8 bits.
        optimized_path: where to write the graph as the runtime has fused it.

    Raises:
        ExportError: the runtime refuses the file.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; it warns that a dumped graph depends on the processor
    if wide_sums:
        options.add_session_config_entry("session.x64quantprecision", "1")
    if optimized_path is not None:
        options.optimized_model_filepath = os.fspath(optimized_path)
    try:
        model = path if isinstance(path, bytes) else os.fspath(path)
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        msg = f"`path` {_title(path)} can't be run by ONNX Runtime {onnxruntime.__version__}: {error}"
        raise ExportError(msg) from error


def _title(path: Model) -> str:
    return "(in memory)" if isinstance(path, bytes) else str(Path(path))


def run_onnx(
    path: Model,
    x: Array | Mapping[str, Array],
    batch_size: int = 64,
    *,
    threads: int = 1,
    wide_sums: bool = True,
) -> tuple[Array, ...]:
    """Run a file on all of `x`, in batches.

    Args:
        path: the file, or what is in one.
        x: [N, *shape], or one such array per input, by the input's name in the file; float32, but for inputs that
            the file takes in another type.
        batch_size: images at a time.
        threads: as in `open_session`.
        wide_sums: as in `open_session`.

    Returns:
        One array [N, *shape] per output of the file, in its order.

    Raises:
        ExportError: the runtime refuses the file, or `x` doesn't fit its inputs.
    """
    session = open_session(path, threads=threads, wide_sums=wide_sums)
    names = [entry.name for entry in session.get_inputs()]
    unbatched = {e.name for e in session.get_inputs() if not e.shape or isinstance(e.shape[0], int)}
    feeds = dict(x) if isinstance(x, Mapping) else dict.fromkeys(names[:1], x)
    sizes = {len(values) for name, values in feeds.items() if name not in unbatched}
    if set(feeds) != set(names) or len(sizes) > 1 or 0 in sizes or batch_size < 1:
        msg = (
            f"`x` has inputs {sorted(feeds)} of batch sizes {sorted(sizes)}; {_title(path)} needs {names}, "
            f"with equal batch sizes of 1 or more, and `batch_size` (is {batch_size}) 1 or more"
        )
        raise ExportError(msg)
    if unbatched:
        return tuple(np.asarray(output) for output in session.run(None, feeds))
    parts: list[Any] = [
        session.run(None, {name: values[start : start + batch_size] for name, values in feeds.items()})
        for start in range(0, sizes.pop(), batch_size)
    ]
    return tuple(np.concatenate(output) for output in zip(*parts, strict=True))


def load_model(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """What is in a file.

    Args:
        path: the file.

    Raises:
        ExportError: it is truncated, or no ONNX file.
        OSError: it can't be read.
    """
    content = Path(path).read_bytes()
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # protobuf's implementations have different types
        msg = f"`path` {Path(path)} is truncated or no ONNX file ({error}); export the network again"
        raise ExportError(msg) from error
    if not model.graph.node:
        msg = f"`path` {Path(path)}, of {len(content)} bytes, holds no network; export the network again"
        raise ExportError(msg)
    return model


def entries_of(model: onnx.ModelProto) -> dict[str, str]:
    """A model's metadata."""
    return {entry.key: entry.value for entry in model.metadata_props}


def with_outputs(path: str | os.PathLike[str], names: Sequence[str]) -> bytes:
    """A copy of a file in memory that hands out inner tensors too, behind its own outputs.

    Args:
        path: the file.
        names: of the tensors, in the file.

    Raises:
        ExportError: the file is truncated, or no ONNX file.
    """
    model = load_model(path)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)  # the runtime knows their types
    return model.SerializeToString()


def metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """A file's metadata.

    Args:
        path: the file.

    Raises:
        ExportError: the file is truncated, or no ONNX file.
    """
    return entries_of(load_model(path))


def input_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of a file's inputs, in its order.

    Args:
        path: the file.

    Raises:
        ExportError: the runtime refuses the file.
    """
    return tuple(entry.name for entry in open_session(path).get_inputs())
