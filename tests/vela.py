"""What tests of an NPU's compiler share: an accelerator, whether Vela is there, the command line."""

import importlib.util

import pytest
from click.testing import Result
from typer.testing import CliRunner

from zerobit.cli import app

U55 = "ethos-u55-128"
#: For searches that need not find anything.
SHORT = ("--float-epochs", 1, "--epochs", 1, 1, "--batch", 256, "--device", "cpu")

needs_vela = pytest.mark.skipif(importlib.util.find_spec("ethosu") is None, reason="ethos-u-vela is not installed")


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])
