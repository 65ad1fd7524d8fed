"""Inputs of a capture: which dimensions are free, how they bind to a model's arguments, what a call may pass."""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zerobit.errors import CaptureError
from zerobit.graph.limits import Limit

#: Dimensions from here on are sizes of an image, behind batch and channels.
_FIRST_SIZE = 2


def name_arguments(model: nn.Module, inputs: Any) -> None:
    """Give a model whose `forward` takes **kwargs an argument for each that is passed, in place.

    torch.export can't match free dimensions with arguments that the signature doesn't name.
    """
    forward = model.forward
    signature = inspect.signature(forward)
    collected = [p for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD]
    extra = [name for name in inputs[1] if name not in signature.parameters]
    if not collected or not extra:
        return
    own = [p for p in signature.parameters.values() if p not in collected]
    named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in extra]

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    vars(call)["__signature__"] = signature.replace(parameters=[*own, *named])
    vars(model)["forward"] = call


def free_dimensions(model: nn.Module, inputs: Any, batch: Any, size: Any = None) -> dict[str, Any]:
    """For each argument of a model the dimensions that are free, as torch.export wants to hear it.

    Args:
        model: whose `forward` takes the inputs.
        inputs: args and kwargs.
        batch: what dimension 0 of every batched tensor is.
        size: what the sizes of every floating tensor of three or more dimensions are; None for fixed ones.

    Raises:
        TypeError: the inputs don't bind to the arguments of `forward`.
    """
    count = batch_size(inputs)
    args, kwargs = inputs

    def free(x: Any) -> Any:
        dims = {0: batch} if _is_batch(x, count) else {}
        if size is not None and isinstance(x, Tensor) and x.is_floating_point():
            dims.update(dict.fromkeys(range(_FIRST_SIZE, x.dim()), size))
        return dims or None

    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    return _map_leaves(free, bound)


def batch_size(inputs: Any) -> int | None:
    """Size of dimension 0 of the first tensor that has one."""
    return next((x.shape[0] for x in _tensors(inputs) if x.dim()), None)


def repeat_single(inputs: Any) -> Any:
    """Repeat examples of batch 1, which torch.export would take for a constant."""
    if batch_size(inputs) != 1:
        return inputs
    return _map_leaves(lambda x: torch.cat([x, x]) if _is_batch(x, 1) else x, inputs)


def _is_batch(value: Any, batch: int | None) -> bool:
    return batch is not None and isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == batch


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _map_leaves(change: Callable[[Any], Any], value: Any) -> Any:
    """The same nest of tuples, lists and dicts with every leaf changed."""
    if isinstance(value, tuple) and type(value) is not tuple:
        # A named tuple takes its fields one by one.
        return type(value)(*(_map_leaves(change, v) for v in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_map_leaves(change, v) for v in value)
    if isinstance(value, dict):
        result = copy.copy(value)
        result.update({k: _map_leaves(change, v) for k, v in value.items()})
        return result
    return change(value)


def check_inputs(
    flat: Sequence[Any], examples: Sequence[Any], free: Sequence[frozenset[int]], limits: Sequence[Limit]
) -> None:
    """Check the flat inputs of a call.

    Args:
        flat: what is passed.
        examples: what the network was captured with.
        free: dimensions of each that may have another size.
        limits: conditions on those sizes.

    Raises:
        CaptureError: a constant, type, rank or size differs that is built in, or a limit doesn't hold.
    """
    for value, example, dims in zip(flat, examples, free, strict=True):
        _check_input(value, example, dims)
    shapes, known = _shapes(flat), _shapes(examples)
    if not limits or [s[1:] for s in shapes] == [s[1:] for s in known]:
        return
    for limit in limits:
        if not limit.allows(shapes):
            msg = (
                f"`inputs` have shapes {[s for s in shapes if s]}; this network takes only sizes with {limit.text}; "
                "resize or pad the input"
            )
            raise CaptureError(msg)


def _shapes(flat: Sequence[Any]) -> list[tuple[int, ...]]:
    return [tuple(x.shape) if isinstance(x, Tensor) else () for x in flat]


def _check_input(value: Any, example: Any, free: frozenset[int]) -> None:
    if not isinstance(example, Tensor):
        if type(value) is not type(example) or value != example:
            msg = (
                f"`inputs` hold {value!r}; {example!r}, which this network was captured with, is built in; "
                f"pass {example!r}, or capture the model anew with {value!r}"
            )
            raise CaptureError(msg)
        return
    if not isinstance(value, Tensor):
        msg = f"`inputs` hold a {type(value).__name__} where the example had a tensor; pass a tensor"
        raise CaptureError(msg)
    fixed = [d for d in range(example.dim()) if d not in free]
    if value.dim() != example.dim() or any(value.shape[d] != example.shape[d] for d in fixed):
        allowed = tuple(("batch" if d == 0 else "any") if d in free else n for d, n in enumerate(example.shape))
        msg = (
            f"`inputs` have shape {tuple(value.shape)}; this network was captured for {allowed}; "
            "resize the input, or capture with an example of that shape"
        )
        raise CaptureError(msg)
