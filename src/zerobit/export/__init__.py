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
    container: Literal["packcast", "int8", "exact"] = "packcast",
    metadata: Mapping[str, str] | None = None,
    image: bool = False,
) -> Path:
    """Write a network as an ONNX file of packed 2, 4 and 8-bit weights.

    Args:
        net: from `apply`.
        path: the file.
        mean: per-channel mean the data was normalised with; with `std` the file takes raw inputs.
        std: per-channel standard deviation.
        container: "packcast" packs weights; "int8" stores all in 8 bits, for other runtimes; "exact" computes in
            integers what the fixed-point twin does, for comparisons, and hands out integers.
        metadata: further entries for the file; the plan's hash, zerobit's version and how inputs become integers
            are always there.
        image: take the input as uint8 pixels [N, C, H, W] that mean pixel * float32(1/255), before `mean` and `std`.

    Returns:
        The path.

    Raises:
        ExportError: the file can't hold the network, or `image` is True for another input than one float32 image.
    """
    from zerobit.export.onnx_file import write_onnx  # onnx is an extra

    entries = {"zerobit.plan": net.plan.hash, **(metadata or {})}
    return write_onnx(lower(net, mean, std), path, container, entries, image=image)
