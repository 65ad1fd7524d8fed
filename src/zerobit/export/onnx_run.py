"""Run an ONNX file with ONNX Runtime on the CPU."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from zerobit.errors import ExportError

Float32 = NDArray[np.float32]


def open_session(
    path: str | os.PathLike[str],
    *,
    threads: int = 1,
    wide_sums: bool = False,
    optimized_path: str | os.PathLike[str] | None = None,
) -> onnxruntime.InferenceSession:
    """Load a file for inference on the CPU, with full graph optimisation.

    Args:
        path: the file.
        threads: threads within an operation; 1 is fastest for small networks.
        wide_sums: set `session.x64quantprecision`, which avoids the kernels that saturate their 16-bit sums
            on x86 processors without VNNI; about twice as slow, the same result where VNNI is present.
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
        return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        msg = f"`path` {Path(path)} can't be run by ONNX Runtime {onnxruntime.__version__}: {error}"
        raise ExportError(msg) from error


def run_onnx(
    path: str | os.PathLike[str],
    x: Float32 | Mapping[str, Float32],
    batch_size: int = 64,
    *,
    threads: int = 1,
    wide_sums: bool = False,
) -> tuple[Float32, ...]:
    """Run a file on all of `x`, in batches.

    Args:
        path: the file.
        x: float32 [N, *shape], or one such array per input, by the input's name in the file.
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
    feeds = dict(x) if isinstance(x, Mapping) else dict.fromkeys(names[:1], x)
    sizes = {len(values) for values in feeds.values()}
    if set(feeds) != set(names) or len(sizes) != 1 or 0 in sizes or batch_size < 1:
        msg = (
            f"`x` has inputs {sorted(feeds)} of batch sizes {sorted(sizes)}; {Path(path)} needs {names}, "
            f"with equal batch sizes of 1 or more, and `batch_size` (is {batch_size}) 1 or more"
        )
        raise ExportError(msg)
    parts = [
        session.run(None, {name: values[start : start + batch_size] for name, values in feeds.items()})
        for start in range(0, sizes.pop(), batch_size)
    ]
    return tuple(np.concatenate(output) for output in zip(*parts, strict=True))


def input_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of a file's inputs, in its order.

    Args:
        path: the file.

    Raises:
        ExportError: the runtime refuses the file.
    """
    return tuple(entry.name for entry in open_session(path).get_inputs())
