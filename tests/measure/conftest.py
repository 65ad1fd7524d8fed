"""A compiler of an NPU with a cache of its own, watched or pretended."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vela import U55
from zerobit.measure import npu_compiler
from zerobit.measure.npu_compiler import Estimate


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "zerobit" / "npu"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Targets of the compilations that really ran."""
    seen: list[str] = []
    run: Callable[[str, Path], str] = npu_compiler._run

    def counted(target: str, folder: Path) -> str:
        seen.append(target)
        return run(target, folder)

    monkeypatch.setattr(npu_compiler, "_run", counted)
    return seen


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As `compiled`, without a compiler: every compilation gives the same figures."""
    seen: list[str] = []

    def run(file: bytes, target: str) -> Estimate:
        seen.append(target)
        return Estimate(7, 6, 5, 4, 0, 1, "system", "mode")

    monkeypatch.setattr(npu_compiler, "_compiled", run)
    monkeypatch.setattr(npu_compiler, "vela_version", lambda: "5.2.0")
    monkeypatch.setattr(npu_compiler, "accelerators", lambda: (U55, "ethos-u55-32"))
    return seen
