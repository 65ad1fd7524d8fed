"""Write a compressed network as a file that runs elsewhere, and prove that it computes the same."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from zerobit.cut.apply import QuantNet
from zerobit.integer.lower import lower
from zerobit.integer.walk import Feeds


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

    On x86 processors without VNNI, ONNX Runtime saturates the 16-bit sums of its fastest kernels where weights have
    8 bits; `SessionOptions.add_session_config_entry("session.x64quantprecision", "1")` makes it exact.

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


def c(
    net: QuantNet,
    folder: str | Path,
    samples: Feeds,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    name: str = "zb",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a network as a C99 library for microcontrollers: packed weights, one arena, no allocation, no float.

    The folder has `model.h`, `model.c`, kernels, an example that runs `samples` and compares every tensor with what it
    should be, and a Makefile for this machine, Cortex-M3, M4, M55 and 32-bit RISC-V.

    Args:
        net: from `apply`.
        folder: made if missing; one that an earlier call made is replaced.
        samples: inputs [N, *shape] for the example, or one such array per input by name, raw if `mean` and `std` are
            given; they become part of its image, so that a few are enough.
        mean: per-channel mean the data was normalised with; `model.h` has a function that makes inputs of raw values.
        std: per-channel standard deviation.
        name: that the functions begin with, as in `zb_init` and `zb_run`.
        metadata: further entries of a comment; the plan's hash is always there.

    Returns:
        The folder.

    Raises:
        ExportError: an op has no integer form, or is beyond the kernels; names it and the formats that hold it.
    """
    from zerobit.export.c99.folder import write_library

    entries = {"zerobit.plan": net.plan.hash, **(metadata or {})}
    write_library(lower(net, mean, std), folder, samples, name=name, metadata=entries)
    return Path(folder)


def tflite(
    net: QuantNet,
    path: str | Path,
    samples: Feeds,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights: Literal["int8", "int4"] = "int8",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a network as a .tflite file of integers for TFLite Micro: int8 in, int8 out, one input at a time.

    Args:
        net: from `apply`.
        path: the file.
        samples: inputs [N, *shape], or one such array per input by name, raw if `mean` and `std` are given; the
            largest magnitude of a logit over them becomes 127.
        mean: per-channel mean the data was normalised with; the file's metadata say how to make its int8 input.
        std: per-channel standard deviation.
        weights: "int8" stores all in 8 bits; "int4" packs layers whose channels all have 4 bits or fewer.
        metadata: further entries for the file; the plan's hash, zerobit's version and how inputs become integers
            are always there.

    Returns:
        The path.

    Raises:
        ExportError: TFLite Micro has no kernel for an op; names it, and a format that holds it.
        FormatError: scales so far apart that the runtime would overflow; names the tensor.
    """
    from zerobit.export.tflite_file import write_tflite  # tflite-micro is an extra
    from zerobit.export.tflite_logits import integer_logits

    entries = {"zerobit.plan": net.plan.hash, **(metadata or {})}
    return write_tflite(integer_logits(lower(net, mean, std), samples), path, weights, entries)
