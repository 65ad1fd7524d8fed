"""One file for a compressed network: safetensors, with the plan in its metadata. Nothing is ever unpickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from zerobit.atomic import replacing
from zerobit.cut.apply import QuantNet, realise
from zerobit.errors import CheckpointError
from zerobit.graph.describe import describe
from zerobit.plan import Plan
from zerobit.search.control import recaptured

_FORMAT = "zerobit-1"
_KEY = "zerobit"


def save(net: QuantNet, path: str | Path) -> Path:
    """Write a compressed network to one safetensors file, whole or not at all.

    Args:
        net: from `apply`.
        path: the file.
    """
    path = Path(path)
    inputs = [[list(shape), str(dtype).removeprefix("torch.")] for shape, dtype in net.example_specs]
    entries = {
        "format": _FORMAT,
        "plan": net.plan.to_json(),
        "inputs": inputs,
        "frozen": sorted(net.structure.frozen),
        "free_size": any(dims - {0} for dims in net.structure.free),
    }
    metadata = {_KEY: json.dumps(entries)}  # one entry: safetensors writes several in random order
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in net.state_dict().items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)
    return path


def load(
    path: str | Path, model: nn.Module, example_inputs: Any = None, kwargs: Mapping[str, Any] | None = None
) -> QuantNet:
    """Rebuild a compressed network from its file and the original model.

    Args:
        path: what `save` wrote.
        model: of the class that was compressed; its weights don't matter, its architecture does.
        example_inputs: as for `attach`; needed only where inputs are nested or named.
        kwargs: as for `attach`.

    Raises:
        CheckpointError: the file is missing, truncated, or not of this format.
        PlanError: the model is another one.
    """
    path = Path(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except (SafetensorError, OSError) as error:
        msg = (
            f"`path` {path} can't be read ({type(error).__name__}: {error}); "
            "it must be a whole file written by `zerobit.save`; write it anew"
        )
        raise CheckpointError(msg) from None
    if metadata.get("format") != _FORMAT:
        msg = (
            f"`path` {path} has format {metadata.get('format')!r}; allowed is {_FORMAT!r}; "
            "load a file written by `zerobit.save`"
        )
        raise CheckpointError(msg)
    plan = Plan.from_json(metadata["plan"])
    if example_inputs is None:
        example_inputs = () if kwargs else tuple(_zeros(shape, dtype) for shape, dtype in metadata["inputs"])
    frozen, free_size = metadata.get("frozen", ()), bool(metadata.get("free_size", False))
    program = recaptured(model, example_inputs, kwargs, frozen, free_size=free_size)
    net = realise(program, describe(program), plan)
    _load_state(net, tensors, path)
    return net.eval()


def _load_state(net: QuantNet, tensors: dict[str, torch.Tensor], path: Path) -> None:
    expected = {name: tuple(t.shape) for name, t in net.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if expected != found:
        odd = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))[:3]
        msg = f"`path` {path} and `model` differ in {odd}; load it with the model class that was compressed"
        raise CheckpointError(msg)
    net.load_state_dict(tensors)


def _zeros(shape: list[int], dtype: str) -> torch.Tensor:
    return torch.zeros(shape, dtype=getattr(torch, dtype))
