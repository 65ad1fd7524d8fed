"""ONNX Runtime on this machine's processor."""

from functools import partial
from importlib.util import find_spec

from zerobit.export.comparison import LayerComparison
from zerobit.export.runtimes.base import AbstractRuntime, Exported
from zerobit.export.writers import ONNX_FILE


def absent() -> str:
    """What is not installed of the packages that write and run ONNX files, and how to get it; "" if all is."""
    names = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    return f"{' and '.join(names)} not installed: pip install 'zerobit[onnx]'" if names else ""


class OnnxRuntime(AbstractRuntime):
    """The fused 8-bit graph, against the float32 twin."""

    title = "ONNX Runtime"

    def missing(self, exported: Exported) -> str:
        """It is an extra."""
        return absent()

    def rows(self, exported: Exported) -> list[LayerComparison]:
        """Of the file in the folder."""
        from zerobit.export.onnx_file import write_onnx
        from zerobit.export.onnx_layers import layer_rows

        with exported.file(ONNX_FILE, partial(write_onnx, exported.graph)) as path:
            return layer_rows(exported.graph, path, exported.samples, seed=exported.seed)
