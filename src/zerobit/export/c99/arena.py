"""Places of buffers in one static arena, worked out once: those that are never live together share bytes."""

from collections.abc import Mapping
from dataclasses import dataclass

from zerobit.export.c99.steps import Program, Step


@dataclass(frozen=True)
class Arena:
    """Where each buffer lies.

    Attributes:
        offsets: first byte, by buffer.
        scratch: first byte of each step's scratch buffer; None where it has none.
        size: bytes.
        live: the least that any arena can take: bytes in use at the worst step.
    """

    offsets: Mapping[str, int]
    scratch: tuple[int | None, ...]
    size: int
    live: int


@dataclass
class _Block:
    """Bytes that are needed from one step to another."""

    size: int
    first: int
    last: int
    offset: int = 0


def plan_arena(program: Program) -> Arena:
    """Place all buffers of a program: the largest first, each at the lowest place where it fits.

    Inputs are there from the beginning, outputs to the end. Where a step may work in place, and what it reads is not
    needed any more, both buffers are one.
    """
    blocks, names = _merged(program)
    scratch = {i: _Block(s.scratch, i, i) for i, s in enumerate(program.steps) if s.scratch}
    # A block that was overwritten in place stands for several buffers.
    placed = [*(block for name, block in blocks.items() if names[name] == name), *scratch.values()]
    _place(placed)
    moments = range(-1, len(program.steps) + 1)
    return Arena(
        {name: blocks[names[name]].offset for name in names},
        tuple(scratch[i].offset if i in scratch else None for i in range(len(program.steps))),
        max((block.offset + block.size for block in placed), default=0),
        max(sum(b.size for b in placed if b.first <= t <= b.last) for t in moments),
    )


def _merged(program: Program) -> tuple[dict[str, _Block], dict[str, str]]:
    """Blocks by name, and the block of each buffer."""
    end = len(program.steps)
    first = {program.places[name].buffer: -1 for name in program.inputs}
    last = dict.fromkeys(first, -1)
    for index, step in enumerate(program.steps):
        for name in (*step.reads, step.writes):
            first.setdefault(name, index)
            last[name] = index
    for place in program.outputs.values():
        last[place.buffer] = end
    names = {name: name for name in program.buffers}
    blocks = {name: _Block(size, first[name], last[name]) for name, size in program.buffers.items()}
    for index, step in enumerate(program.steps):
        name = _reused(step, index, blocks, names)
        if name is not None:
            blocks[name].last = blocks[step.writes].last
            names[step.writes] = name
            blocks[step.writes] = blocks[name]
    return blocks, names


def _reused(step: Step, index: int, blocks: Mapping[str, _Block], names: Mapping[str, str]) -> str | None:
    """The block that a step's result can overwrite."""
    if step.writes not in blocks or blocks[step.writes].first != index:
        return None
    for name in step.in_place:
        block = blocks[names[name]]
        if block.last == index and block.size == blocks[step.writes].size:
            return names[name]
    return None


def _place(blocks: list[_Block]) -> None:
    """Offsets of all blocks; the largest first, so that small ones fill the gaps."""
    placed: list[_Block] = []
    for block in sorted(blocks, key=lambda b: (-b.size, b.first, b.last)):
        near = sorted((b for b in placed if b.first <= block.last and block.first <= b.last), key=lambda b: b.offset)
        block.offset = 0
        for other in near:
            if block.offset + block.size <= other.offset:
                break
            block.offset = max(block.offset, other.offset + other.size)
        placed.append(block)
