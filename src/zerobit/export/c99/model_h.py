"""`model.h`: what users of a library see."""

from collections.abc import Iterator

from zerobit.export.c99.library import Library, Port
from zerobit.export.c99.source import identifier, real


def header(library: Library) -> str:
    """The text of model.h.

    Args:
        library: the network.
    """
    macro = library.macro
    parts = [
        f"{library.title}",
        f"#ifndef {macro}_MODEL_H\n#define {macro}_MODEL_H\n",
        '#include <stddef.h>\n#include <stdint.h>\n\n#include "zb_kernels.h"\n',
        '#ifdef __cplusplus\nextern "C" {\n#endif\n',
        _usage(library),
        f"/* Bytes of memory that {library.name}_init wants; it needs no alignment, and is free between two runs. */",
        f"#define {macro}_ARENA_SIZE {library.arena.size}\n",
        *(line for port in library.inputs for line in _input(library, port)),
        *(line for port in library.outputs for line in _output(library, port)),
        "/* Both return ZB_OK, or what is wrong: see zb_kernels.h. Lengths are numbers of values. */",
        f"int {library.name}_init(void *arena, size_t size);",
        f"int {library.name}_run({library.parameters});\n",
        "#ifdef __cplusplus\n}\n#endif\n\n#endif",
    ]
    return "\n".join(parts) + "\n"


def _input(library: Library, port: Port) -> Iterator[str]:
    """Length, and a function that makes integers of real values."""
    macro, op = library.macro, library.quantizer(port)
    title = f"{macro}_INPUT{port.label}"
    meaning = "value" if op.mean is None and op.std is None else "normalised value"
    yield (
        f"/* Input {identifier(op.input)} ({identifier(port.tensor.name)}): {port.type} {port.dims}, "
        f"{port.tensor.low}..{port.tensor.high};\n * the {meaning} is q * {title}_SCALE. */"
    )
    yield f"#define {title}_LENGTH {port.layout.size}"
    yield f"#define {title}_SCALE {real(port.scale)}"
    yield f"/* It may be written to this place in the arena, and be given to {library.name}_run there. */"
    yield f"#define {title}_OFFSET {library.arena.offsets[port.place.buffer]}"
    yield "/* A value as the network's data has it, before any normalisation; `channel` counts from 0. */"
    yield f"static inline {port.type} {library.name}_quantize{port.label}(float x, int channel)\n{{"
    for name, values, sign in (("mean", op.mean, "-"), ("std", op.std, "/")):
        if values is not None:
            entries = ", ".join(map(real, values))
            yield f"    static const float {name}[{len(values)}] = {{{entries}}};\n    x = x {sign} {name}[channel];"
    yield f"    x = x / {title}_SCALE;"
    yield f"    if (!(x > {port.tensor.low}.0f)) {{ /* or no number */\n        return {port.tensor.low};\n    }}"
    yield f"    if (x >= {port.tensor.high}.0f) {{\n        return {port.tensor.high};\n    }}"
    yield "    int32_t q = (int32_t)x;"
    yield "    const float rest = x - (float)q; /* halves go to the even neighbour */"
    yield "    q += rest > 0.5f || (rest == 0.5f && (q & 1) != 0);"
    yield "    q -= rest < -0.5f || (rest == -0.5f && (q & 1) != 0);"
    yield f"    (void)channel;\n    return ({port.type})q;\n}}\n"


def _output(library: Library, port: Port) -> Iterator[str]:
    title = f"{library.macro}_OUTPUT{port.label}"
    name = identifier(port.tensor.name)
    yield f"/* Output {name}: {port.type} {port.dims}; the largest integer is the largest value. */"
    yield f"#define {title}_LENGTH {port.layout.size}"
    yield f"#define {title}_SCALE {real(port.scale)}"
    yield f"#define {library.macro}_DEQUANTIZE{port.label}(q) ((float)(q) * {title}_SCALE)\n"


def _usage(library: Library) -> str:
    """What a firmware engineer needs to know."""
    name, macro = library.name, library.macro
    arguments = [f"input{p.label}, {macro}_INPUT{p.label}_LENGTH" for p in library.inputs]
    arguments += [f"output{p.label}, {macro}_OUTPUT{p.label}_LENGTH" for p in library.outputs]
    lines = [
        "Copy model.h, model.c, zb_kernels.h, zb_kernels.c and zb_window.inc into your project. Then",
        "",
        f"    static uint8_t arena[{macro}_ARENA_SIZE];",
        *(f"    static {p.type} output{p.label}[{macro}_OUTPUT{p.label}_LENGTH];" for p in library.outputs),
        f"    {name}_init(arena, sizeof arena);  once",
        f"    {name}_run({', '.join(arguments)});",
        "",
        "There is one network with one arena; outputs lie outside of it. `make` in this folder lists what main.c, an",
        "example that checks itself, can be built for.",
    ]
    return "/* " + "\n * ".join(lines).replace(" \n", "\n") + "\n */"
