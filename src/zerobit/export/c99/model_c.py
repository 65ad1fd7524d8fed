"""`model.c`: constants, and the calls of kernels."""

from zerobit.export.c99.library import Library
from zerobit.export.c99.source import definition, identifier
from zerobit.export.c99.steps import Step


def code(library: Library, *, include: str = "model.h") -> str:
    """The text of model.c.

    Args:
        library: the network.
        include: its header.
    """
    prefix = f"{library.name}_step"
    parts = [
        f"{library.title}",
        f'#include "{include}"\n',
        "#ifdef ZB_TRACE\nvoid zb_trace(uint32_t tensor, const uint8_t *data, uint32_t size);\n#else",
        "#define zb_trace(tensor, data, size) ((void)0)\n#endif\n",
    ]
    for index, step in enumerate(library.program.steps):
        parts.append(f"/* {identifier(step.writes)} */")
        parts += definition(step.struct, f"{prefix}_{index}", step.fields)
    parts += [f"static uint8_t *{library.name}_arena;\n", _init(library), _run(library, prefix)]
    return "\n".join(parts)


def _init(library: Library) -> str:
    return (
        f"int {library.name}_init(void *arena, size_t size)\n{{\n"
        f"    if (arena == NULL || size < {library.macro}_ARENA_SIZE) {{\n        return ZB_ERROR_ARENA;\n    }}\n"
        f"    {library.name}_arena = arena;\n    return ZB_OK;\n}}\n"
    )


def _run(library: Library, prefix: str) -> str:
    body = [f"    uint8_t *const arena = {library.name}_arena;"]
    body.append("    if (arena == NULL) {\n        return ZB_ERROR_STATE;\n    }")
    for kind, ports in (("input", library.inputs), ("output", library.outputs)):
        for port in ports:
            own, macro = f"{kind}{port.label}", f"{library.macro}_{kind.upper()}{port.label}_LENGTH"
            body.append(
                f"    if ({own} == NULL || {own}_length != {macro}) {{\n        return ZB_ERROR_{kind.upper()};\n    }}"
            )
    for port in library.inputs:
        place = _at(library, port.place.buffer)
        body.append(_copied(place, f"(const uint8_t *)input{port.label}", port.layout.size))
    tensors = {step: number for number, (step, _) in enumerate(library.traced)}
    for index, step in enumerate(library.program.steps):
        body.append(f"    {step.kernel}({_arguments(library, step, index, prefix)});")
        if index in tensors:
            size = library.program.buffers[step.writes]
            body.append(f"    zb_trace({tensors[index]}, {_at(library, step.writes)}, {size});")
    for port in library.outputs:
        if not port.tensor.is_float:
            place = _at(library, port.place.buffer)
            body.append(_copied(f"(uint8_t *)output{port.label}", place, port.layout.size))
    text = "\n".join(body)
    return f"int {library.name}_run({library.parameters})\n{{\n{text}\n    return ZB_OK;\n}}\n"


def _at(library: Library, buffer: str) -> str:
    offset = library.arena.offsets[buffer]
    return f"arena + {offset}" if offset else "arena"


def _arguments(library: Library, step: Step, index: int, prefix: str) -> str:
    result = [f"&{prefix}_{index}", *(_at(library, name) for name in step.reads)]
    if step.writes in library.program.buffers:
        result.append(_at(library, step.writes))
    else:  # accumulators go straight out
        result.append(f"output{next(p.label for p in library.outputs if p.tensor.name == step.writes)}")
    if step.scratch is not None:
        offset = library.arena.scratch[index]
        result.append("NULL" if offset is None else f"(int8_t *)(arena + {offset})")
    return ", ".join(result)


def _copied(to: str, source: str, size: int) -> str:
    return f"    if ({to} != {source}) {{\n        zb_move_bytes({to}, {source}, {size}u);\n    }}"
