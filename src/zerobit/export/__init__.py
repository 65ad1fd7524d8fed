"""Write a compressed network as a file that runs elsewhere, and prove that it computes the same."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from zerobit.cut.apply import QuantNet
from zerobit.integer.lower import lower


def onnx(
    net: QuantNet,
    path: str | Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    container: Literal["packcast", "int8"] = "packcast",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a network as an ONNX file of packed 2, 4 and 8-bit weights.

    Args:
        net: from `apply`.
        path: the file.
        mean: per-channel mean the data was normalised with; with `std` the file takes raw inputs.
        std: per-channel standard deviation.
        container: "packcast" packs weights; "int8" stores all in 8 bits, for other runtimes.
        metadata: further entries for the file; the plan's hash is always there.

    Returns:
        The path.

    Raises:
        ExportError: an op has no integer form, or the file can't hold the network.
    """
    from zerobit.export.onnx_file import write_onnx  # onnx is an extra

    entries = {"zerobit.plan": net.plan.hash, **(metadata or {})}
    return write_onnx(lower(net, mean, std), path, container, entries)
