"""Formats by name: what writes them, and where `zerobit export` puts them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zerobit.errors import FormatError
from zerobit.export import c, onnx, tflite

#: In the folder of a run.
ONNX_FILE, C_FOLDER, TFLITE_FILE = "model.onnx", "c", "model.tflite"


@dataclass(frozen=True)
class Writer:
    """A format.

    Attributes:
        write: (network, path, **options) -> path.
        name: of the file, or of the folder of C, in the folder of a run.
        samples: how many it wants: C runs some, and logits of TFLite are scaled by them; 0 if it takes none.
    """

    write: Callable[..., Path]
    name: str
    samples: int


_WRITERS = {
    "onnx": Writer(onnx, ONNX_FILE, 0),
    "c": Writer(c, C_FOLDER, 2),
    "tflite": Writer(tflite, TFLITE_FILE, 256),
}


def writer(format: str) -> Writer:
    """A format by name.

    Args:
        format: onnx, c or tflite.

    Raises:
        FormatError: a format that does not exist.
    """
    if format not in _WRITERS:
        msg = f"`format` is {format!r}; allowed are {tuple(_WRITERS)}; choose one of these"
        raise FormatError(msg)
    return _WRITERS[format]
