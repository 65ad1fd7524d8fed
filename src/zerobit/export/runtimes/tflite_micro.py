"""TFLite Micro's interpreter on this machine."""

from functools import lru_cache
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
            _built(exported)
        except ImportError:
            return "tflite-micro is not installed: pip install 'zerobit[tflite]'"
        except ZerobitError as error:
            return str(error).partition(";")[0]
        return ""

    def rows(self, exported: Exported) -> list[LayerComparison]:
        """Of the file in the folder."""
        with exported.file(TFLITE_FILE, lambda path: path.write_bytes(_built(exported))) as path:
            return _compared(exported, path)


@lru_cache(maxsize=1)  # `missing` and `rows` both ask
def _built(exported: Exported) -> bytes:
    """What the file holds.

    Raises:
        ImportError: tflite-micro is not installed.
        ZerobitError: it has no kernel for an op.
    """
    from zerobit.export.tflite_file import build_tflite
    from zerobit.export.tflite_logits import integer_logits

    return build_tflite(integer_logits(exported.graph, exported.first(_SAMPLES)), "int8", {})


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
