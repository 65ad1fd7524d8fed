"""What a network is trained for: the user's loss and metric, the batch format, distillation."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerobit.errors import TrainingError

Batch = Any
Inputs = tuple[tuple[Any, ...], Mapping[str, Any]]
#: Keys that a dict batch may hold its target under.
TARGET_KEYS = ("labels", "label", "target", "targets", "y")


def split_batch(batch: Batch) -> tuple[tuple[Any, ...], Mapping[str, Any], Any]:
    """(positional inputs, named inputs, target) of a batch.

    A tuple or list holds the inputs and, last, the target; a dict holds named inputs and the target under one of
    `TARGET_KEYS`.

    Raises:
        TrainingError: neither of these.
    """
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        return tuple(batch[:-1]), {}, batch[-1]
    if isinstance(batch, Mapping):
        found = [k for k in TARGET_KEYS if k in batch]
        if len(found) == 1 and len(batch) >= 2:
            return (), {k: v for k, v in batch.items() if k != found[0]}, batch[found[0]]
    msg = (
        f"`batch` is a {type(batch).__name__}{_keys(batch)}; allowed are (inputs..., target) or a dict with the target "
        f"under one of {TARGET_KEYS}; pass `batch_format` to split other forms"
    )
    raise TrainingError(msg)


def _keys(batch: Batch) -> str:
    if isinstance(batch, Mapping):
        return f" with keys {sorted(map(str, batch))}"
    return f" of length {len(batch)}" if isinstance(batch, (tuple, list)) else ""


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Share of samples whose largest logit is the target's."""
    return (output.argmax(1) == target).double().mean()


@dataclass(frozen=True)
class Objective:
    """Loss, metric and how batches are read.

    Attributes:
        loss: (output, target) -> scalar tensor.
        metric: (output, target) -> mean over the batch, larger is better.
        batch_format: batch -> (positional inputs, named inputs, target).
        distillation: share of the loss that comes from the float network's outputs, 0..1.
        softness: temperature of the distilled distributions.
    """

    loss: Callable[[Any, Any], Tensor] = F.cross_entropy
    metric: Callable[[Any, Any], Any] = accuracy
    batch_format: Callable[[Batch], tuple[tuple[Any, ...], Mapping[str, Any], Any]] = field(default=split_batch)
    distillation: float = 0.5
    softness: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.distillation <= 1:
            msg = f"`distillation` is {self.distillation}; allowed is 0..1; choose a share"
            raise TrainingError(msg)

    def names(self) -> dict[str, str]:
        """Of the functions, to tell one training from another."""
        functions = {"loss": self.loss, "metric": self.metric, "batch_format": self.batch_format}
        return {key: getattr(f, "__qualname__", type(f).__qualname__) for key, f in functions.items()}

    def read(self, batch: Batch, device: torch.device) -> tuple[tuple[Any, ...], Mapping[str, Any], Any]:
        """A batch split and moved to a device; images in the layout that convolutions are fastest with."""
        args, kwargs, target = self.batch_format(batch)
        return to_device(args, device), to_device(kwargs, device), to_device(target, device)

    def __call__(self, net: nn.Module, teacher: nn.Module | None, batch: Batch, device: torch.device) -> Tensor:
        """Loss of a batch, blended with the distance to the teacher's outputs if there is one."""
        args, kwargs, target = self.read(batch, device)
        output = net(*args, **kwargs)
        if teacher is None or self.distillation == 0:
            return self.loss(output, target)
        with torch.no_grad():
            aim = teacher(*args, **kwargs)
        distance = output_distance(output, aim, self.softness)
        if self.distillation == 1:
            return distance
        return (1 - self.distillation) * self.loss(output, target) + self.distillation * distance


def output_distance(output: Any, aim: Any, softness: float) -> Tensor:
    """Distance of a network's outputs to its teacher's, summed over all tensors of nested outputs.

    Logits [N, K] with K > 1: softness^2 * KL divergence (Hinton et al., arXiv 1503.02531). Anything else: squared error
    over the teacher's mean square.
    """
    terms = [_tensor_distance(a, b, softness) for a, b in zip(leaves(output), leaves(aim), strict=True)]
    return torch.stack(terms).sum()


def _tensor_distance(output: Tensor, aim: Tensor, softness: float) -> Tensor:
    if output.dim() == 2 and output.shape[1] > 1:
        student, teacher = F.log_softmax(output / softness, 1), F.log_softmax(aim / softness, 1)
        return softness**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return F.mse_loss(output, aim) / aim.square().mean().clamp_min(1e-12)


def leaves(value: Any) -> list[Tensor]:
    """Floating tensors of a nested output, in order."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        value = list(value.values())
    return [t for v in value for t in leaves(v)] if isinstance(value, (tuple, list)) else []


def _tensors(value: Any) -> Iterator[Tensor]:
    """All of nested inputs that have a batch dimension."""
    if isinstance(value, Tensor):
        yield from (value,) if value.dim() else ()
    elif isinstance(value, (tuple, list, Mapping)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def to_device(value: Any, device: torch.device) -> Any:
    """Nested tensors moved; image batches as channels_last, in which CPU and GPU convolutions are fastest."""
    if isinstance(value, Tensor):
        value = value.to(device)
        return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
    if isinstance(value, (tuple, list)):
        return type(value)(to_device(v, device) for v in value)
    return {k: to_device(v, device) for k, v in value.items()} if isinstance(value, Mapping) else value


@torch.no_grad()
def evaluate(net: nn.Module, loader: Iterable[Batch], objective: Objective) -> float:
    """Metric over a loader, in evaluation mode, weighted by batch size.

    Raises:
        TrainingError: the loader is empty.
    """
    device = next(iter(net.parameters())).device
    training = net.training
    net.eval()
    total, count = 0.0, 0
    for batch in loader:
        args, kwargs, target = objective.read(batch, device)
        size = next((len(t) for t in _tensors((args, kwargs))), 1)
        total += float(objective.metric(net(*args, **kwargs), target)) * size
        count += size
    net.train(training)
    if not count:
        msg = "`loader` gave no batch; it must give at least one; check its length"
        raise TrainingError(msg)
    return total / count
