"""`vectors.h`: samples for `main.c`, and what they give.

Shape legend: N samples.
"""

import numpy as np
from numpy.typing import NDArray

from zerobit.export.c99.library import Library
from zerobit.export.c99.source import array
from zerobit.integer.twins.fixed31 import run_fixed31
from zerobit.integer.walk import Feeds, batches, quantized_input

Array = NDArray[np.generic]

#: The first line of the file begins with it.
_CHECKSUM = "/* Samples for main.c. The rest of this file has the FNV-1a hash "


def quantised(library: Library, x: Feeds) -> dict[str, Array]:
    """Inputs as the library takes them.

    Args:
        library: the network.
        x: samples [N, *shape], or such arrays by input.

    Returns:
        Integers [N, length] by tensor.
    """
    (feeds,) = batches(library.graph, x, 2**31)
    result: dict[str, Array] = {}
    for port in library.inputs:
        op = library.quantizer(port)
        values = quantized_input(feeds[op.input], op, port.tensor)
        result[port.tensor.name] = port.layout.as_stored(values)
    return result


def vectors(library: Library, x: Feeds) -> str:
    """The text of vectors.h: samples, and hashes of what they give.

    Args:
        library: the network.
        x: samples [N, *shape], or such arrays by input.
    """
    fed, wanted = quantised(library, x), run_fixed31(library.graph, x, keep=True)
    count, macro = len(next(iter(fed.values()))), library.macro
    # Macros in two cases: no name of a library makes the same.
    parts = [
        f"{library.title}",
        f"#define SAMPLES {count}u\n#define OUTPUTS {len(library.outputs)}u",
        f"#define Example_ARENA_SIZE {macro}_ARENA_SIZE\n#define Example_INIT {library.name}_init",
    ]
    parts += [
        f"static const {p.type} input_data{p.label}[{count}][{p.layout.size}] = {{\n{_rows(fed[p.tensor.name])}\n}};"
        for p in library.inputs
    ]
    parts += [f"static {p.type} output_values{p.label}[{p.layout.size}];" for p in library.outputs]
    arguments = [f"input_data{p.label}[sample], {p.layout.size}u" for p in library.inputs]
    arguments += [f"output_values{p.label}, {p.layout.size}u" for p in library.outputs]
    parts.append(f"#define Example_RUN(sample) {library.name}_run({', '.join(arguments)})")
    parts.append(
        f"static const void *const output_data[] = {{{', '.join(f'output_values{p.label}' for p in library.outputs)}}};"
    )
    parts.append(array("uint32_t", "output_lengths", [p.layout.size for p in library.outputs]))
    parts.append(array("uint8_t", "output_widths", [4 if p.type == "int32_t" else 1 for p in library.outputs]))
    outputs = [p.layout.as_stored(wanted[p.tensor.name]) for p in library.outputs]
    tensors = [library.program.places[name].layout.as_stored(wanted[name]) for _, name in library.traced]
    for title, stored in (("output_hashes", outputs), ("tensor_hashes", tensors)):
        hashes = np.array([[fnv1a(_little_endian(values[i])) for values in stored] for i in range(count)], np.int64)
        guard = "#ifdef ZB_TRACE\n{}\n#endif" if title == "tensor_hashes" else "{}"
        rows = f"static const uint32_t {title}[{count}][{max(len(stored), 1)}] = {{\n{_rows(hashes)}\n}};"
        parts.append(guard.format(rows))
    text = "\n".join(parts) + "\n"
    return f"{_CHECKSUM}{fnv1a(text.encode())} */\n{text}"


def is_whole(text: str) -> bool:
    """Whether vectors.h is as it was written, whatever samples it has.

    Args:
        text: of the file.
    """
    first, _, rest = text.partition("\n")
    return first == f"{_CHECKSUM}{fnv1a(rest.encode())} */"


def _little_endian(values: Array) -> bytes:
    return values.astype(values.dtype.newbyteorder("<")).tobytes()


def fnv1a(data: bytes) -> int:
    """FNV-1a of 32 bits (Fowler, Noll, Vo), as main.c computes it."""
    result = 2166136261
    for byte in data:
        result = ((result ^ byte) * 16777619) & 0xFFFFFFFF
    return result


def _rows(values: NDArray[np.generic]) -> str:
    return ",\n".join(f"    {{{', '.join(map(_literal, row.tolist())) or '0'}}}" for row in values)


def _literal(value: int) -> str:
    return f"{value}u" if value > 2**31 - 1 else str(value)
