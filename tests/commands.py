"""Commands as a user gives them, and what they leave behind."""

import shutil
from pathlib import Path

from typer.testing import CliRunner, Result

from zerobit.cli import app


def invoke(*arguments: object) -> Result:
    """What a command prints, and how it ends."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


def short_run(folder: Path) -> Path:
    """A run folder of a search that is as short as can be."""
    result = invoke(
        "search", "--task", "digits", "--budget", "size=25%", "--float-epochs", 1, "--epochs", 1, 1,
        "--batch", 256, "--device", "cpu", "--out", folder,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "exported" in result.output
    return folder


def copied(run: Path, tmp_path: Path) -> Path:
    """A run folder that may be changed."""
    return Path(shutil.copytree(run, tmp_path / "run"))
