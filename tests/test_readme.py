"""What README.md shows, runs."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def _blocks(text: str) -> list[tuple[int, str]]:
    """Line number and code of each python block."""
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start(1)].count("\n"), match.group(1)) for match in found]


def test_finder_sees_python_blocks_and_no_others() -> None:
    assert _blocks("a\n```python\nx = 1\n```\n```\nmake\n```\n```python\ny\n```\n") == [(2, "x = 1\n"), (8, "y\n")]


def test_python_blocks_run_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = _blocks(README.read_text(encoding="utf-8"))
    assert blocks
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "readme"}
    for line, code in blocks:
        exec(compile("\n" * line + code, str(README), "exec"), names)
