"""`zerobit export` and `verify`: files of a run, in full and damaged."""

from pathlib import Path

import pytest
import torch

from commands import copied, invoke
from zerobit import export
from zerobit.export.c99.toolchain import missing_tools
from zerobit.export.runtimes.tflite_micro import TfliteMicro
from zerobit.workflows import load_run


@pytest.mark.parametrize("container", ["packcast", "int8"])
def test_export_and_verify(run: Path, container: str, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    (folder / "model.onnx").unlink()
    result = invoke("export", folder, "--container", container)
    assert result.exit_code == 0, result.output
    assert (folder / "model.onnx").is_file()
    result = invoke("verify", folder)
    assert result.exit_code == 0, result.output
    assert "equal in every value" in result.output
    assert "outputs of the ONNX file on all test samples: 0 of" in result.output


def test_verify_says_in_full_what_to_install(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TfliteMicro, "missing", lambda *_: "absent: pip install 'zerobit[tflite]'")
    result = invoke("verify", run)
    assert result.exit_code == 0, result.output
    assert f"not run: {TfliteMicro.title}, absent: pip install 'zerobit[tflite]'" in result.output.splitlines()


def test_verify_fails_where_nothing_can_be_compared(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerobit.deployment.runtimes", lambda: ())
    result = invoke("verify", run)
    assert result.exit_code == 1
    assert "NOTHING WAS COMPARED" in result.output
    assert "equal" not in result.output


@pytest.mark.parametrize(
    "options", [("--weights", "int4"), ("--name", "net"), ("--format", "c", "--container", "int8")]
)
def test_an_option_of_another_format_is_refused(options: tuple[str, ...], run: Path) -> None:
    before = {path: path.read_bytes() for path in run.iterdir()}
    result = invoke("export", run, *options)
    assert result.exit_code == 2
    assert f"`{options[-2][2:]}` is '{options[-1]}', but `format` is" in result.output
    assert {path: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize("format_", ["onnx", "tflite", "c"])
def test_a_folder_that_is_in_the_way_stays(
    format_: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("export", run, "--format", format_, "--out", ".")
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert tmp_path.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_every_format_is_written_and_verified(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    result = invoke("export", folder, "--format", "c", "--name", "digits")
    assert result.exit_code == 0, result.output
    assert "arena" in result.output
    assert "int digits_run(" in (folder / "c" / "model.h").read_text()
    result = invoke("export", folder, "--format", "tflite", "--weights", "int4")
    assert result.exit_code == 0, result.output
    assert (folder / "model.tflite").stat().st_size > 1000
    result = invoke("verify", folder)
    assert result.exit_code == 0, result.output
    for title in ("ONNX Runtime", "C on this", "TFLite Micro"):
        assert title in result.output
    if not missing_tools("cortex-m4"):
        assert "C on cortex-m4" in result.output


@pytest.mark.parametrize(
    ("format_", "file", "named"),
    [("c", "c/model.c", "c/model.c is missing, or is not what"), ("c", "c/model.h", "c/model.h is missing"),
     ("tflite", "model.tflite", "model.tflite"), ("onnx", "model.onnx", "model.onnx")],
)  # fmt: skip
def test_verify_names_the_file_that_is_cut_off(format_: str, file: str, named: str, run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    assert invoke("export", folder, "--format", format_).exit_code == 0
    damaged = folder / file
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    result = invoke("verify", folder)
    assert result.exit_code == 2, result.output
    assert named in result.stderr


def test_export_writes_where_it_is_told(run: Path, tmp_path: Path) -> None:
    result = invoke("export", run, "--out", tmp_path / "there.onnx")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "there.onnx").read_bytes() == (run / "model.onnx").read_bytes()


def test_verify_finds_a_file_of_another_network(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    record, net = load_run(folder)
    with torch.no_grad():
        net.tensors()["classifier.weight"].neg_()
    export.onnx(net, folder / "model.onnx", mean=record.mean, std=record.std)
    result = invoke("verify", folder)
    assert result.exit_code == 1
    assert "NOT EQUAL: ONNX Runtime: first at layer linear" in result.stderr


@pytest.mark.parametrize(
    ("name", "damage", "named"),
    [
        ("small.safetensors", "truncate", "`path`"),
        ("small.safetensors", "remove", "`path`"),
        ("run.json", "truncate", "`run`"),
        ("run.json", "remove", "`run`"),
    ],
)
@pytest.mark.parametrize("command", ["export", "verify"])
def test_damaged_runs_are_refused(command: str, name: str, damage: str, named: str, run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    file = folder / name
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    result = invoke(command, folder)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert named in line
    assert str(file if name == "small.safetensors" else folder) in line


@pytest.mark.parametrize(("option", "value"), [("--format", "c99"), ("--container", "zip"), ("--weights", "int3")])
def test_unknown_formats_are_refused(option: str, value: str, run: Path, tmp_path: Path) -> None:
    more = ("--format", "tflite") if option == "--weights" else ()
    result = invoke("export", run, option, value, *more, "--out", tmp_path / "x.onnx")
    assert result.exit_code == 2, result.output
    assert option.strip("-") in result.stderr
    assert not (tmp_path / "x.onnx").exists()
