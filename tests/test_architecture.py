"""Rules about imports that import-linter cannot express.

The layers themselves are in pyproject.toml under [tool.importlinter].
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "zerobit"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Both change from one torch release to the next: all use of them stays in two files.
TRACERS = ("torch.fx", "torch.export")
MAY_TRACE = {"graph/capture.py", "graph/program.py", "graph/walks.py"}

# Loading what these wrote can run any code.
UNSAFE = ("pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")
UNSAFE_OPTIONS = {"weights_only": False, "allow_pickle": True}

# Slow to import, or optional: they are imported by the function that needs them.
LAZY = ("onnx", "onnxruntime", "tflite_micro", "flatbuffers", "lightning_fabric", "sklearn", "pooch", "plotly", "ray")


def _names_used(tree: ast.AST) -> Iterator[str]:
    """Yield dotted names of imports, and of attributes such as `torch.fx.Graph`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def _is_within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _used_from(source: str, packages: tuple[str, ...]) -> set[str]:
    return {name for name in _names_used(ast.parse(source)) if _is_within(name, packages)}


def _unsafe_options(source: str) -> set[str]:
    return {
        f"{node.arg}={node.value.value}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.keyword) and node.arg in UNSAFE_OPTIONS and isinstance(node.value, ast.Constant)
        if node.value.value == UNSAFE_OPTIONS[node.arg]
    }


def _relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize(
    "source",
    [
        "import torch.fx",
        "import torch.fx as graphs",
        "from torch import nn, fx",
        "from torch.fx import Graph",
        "from torch.fx.node import Node",
        "import torch\ntorch.export.export(m, x)",
        "def f():\n    from torch.export import export",
    ],
)
def test_finder_sees_every_way_to_reach_a_tracer(source: str) -> None:
    assert _used_from(source, TRACERS)


@pytest.mark.parametrize(
    "source",
    ["import torch", "from torch import nn", "from zerobit.export import c", "import torch.functional"],
)
def test_finder_sees_nothing_else(source: str) -> None:
    assert not _used_from(source, TRACERS)


def test_few_files_use_the_tracers_of_torch() -> None:
    found = {_relative(path): _used_from(path.read_text(encoding="utf-8"), TRACERS) for path in SOURCES}
    assert not {name: used for name, used in found.items() if used and name not in MAY_TRACE}


def test_nothing_unpickles() -> None:
    found = {
        _relative(path): _used_from(source, UNSAFE) | _unsafe_options(source)
        for path in SOURCES
        for source in [path.read_text(encoding="utf-8")]
    }
    assert not {name: used for name, used in found.items() if used}


def test_import_loads_no_optional_or_slow_package() -> None:
    code = f"import sys, zerobit; print(*(name for name in {LAZY!r} if name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_everything_is_ascii() -> None:
    folders = [ROOT / name for name in ("src", "tests", "benchmarks")]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    assert not [str(path) for path in files if not path.read_text(encoding="utf-8").isascii()]
