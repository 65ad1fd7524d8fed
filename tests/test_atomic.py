"""Files are whole or not there, and as readable as any other."""

import os
from collections.abc import Iterator
from pathlib import Path
from stat import S_IMODE

import pytest
import torch
from safetensors.torch import save_file

from zerobit.atomic import replacing


@pytest.fixture
def _group_may_read() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    before = os.umask(0o027)
    yield
    os.umask(before)


def _save(path: Path) -> None:
    with replacing(path) as temporary:
        save_file({"x": torch.zeros(2)}, temporary)


@pytest.mark.usefixtures("_group_may_read")
def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    _save(tmp_path / "x.safetensors")
    modes = {S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {0o640}


def test_a_file_that_was_there_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.touch(mode=0o600)
    _save(path)
    assert S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o666)
    _save(path)
    assert S_IMODE(path.stat().st_mode) == 0o666


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=r"is a folder; give the name of a file"):
        _save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_stops_halfway_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
