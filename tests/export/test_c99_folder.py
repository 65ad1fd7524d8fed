"""Folders of C libraries: whole or not there, checked, never over files of others; and boards."""

import shutil
import subprocess
from pathlib import Path

import pytest

from integer_networks import NETWORKS, Builder, residual, some_inputs
from zerobit.errors import ExportError
from zerobit.export.c99.folder import check_folder, write_library
from zerobit.export.c99.library import Library
from zerobit.export.c99.toolchain import HostProgram, missing_tools, run_image
from zerobit.export.runtimes.base import Exported
from zerobit.export.runtimes.c_library import EmulatedC


def test_a_folder_is_written_whole_and_again(tmp_path):
    graph = residual(0).graph(every=False)
    x = some_inputs(graph, 0, count=2)
    for name in ("zb", "again"):
        write_library(graph, tmp_path / "out", x, name=name)
        assert f"int {name}_run(" in (tmp_path / "out" / "model.h").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    done = subprocess.run(["make", "-s", "host"], cwd=tmp_path / "out", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "differences=0" in done.stdout
    assert "samples=2" in done.stdout


@pytest.mark.parametrize("name", ["model.c", "model.h", "zb_kernels.c", "ports/arm.c", "Makefile"])
def test_an_edited_file_is_named(tmp_path, name):
    graph = residual(0).graph(every=False)
    library = write_library(graph, tmp_path / "out", some_inputs(graph, 0, count=1), metadata={"plan": "x"})
    check_folder(library, tmp_path / "out")
    check_folder(Library(graph, "zb", {"plan": "x"}), tmp_path / "out")
    file = tmp_path / "out" / name
    file.write_text(file.read_text().replace("1", "2", 1))
    with pytest.raises(ExportError, match=rf"{name} is missing, or is not what this network makes"):
        check_folder(library, tmp_path / "out")
    file.unlink()
    with pytest.raises(ExportError, match=name):
        check_folder(library, tmp_path / "out")


def test_samples_that_are_cut_off_are_named(tmp_path):
    graph = residual(0).graph(every=False)
    library = write_library(graph, tmp_path / "out", some_inputs(graph, 0, count=1))
    file = tmp_path / "out" / "vectors.h"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ExportError, match=r"vectors.h is missing, cut off or edited"):
        check_folder(library, tmp_path / "out")


@pytest.mark.parametrize("name", ["model", "example", "arena"])
def test_names_of_the_example_can_be_names_of_a_network(tmp_path, name):
    graph = residual(0).graph(every=False)
    write_library(graph, tmp_path / "out", some_inputs(graph, 0, count=1), name=name)
    done = subprocess.run(["make", "-s", "host"], cwd=tmp_path / "out", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_files_of_users_are_not_deleted(tmp_path):
    graph = residual(0).graph(every=False)
    x = some_inputs(graph, 0, count=1)
    write_library(graph, tmp_path / "out", x)
    (tmp_path / "out" / "build").mkdir()
    (tmp_path / "out" / "build" / "image.elf").write_text("built")
    write_library(graph, tmp_path / "out", x)
    (tmp_path / "out" / "app.c").write_text("mine")
    with pytest.raises(ExportError, match=r"holds app.c, which no export made"):
        write_library(graph, tmp_path / "out", x)
    assert (tmp_path / "out" / "app.c").read_text() == "mine"


@pytest.mark.skipif(bool(missing_tools("cortex-m55")), reason="needs a cross compiler and QEMU")
def test_a_network_beyond_a_board_is_named():
    net = Builder((900,), 0)
    net.linear("image", "wide", 900, widths=(8,), logits=True)
    library = Library(net.graph(every=False), "zb", {})
    with pytest.raises(ExportError, match=r"needs about .* B of flash, the board that QEMU has for cortex-m55"):
        run_image(library, some_inputs(library.graph, 0, count=1), "cortex-m55")
    exported = Exported(library.graph, Path("nowhere"), some_inputs(library.graph, 0, count=1))
    assert "of flash" in EmulatedC("cortex-m55").missing(exported)


def test_other_folders_stay_as_they_are(tmp_path):
    graph = residual(0).graph(every=False)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"holds mine.txt, which no export made"):
        write_library(graph, tmp_path, some_inputs(graph, 0, count=1))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_nothing_is_left_behind_on_failure(tmp_path):
    volumes = next(network for network in NETWORKS if network.__name__ == "volumes")
    graph = volumes(0).graph()
    with pytest.raises(ExportError):
        write_library(graph, tmp_path / "out", some_inputs(graph, 0, count=1))
    assert not list(tmp_path.iterdir())


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ExportError, match="`cc` is not installed"):
        HostProgram([])
    with pytest.raises(ExportError, match=r"needs arm-none-eabi-gcc, qemu-system-arm, make; install"):
        run_image(Library(residual(0).graph(), "zb", {}), {}, "cortex-m3")
