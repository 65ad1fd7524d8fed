"""Write a library into a folder."""

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from zerobit.errors import ExportError
from zerobit.export.c99.library import Library
from zerobit.export.c99.model_c import code
from zerobit.export.c99.model_h import header
from zerobit.export.c99.vectors_h import is_whole, vectors
from zerobit.integer.ir import IntegerGraph
from zerobit.integer.walk import Feeds

_SOURCES = Path(__file__).parent / "sources"


def library_files(library: Library, samples: Feeds) -> dict[str, str]:
    """Texts of all files by their path in the folder.

    Args:
        library: the network.
        samples: [N, *shape] or such arrays by input, that `main.c` runs.
    """
    own = {"model.h": header(library), "model.c": code(library), "vectors.h": vectors(library, samples)}
    return {**_sources(), **own}


def _sources() -> dict[str, str]:
    """Files that are the same for all networks."""
    files = (path for path in _SOURCES.rglob("*") if path.is_file())
    return {path.relative_to(_SOURCES).as_posix(): path.read_text(encoding="utf-8") for path in files}


def write_library(
    graph: IntegerGraph,
    folder: str | os.PathLike[str],
    samples: Feeds,
    *,
    name: str = "zb",
    metadata: Mapping[str, str] | None = None,
) -> Library:
    """Write a graph as a C library; nothing is left behind on failure.

    Args:
        graph: validated here.
        folder: made if missing; one that an earlier call made is replaced.
        samples: inputs that the example runs and checks, [N, *shape] or such arrays by input.
        name: that the C functions begin with.
        metadata: entries of a comment.

    Raises:
        ExportError: C can't hold an op, `name` can't begin an identifier, or the folder has files of others.
        OSError: the folder can't be written.
    """
    library = Library(graph.validate(), name, metadata or {})
    put_library(library, folder, samples)
    return library


def put_library(library: Library, folder: str | os.PathLike[str], samples: Feeds) -> None:
    """Write a C library; nothing is left behind on failure.

    Args:
        library: of a valid graph.
        folder: as of `write_library`.
        samples: inputs that the example runs and checks.

    Raises:
        ExportError: as `write_library`.
        OSError: the folder can't be written.
    """
    files = library_files(library, samples)
    target, here = Path(folder).absolute(), Path.cwd().resolve()
    if target.resolve() in (here, *here.parents):
        msg = f"`folder` is {str(folder)!r}, where this command runs, and can't be replaced; give one inside it"
        raise ExportError(msg)
    if others := _others(target, files):
        msg = f"`folder` {target} holds {others[0]}, which no export made; give an empty folder, or one of an export"
        raise ExportError(msg)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        new = Path(temporary) / "new"
        for path, text in files.items():
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            (new / path).write_text(text, encoding="utf-8")
        old = Path(temporary) / "old"
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise


def _others(target: Path, files: Mapping[str, str]) -> list[str]:
    """What is in a folder beside the files of a library and what its Makefile builds."""
    if not target.is_dir():
        return [target.name] if target.exists() else []
    found = [path.relative_to(target) for path in target.rglob("*") if not path.is_dir()]
    return sorted(path.as_posix() for path in found if path.as_posix() not in files and path.parts[0] != "build")


def folder_name(folder: Path) -> str:
    """What the functions of a library begin with.

    Args:
        folder: from `write_library`.

    Raises:
        ExportError: it has no model.h that says so.
    """
    path = folder / "model.h"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = re.search(r"^int ([a-z][a-z0-9_]*)_init\(", text, re.MULTILINE)
    if found is None:
        msg = f"`folder` {path} is missing, or is not what zerobit makes; export it again"
        raise ExportError(msg)
    return found.group(1)


def check_folder(library: Library, folder: Path) -> None:
    """Prove that a folder holds the code of a network, and the samples that it was written with.

    Args:
        library: the network, with the name and metadata that the folder was written with.
        folder: from `write_library`.

    Raises:
        ExportError: a file is missing, cut off or edited; names it.
    """
    own = {"model.h": header(library), "model.c": code(library)}
    for path, text in {**_sources(), **own}.items():
        file = folder / path
        if not file.is_file() or file.read_text(encoding="utf-8", errors="replace") != text:
            msg = f"`folder` {file} is missing, or is not what this network makes; export it again"
            raise ExportError(msg)
    samples = folder / "vectors.h"
    if not samples.is_file() or not is_whole(samples.read_text(encoding="utf-8", errors="replace")):
        msg = f"`folder` {samples} is missing, cut off or edited; export it again"
        raise ExportError(msg)


def copy_sources(folder: Path) -> None:
    """The kernels alone."""
    for name in ("zb_kernels.h", "zb_kernels.c", "zb_window.inc"):
        shutil.copyfile(_SOURCES / name, folder / name)
