"""Build a C library and run it: on this machine, and under QEMU as microcontrollers would."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zerobit.errors import ExportError
from zerobit.export.c99.folder import copy_sources, put_library
from zerobit.export.c99.library import Library
from zerobit.export.c99.model_c import code
from zerobit.export.c99.model_h import header
from zerobit.export.c99.vectors_h import quantised
from zerobit.integer.walk import Feeds

Array = NDArray[np.generic]

_ARM, _RISCV = ("arm-none-eabi-gcc", "qemu-system-arm"), ("riscv64-unknown-elf-gcc", "qemu-system-riscv32")
_KB, _MB = 2**10, 2**20
#: Target of the Makefile -> (compiler, emulator).
TARGETS = {"cortex-m3": _ARM, "cortex-m4": _ARM, "cortex-m55": _ARM, "riscv32": _RISCV}
#: Bytes of flash and RAM of their boards, as in ports/*.ld.
_BOARDS = {
    "cortex-m3": (4 * _MB, 4 * _MB),
    "cortex-m4": (4 * _MB, 4 * _MB),
    "cortex-m55": (512 * _KB, 2 * _MB),
    "riscv32": (32 * _MB, 32 * _MB),
}
#: For code and its constants; for stack and outputs.
_CODE_ROOM, _STACK_ROOM = 16 * _KB, 64 * _KB
#: Seconds after which a build or a run is given up.
_PATIENCE = 900
_FLAGS = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror")
_SANITIZERS = ("-fsanitize=undefined,address", "-fno-sanitize-recover=all", "-g")
_TYPES = {"int8_t": np.int8, "uint8_t": np.uint8, "int32_t": np.int32}


def compiler() -> str | None:
    """A C compiler of this machine."""
    return next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)


def missing_tools(target: str) -> tuple[str, ...]:
    """What has to be installed to run a target of the Makefile here."""
    return tuple(tool for tool in (*TARGETS[target], "make") if shutil.which(tool) is None)


def too_large(library: Library, samples: int, target: str) -> str:
    """Why an image with samples does not fit the board that QEMU knows; "" if it does.

    Args:
        library: the network.
        samples: how many are in the image.
        target: one of `TARGETS`.
    """
    flash, ram = _BOARDS[target]
    needed = library.constant_bytes + samples * sum(port.layout.size for port in library.inputs) + _CODE_ROOM
    if needed > flash:
        return f"it needs about {needed:,} B of flash, the board that QEMU has for {target} has {flash:,} B"
    if library.arena.size + _STACK_ROOM > ram:
        return f"its arena is {library.arena.size:,} B, the board that QEMU has for {target} has {ram:,} B of RAM"
    return ""


class HostProgram(AbstractContextManager["HostProgram"]):
    """Libraries built for this machine, that show every tensor.

    Args:
        libraries: their names are different.
        sanitize: stop at undefined behaviour and at accesses out of bounds.

    Raises:
        ExportError: there is no C compiler, or it refuses the code.
    """

    def __init__(self, libraries: Sequence[Library], *, sanitize: bool = False) -> None:
        found = compiler()
        if found is None:
            msg = "`cc` is not installed; install a C compiler, or choose `format` 'onnx'"
            raise ExportError(msg)
        self._temporary = tempfile.TemporaryDirectory()
        try:
            self._build(found, libraries, _SANITIZERS if sanitize else ())
        except BaseException:
            self._temporary.cleanup()
            raise

    def _build(self, found: str, libraries: Sequence[Library], flags: Sequence[str]) -> None:
        folder = Path(self._temporary.name)
        copy_sources(folder)
        for library in libraries:
            (folder / f"{library.name}.h").write_text(header(library), encoding="utf-8")
        (folder / "dump.c").write_text(_program(libraries), encoding="utf-8")
        _run([found, *_FLAGS, *flags, "-DZB_TRACE", "dump.c", "zb_kernels.c", "-o", "dump"], folder)

    def __exit__(self, *_: object) -> None:
        self._temporary.cleanup()

    def run(self, library: Library, x: Feeds) -> dict[str, Array]:
        """Every tensor of a network that is ever whole in memory, and its outputs.

        Args:
            library: one of those that were built.
            x: [N, *shape], or one such array per graph input by name.

        Returns:
            Integers [N, *shape] by tensor.

        Raises:
            ExportError: the program failed; holds what it said.
        """
        fed = quantised(library, x)
        stored = np.concatenate([fed[port.tensor.name].view(np.uint8) for port in library.inputs], axis=1)
        program = [str(Path(self._temporary.name) / "dump"), library.name]
        done = subprocess.run(program, input=stored.tobytes(), capture_output=True, check=False)
        if done.returncode != 0:
            msg = f"`library` {library.name!r} failed with {done.returncode}: {done.stderr.decode(errors='replace')}"
            raise ExportError(msg[:2000])
        return _split(library, np.frombuffer(done.stdout, np.uint8).reshape(len(stored), -1))


def _split(library: Library, data: NDArray[np.uint8]) -> dict[str, Array]:
    """What a program wrote, [N, bytes], as tensors."""
    tensors, places = library.graph.by_name, library.program.places
    parts = [(name, tensors[name].dtype, places[name].layout) for _, name in library.traced]
    parts += [(p.tensor.name, np.dtype(_TYPES[p.type]), p.layout) for p in library.outputs]
    result: dict[str, Array] = {}
    begin = 0
    for name, dtype, layout in parts:
        end = begin + layout.size * dtype.itemsize
        values = np.ascontiguousarray(data[:, begin:end]).view(dtype)
        result[name] = layout.as_tensor(values, tensors[name].shape)
        begin = end
    assert begin == data.shape[1], "the program wrote more than its tensors"
    return result


def _program(libraries: Sequence[Library]) -> str:
    """Reads samples of the network that its argument names, and writes all tensors of each, then its outputs."""
    choices = "".join(
        f'    if (strcmp(name, "{library.name}") == 0) {{\n        return run_{library.name}();\n    }}\n'
        for library in libraries
    )
    return (
        "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n"
        + "".join(code(library, include=f"{library.name}.h") + _runner(library) for library in libraries)
        + "void zb_trace(uint32_t tensor, const uint8_t *data, uint32_t size)\n"
        "{\n    (void)tensor;\n    fwrite(data, size, 1, stdout);\n}\n"
        f'int main(int count, char **words)\n{{\n    const char *name = count > 1 ? words[1] : "";\n{choices}'
        "    return 99;\n}\n"
    )


def _runner(library: Library) -> str:
    macro, name = library.macro, library.name
    ports = [(f"input{p.label}", p) for p in library.inputs] + [(f"output{p.label}", p) for p in library.outputs]
    places = "".join(f"    static {p.type} {own}[{p.layout.size}];\n" for own, p in ports)
    arguments = ", ".join(f"{own}, {p.layout.size}" for own, p in ports)
    reads = " && ".join(f"fread(input{p.label}, sizeof input{p.label}, 1, stdin) == 1" for p in library.inputs)
    writes = "".join(f"        fwrite(output{p.label}, sizeof output{p.label}, 1, stdout);\n" for p in library.outputs)
    return (
        f"static int run_{name}(void)\n{{\n{places}"
        # On the heap, without a byte to spare: a sanitizer sees accesses beyond it.
        f"    uint8_t *arena = malloc({macro}_ARENA_SIZE);\n"
        f"    int code = {name}_init(arena, {macro}_ARENA_SIZE);\n"
        f"    while (code == ZB_OK && {reads}) {{\n        code = {name}_run({arguments});\n{writes}    }}\n"
        "    free(arena);\n    return code;\n}\n"
    )


@dataclass(frozen=True)
class Image:
    """A library in a microcontroller under QEMU.

    Attributes:
        target: of the Makefile.
        flash: bytes of code and constants of the image, samples of `vectors.h` included.
        ram: bytes of static memory.
        instructions: of each sample.
        tensors: tensors compared, over all samples, outputs not counted.
        different: tensor or output -> the samples in which it is not what it should be.
        by_tensor: instructions of the last sample up to each tensor since the one before.
    """

    target: str
    flash: int
    ram: int
    instructions: tuple[int, ...]
    tensors: int
    different: Mapping[str, frozenset[int]]
    by_tensor: tuple[int, ...]


def run_image(library: Library, samples: Mapping[str, Array], target: str) -> Image:
    """Build a library for a microcontroller, run it on samples, and compare every tensor.

    Args:
        library: the network.
        samples: an array [N, *shape] per graph input by name; they are put into the image.
        target: one of `TARGETS`.

    Raises:
        ExportError: a tool is missing or fails, or the board is too small; says what to install, or how much it has.
    """
    if absent := missing_tools(target):
        msg = f"`target` {target!r} needs {', '.join(absent)}; install them, or leave the target out"
        raise ExportError(msg)
    if reason := too_large(library, len(next(iter(samples.values()))), target):
        msg = f"`target` {target!r}: {reason}; leave the target out"
        raise ExportError(msg)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "library"
        put_library(library, folder, samples)
        text = _run(["make", "-s", target], folder, failing=True)
    return _parse(library, target, text)


def _parse(library: Library, target: str, text: str) -> Image:
    sizes = re.search(r"^\s*(\d+)\s+(\d+)\s+(\d+)\s+\d+\s+[0-9a-f]+\s", text, re.MULTILINE)
    ends = re.findall(r"^samples=\d+ arena=\d+ differences=(\d+)$", text, re.MULTILINE)
    if sizes is None or len(ends) != 2:
        msg = f"`target` {target!r}: the image did not run to its end: {text[-1500:]}"
        raise ExportError(msg)
    code_bytes, data, zeros = map(int, sizes.groups())
    image, check = text.split("samples=")[:2]
    counts = re.findall(r"^sample=\d+ instructions=(\d+)$", image, re.MULTILINE)
    tensors = re.findall(r"^tensor=(\d+) instructions=(\d+)$", check, re.MULTILINE)
    last = [int(spent) for _, spent in tensors][-(len(tensors) // len(counts)) :] if tensors else []
    names = {"tensor": [name for _, name in library.traced], "output": [p.tensor.name for p in library.outputs]}
    different: dict[str, frozenset[int]] = {}
    for number, kind, index in re.findall(r"^DIFFERENT sample=(\d+) (tensor|output)=(\d+)$", text, re.MULTILINE):
        name = names[kind][int(index)]
        different[name] = different.get(name, frozenset()) | {int(number)}
    return Image(target, code_bytes + data, data + zeros, tuple(map(int, counts)), len(tensors), different, tuple(last))


def _run(command: Sequence[str], folder: Path, *, failing: bool = False) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
            errors="replace", timeout=_PATIENCE,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        msg = f"`{command[0]}` took more than {_PATIENCE} s; the network is too large to be emulated here"
        raise ExportError(msg) from None
    if done.returncode != 0 and not failing:
        msg = f"`{command[0]}` failed with {done.returncode}: {done.stderr[-2000:]}"
        raise ExportError(msg)
    return done.stdout + done.stderr
