"""TFLite Micro's interpreter on this machine."""

import tempfile
from pathlib import Path

from zerobit.errors import ZerobitError
from zerobit.export.comparison import LayerComparison, compare_tensors, input_sets
from zerobit.export.runtimes.base import AbstractRuntime, Exported
from zerobit.export.writers import TFLITE_FILE

_SAMPLES = 64


class TfliteMicro(AbstractRuntime):
    """The .tflite file, against the gemmlowp twin."""

    title = "TFLite Micro"

    def missing(self, exported: Exported) -> str:
        """It is an extra, and has no kernel for some ops."""
        try:
            from zerobit.export.tflite_file import build_tflite
            from zerobit.export.tflite_logits import integer_logits
        except ImportError:
            return "tflite-micro is not installed: pip install 'zerobit[tflite]'"
        try:
            build_tflite(integer_logits(exported.graph, exported.first(_SAMPLES)), "int8", {})
        except ZerobitError as error:
            return str(error).partition(";")[0]
        return ""

    def rows(self, exported: Exported) -> list[LayerComparison]:
        """Of the file in the folder."""
        from zerobit.export.tflite_file import write_tflite
        from zerobit.export.tflite_logits import integer_logits

        path = exported.folder / TFLITE_FILE
        if path.is_file():
            return _compared(exported, path)
        with tempfile.TemporaryDirectory() as folder:
            graph = integer_logits(exported.graph, exported.first(_SAMPLES))
            return _compared(exported, write_tflite(graph, Path(folder) / TFLITE_FILE))


def _compared(exported: Exported, path: Path) -> list[LayerComparison]:
    from zerobit.export.tflite_logits import with_logit_scales
    from zerobit.export.tflite_run import logit_scales, run_tflite
    from zerobit.integer.twins.gemmlowp import run_gemmlowp

    graph = with_logit_scales(exported.graph, logit_scales(path, exported.graph))
    rows: list[LayerComparison] = []
    for title, inputs in input_sets(exported.first(_SAMPLES), exported.seed):
        found, wanted = run_tflite(path, graph, inputs, keep=True), run_gemmlowp(graph, inputs, keep=True)
        rows += compare_tensors([tensor.name for tensor in graph.tensors], found, wanted, title)
    return rows
