"""The C library: built for this machine, and in microcontrollers under QEMU."""

from functools import lru_cache

import numpy as np

from zerobit.errors import ExportError
from zerobit.export.c99.folder import check_folder, folder_name
from zerobit.export.c99.library import Library
from zerobit.export.c99.toolchain import HostProgram, compiler, missing_tools, run_image, too_large
from zerobit.export.comparison import LayerComparison, compare_tensors, input_sets
from zerobit.export.runtimes.base import AbstractRuntime, Exported
from zerobit.export.writers import C_FOLDER
from zerobit.integer.twins.fixed31 import run_fixed31

#: Samples that are run: every tensor of each is kept.
_HOST_SAMPLES = 256


@lru_cache(maxsize=1)  # every target asks, twice
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


def checked(exported: Exported) -> Library:
    """A network that C holds; its files, if there are any, are what it makes.

    Raises:
        ExportError: a file is cut off or edited; names it.
    """
    library, reason = held(exported)
    assert library is not None, reason
    if (exported.folder / C_FOLDER).exists():
        check_folder(library, exported.folder / C_FOLDER)
    return library


class HostC(AbstractRuntime):
    """The C code on this machine, against the fixed-point twin."""

    title = "C on this machine"

    def missing(self, exported: Exported) -> str:
        """It needs a compiler, and a network without float."""
        return held(exported)[1] or ("" if compiler() else "no C compiler: install gcc or clang")

    def rows(self, exported: Exported) -> list[LayerComparison]:
        """Of the code in the folder, if there is any."""
        library = checked(exported)
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
        """It needs cross compilers, QEMU, a board that is large enough, and a network without float."""
        library, reason = held(exported)
        if library is None:
            return reason
        tools = missing_tools(self.target)
        return f"install {', '.join(tools)}" if tools else too_large(library, 2, self.target)

    def rows(self, exported: Exported) -> list[LayerComparison]:
        """Of an image with a sample and one of random extremes."""
        library = checked(exported)
        sets = list(input_sets(exported.first(1), exported.seed))
        both = {name: np.concatenate([inputs[name] for _, inputs in sets]) for name in exported.samples}
        image = run_image(library, both, self.target)
        names = [*(name for _, name in library.traced), *(port.tensor.name for port in library.outputs)]
        return [
            _hashed(name, title, exported, number in image.different.get(name, ()))
            for number, (title, _) in enumerate(sets)
            for name in names
        ]


def _hashed(name: str, title: str, exported: Exported, different: bool) -> LayerComparison:
    """A tensor that was compared as a whole: all of its values are equal, or it counts as different."""
    size = int(np.prod(exported.graph.by_name[name].shape))
    return LayerComparison(name, title, size, size * different, float("nan") if different else 0.0)
