"""A run folder: what a command did, so that the next one can go on from it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from zerobit.atomic import replacing
from zerobit.errors import CheckpointError
from zerobit.report import Stage

_FILE = "run.json"


@dataclass(frozen=True)
class Run:
    """What made a run's network.

    Attributes:
        task: name of the zoo's task.
        model: name of the zoo's network.
        num_classes: of the task.
        mean: normalisation of the data.
        std: normalisation of the data.
        command: as typed.
        stages: what came out.
    """

    task: str
    model: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    command: str
    stages: tuple[Stage, ...] = ()

    def write(self, folder: Path) -> Path:
        """Write `run.json`, whole or not at all."""
        path = folder / _FILE
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        return path

    @staticmethod
    def read(folder: Path) -> "Run":
        """Read `run.json`.

        Raises:
            CheckpointError: the folder holds none, or one that can't be read.
        """
        path = folder / _FILE
        if not path.is_file():
            msg = (
                f"`run` {folder} holds no {_FILE}; it must be a folder that `zerobit search` wrote; "
                "check the path, or run the search first"
            )
            raise CheckpointError(msg)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            stages = tuple(Stage(**s) for s in data.pop("stages"))
            data["mean"], data["std"] = tuple(data["mean"]), tuple(data["std"])
            return Run(**data, stages=stages)
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            msg = f"`run` {path} can't be read ({type(error).__name__}: {error}); run the search again"
            raise CheckpointError(msg) from None


def save_float(model: nn.Module, path: Path) -> Path:
    """Write a float network's state as safetensors, whole or not at all."""
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary)
    return path


def load_float(model: nn.Module, path: Path) -> nn.Module:
    """Load a float network's state in place.

    Raises:
        CheckpointError: the file is missing, truncated, or of another network.
    """
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
        model.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        msg = (
            f"`float` {path} can't be loaded ({type(error).__name__}: {reason}); it must be what `zerobit train` wrote "
            "for this model and task; train it anew"
        )
        raise CheckpointError(msg) from None
    return model.eval()
