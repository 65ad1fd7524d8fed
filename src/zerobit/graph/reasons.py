"""Why torch.export failed, in words for the owner of the model: the first line of its reason, and where."""

import linecache
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

#: Code that a user of this library doesn't look for mistakes in.
_NOT_THE_USERS = (
    str(Path(torch.__file__).parent),
    str(Path(__file__).parents[1]),
    sysconfig.get_path("stdlib"),
)
_LIBRARIES = sysconfig.get_path("purelib")


def brief(error: Exception) -> str:
    """Type and first line of an error."""
    line = " ".join(str(error).strip().splitlines()[:1])
    return f"{type(error).__name__}: {line[:300]}"


def where(error: Exception) -> str:
    """`file:line: code` of the user's model that an error comes from; "" if none of its lines was reached."""
    frames = [(frame, line) for frame, line in _frames(error) if _is_users(frame.f_code.co_filename)]
    of_modules = {frame.f_code.co_filename for frame, _ in frames if isinstance(frame.f_locals.get("self"), nn.Module)}
    # A library that the model calls (einops) is not where the mistake can be mended.
    frames = [(frame, line) for frame, line in frames if frame.f_code.co_filename in of_modules] or frames
    if not frames:
        return ""
    frame, line = frames[-1]
    file = frame.f_code.co_filename
    return f"{Path(file).name}:{line}: {linecache.getline(file, line, frame.f_globals).strip()}"


def _is_users(file: str) -> bool:
    if file.startswith(("<", *_NOT_THE_USERS[:2])):
        return False
    return file.startswith(_LIBRARIES) or not file.startswith(_NOT_THE_USERS[2])


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """Frame and line of every call on the way to an error, those of what caused it last."""
    seen: set[int] = set()
    chain: list[Any] = []
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        chain.append(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
    for step in chain:
        while step is not None:
            yield step.tb_frame, step.tb_lineno
            step = step.tb_next
