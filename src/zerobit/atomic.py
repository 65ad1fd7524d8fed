"""Files that are there whole or not at all."""

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from stat import S_IMODE


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """A temporary name beside `path`; what is written there takes its place in one step, unless the block raises.

    Permissions are those that writing to `path` itself would have left: files that safetensors 0.8 makes can be read by
    their owner alone (its issue 782).

    Args:
        path: the file to write; its folder is made.

    Raises:
        OSError: it can't be written, or is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; give the name of a file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.touch()
        mode = (path if path.exists() else temporary).stat().st_mode
        yield temporary
        temporary.chmod(S_IMODE(mode))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
