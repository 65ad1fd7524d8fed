"""What Arm's compiler for Ethos-U NPUs, Vela, estimates of a .tflite file: cycles and memory.

Vela (package ethos-u-vela) runs as a program of its own, in a temporary folder, with the system and the memory mode
that it takes for an accelerator if it is told none; each estimate says which. What it said of a file is kept in the
user's cache, by the content of the file, the accelerator and Vela's version, as JSON:

    $XDG_CACHE_HOME/zerobit/npu, or ~/.cache/zerobit/npu

An entry that can't be read, or whose digest is not that of its values, is made anew.
"""

import csv
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from zerobit.atomic import replacing
from zerobit.errors import ExportError

_PACKAGE = "ethos-u-vela"
#: What all names of Vela's accelerators begin with.
PREFIX = "ethos-u"
#: ResNet-8 takes half a second.
_SECONDS = 600
#: Lines of Vela's last words that an error repeats; those that only underline the one above say nothing.
_TAIL, _UNDERLINE = 3, set("^~ ")
#: Columns of Vela's summary that are read. Memory is in KiB: its stats_writer.py divides bytes by 1024.
_CYCLES, _CLOCK, _SYSTEM, _MODE = "cycles_total", "core_clock", "system_config", "memory_mode"
_SRAM, _DRAM, _FLASH = (
    "sram_memory_used",
    "dram_memory_used",
    ("on_chip_flash_memory_used", "off_chip_flash_memory_used"),
)
_KIB = 1024
#: Of Vela's printed summary; no column says it.
_ON_CPU = re.compile(r"^CPU operators = (\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Estimate:
    """What the compiler says of a network, per inference.

    Attributes:
        cycles: of the accelerator's clock.
        sram: bytes.
        dram: bytes.
        flash: bytes, on and off the chip.
        cpu_operators: operators that the NPU can't run; `cycles` has nothing of them.
        clock: of the accelerator, in Hz.
        system: Vela's name of the system around the accelerator.
        memory_mode: Vela's name of how the memories are used.
    """

    cycles: int
    sram: int
    dram: int
    flash: int
    cpu_operators: int
    clock: int
    system: str
    memory_mode: str

    @property
    def setting(self) -> str:
        """What the estimate holds for."""
        return f"{self.system}, {self.memory_mode}, {self.clock / 1e6:g} MHz"


def accelerators() -> tuple[str, ...]:
    """The accelerators that the installed Vela knows.

    Raises:
        ExportError: Vela is not installed.
    """
    vela_version()
    from ethosu.vela.architecture_features import Accelerator  # an extra

    return tuple(Accelerator.member_list())


def vela_version() -> str:
    """Of the installed Vela.

    Raises:
        ExportError: it is not installed.
    """
    try:
        return version(_PACKAGE)
    except PackageNotFoundError:
        msg = f"`target` {PREFIX}... is compiled by {_PACKAGE}, which is not installed: pip install 'zerobit[npu]'"
        raise ExportError(msg) from None


def check_accelerator(target: str) -> None:
    """Refuse a name that the installed Vela does not know.

    Args:
        target: such as "ethos-u55-128".

    Raises:
        ExportError: Vela is not installed, or does not know the name.
    """
    known = accelerators()
    if target not in known:
        msg = f"`target` is {target!r}; Vela {vela_version()} knows {', '.join(known)}; choose one of these"
        raise ExportError(msg)


def estimate(file: bytes, target: str) -> Estimate:
    """What Vela estimates of a file; compiled only if the cache has no such file.

    Args:
        file: content of a .tflite file with int8 weights; tensors of the type INT4 make Vela 5.2 crash.
        target: of `accelerators()`.

    Raises:
        ExportError: Vela is not installed, does not know the target, fails, or takes longer than ten minutes.
    """
    check_accelerator(target)
    path = cache_folder() / f"{_key(file, target)}.json"
    found = _read(path)
    if found is None:
        found = _compiled(file, target)
        with suppress(OSError):  # a cache that can't be written costs time, and nothing else
            _write(path, found)
    return found


def cache_folder() -> Path:
    """Where estimates are kept; the XDG base directory specification ignores a name that is not absolute."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "zerobit" / "npu"


def _key(file: bytes, target: str) -> str:
    kind = json.dumps([vela_version(), target, [field.name for field in fields(Estimate)]])
    return hashlib.sha256(kind.encode() + b"\0" + file).hexdigest()


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> Estimate | None:
    """A kept estimate; None where there is none that is whole."""
    try:
        entry: Any = json.loads(path.read_text(encoding="utf-8"))
        values = entry["estimate"]
        return Estimate(**values) if entry["sha256"] == _digest(values) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, found: Estimate) -> None:
    values = asdict(found)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"estimate": values, "sha256": _digest(values)}) + "\n", encoding="utf-8")


def _compiled(file: bytes, target: str) -> Estimate:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "network.tflite").write_bytes(file)
        said = _run(target, folder)
        tables = list((folder / "out").glob("*_summary_*.csv"))
        if len(tables) != 1:
            raise _unreadable(target, f"{len(tables)} summaries")
        with tables[0].open(encoding="utf-8", newline="") as table:
            rows = list(csv.DictReader(table))
    if len(rows) != 1:
        raise _unreadable(target, f"{len(rows)} lines in its summary")
    return _summary(rows[0], said, target)


def _run(target: str, folder: Path) -> str:
    """Compile `network.tflite` in a folder; what Vela printed."""
    arguments = ["network.tflite", "--accelerator-config", target, "--output-dir", "out"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ethosu.vela", *arguments],
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=_SECONDS,
            text=True, errors="replace", check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        msg = f"`target` {target}: Vela took longer than {_SECONDS} s; compile the file that `zerobit export` writes"
        raise ExportError(msg) from None
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if set(line) - _UNDERLINE][-_TAIL:]
        words = " / ".join("".join(c for c in line if c.isprintable()) for line in lines) or "nothing"
        msg = f"`target` {target}: Vela {vela_version()} ended with {done.returncode} and said: {words}"
        raise ExportError(msg)
    return done.stdout


def _summary(row: Mapping[str, str], said: str, target: str) -> Estimate:
    on_cpu = _ON_CPU.search(said)
    if on_cpu is None:
        raise _unreadable(target, "no count of operators on the CPU")
    try:
        return Estimate(
            _whole(row[_CYCLES]),
            _whole(row[_SRAM], _KIB),
            _whole(row[_DRAM], _KIB),
            sum(_whole(row[name], _KIB) for name in _FLASH),
            int(on_cpu[1]),
            _whole(row[_CLOCK]),
            row[_SYSTEM],
            row[_MODE],
        )
    except (KeyError, ValueError) as error:
        raise _unreadable(target, f"another summary ({type(error).__name__}: {error})") from None


def _whole(text: str, unit: int = 1) -> int:
    value = float(text) * unit
    if not 0 <= value < math.inf:
        msg = f"{text!r} is no amount"
        raise ValueError(msg)
    return round(value)


def _unreadable(target: str, found: str) -> ExportError:
    msg = f"`target` {target}: Vela {vela_version()} wrote {found}, which can't be read; install {_PACKAGE} 5.2"
    return ExportError(msg)
