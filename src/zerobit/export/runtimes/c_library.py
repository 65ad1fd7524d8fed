"""The C library: built for this machine, and in microcontrollers under QEMU."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from zerobit.errors import ExportError
from zerobit.export.c99.folder import check_folder, folder_name
from zerobit.export.c99.library import Library
from zerobit.export.c99.toolchain import HostProgram, compiler, missing_tools, run_image
from zerobit.export.comparison import LayerComparison, compare_tensors, input_sets
from zerobit.export.runtimes.base import AbstractRuntime, Exported
from zerobit.integer.twins.fixed31 import run_fixed31

#: In the folder of a run.
C_FOLDER = "c"
#: Samples that are run: every tensor of each is kept.
_HOST_SAMPLES = 256
#: Samples in an image; they are part of it.
_IMAGE_SAMPLES = 2


def held(exported: Exported) -> tuple[Library | None, str]:
    """A network as C, or why C can't hold it."""
    folder = exported.folder / C_FOLDER
    name = folder_name(folder) if folder.exists() else "zb"
    library = Library(exported.graph, name, exported.metadata)
    try:
        _ = library.program
    except ExportError as error:
        return None, str(error).partition(";")[0]
    return library, ""


class HostC(AbstractRuntime):
    """The C code on this machine, against the fixed-point twin."""

    title = "C on this machine"

    def missing(self, exported: Exported) -> str:
        """It needs a compiler, and a network without float."""
        return held(exported)[1] or ("" if compiler() else "no C compiler: install gcc or clang")

    def rows(self, exported: Exported) -> list[LayerComparison]:
        """Of the code in the folder, if there is any."""
        library, reason = held(exported)
        assert library is not None, reason
        if (exported.folder / C_FOLDER).exists():
            check_folder(library, exported.folder / C_FOLDER)
        rows: list[LayerComparison] = []
        with HostProgram([library]) as program:
            for title, inputs in input_sets(exported.first(_HOST_SAMPLES), exported.seed):
                found, wanted = program.run(library, inputs), run_fixed31(exported.graph, inputs, keep=True)
                rows += compare_tensors(list(found), found, wanted, title)
        return rows


class EmulatedC(AbstractRuntime):
    """The C code in a microcontroller under QEMU, which compares hashes of all values of a tensor.

    Args:
        target: of the library's Makefile.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.title = f"C on {target}"

    def missing(self, exported: Exported) -> str:
        """It needs cross compilers, QEMU, and a network without float."""
        tools = missing_tools(self.target)
        return held(exported)[1] or (f"install {', '.join(tools)}" if tools else "")

    def rows(self, exported: Exported) -> list[LayerComparison]:
        """Of an image with some samples."""
        library, reason = held(exported)
        assert library is not None, reason
        samples = exported.first(_IMAGE_SAMPLES)
        image = run_image(library, samples, self.target)
        names = [*(name for _, name in library.traced), *(port.tensor.name for port in library.outputs)]
        return [_hashed(name, exported, samples, image.different) for name in names]


def _hashed(
    name: str, exported: Exported, samples: Mapping[str, NDArray[np.generic]], different: Mapping[str, int]
) -> LayerComparison:
    """A tensor that was compared as a whole: all of its values in a sample are equal, or it counts as different."""
    count = len(next(iter(samples.values())))
    size = int(np.prod(exported.graph.by_name[name].shape))
    wrong = different.get(name, 0)
    return LayerComparison(name, "samples", count * size, wrong * size, float("nan") if wrong else 0.0)
