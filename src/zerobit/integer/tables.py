"""Tables of functions of one value: made once, so that every runtime looks up the same integers."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zerobit.graph.ir import Kind, Op
from zerobit.integer.tensors import IntegerTensor

Table = NDArray[np.int16]


def table_of(
    op: Op,
    rank: int,
    parameters: Mapping[str, Tensor],
    source: IntegerTensor,
    limits: tuple[int, int],
    step: np.float32,
) -> tuple[Table, int | None]:
    """The table of a function of each value, or of one per channel.

    Args:
        op: POINTWISE, CHANNELWISE or NORM.
        rank: number of dimensions of its input, the batch included.
        parameters: of the network, by name.
        source: what it reads.
        limits: lowest and highest integer of the result.
        step: scale of the result.

    Returns:
        Integers [256], or [C, 256], in the order of the source's bytes; the dimension behind the batch along
        which the table varies, or None.
    """
    codes = np.arange(256, dtype=np.uint8).view(source.dtype).clip(source.low, source.high)
    real = torch.from_numpy(codes.astype(np.float32) * source.step)
    dim = _varying(op)
    channels = _channels(op, parameters)
    x = real.reshape(256, *(1,) * (rank - 1))
    if dim is not None:
        x = x.expand([256, *(channels if d == dim else 1 for d in range(1, rank))])
    with torch.no_grad():
        y = _compute(op, x, parameters).float().numpy()
    integers = np.rint(np.nan_to_num(y, nan=0.0, posinf=np.inf, neginf=-np.inf) / step).clip(*limits).astype(np.int16)
    if dim is None:
        return integers.reshape(256), None
    return np.ascontiguousarray(integers.reshape(256, channels).T), dim - 1


def _varying(op: Op) -> int | None:
    """Dimension along which the function varies."""
    return 1 if op.kind is Kind.NORM else op.attrs.get("dim") if op.kind is Kind.CHANNELWISE else None


def _channels(op: Op, parameters: Mapping[str, Tensor]) -> int:
    if op.kind is Kind.NORM:
        return parameters[op.attrs["mean"]].numel()
    return parameters[op.parameters[0]].numel() if op.kind is Kind.CHANNELWISE else 1


def _compute(op: Op, x: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    own = {name: parameters[name].detach().cpu().float() for name in op.parameters}
    if op.kind is Kind.NORM:
        statistics = (own[op.attrs["mean"]], own[op.attrs["var"]])
        scale, shift = (None if name is None else own[name] for name in (op.weight, op.bias))
        return torch.nn.functional.batch_norm(x, *statistics, scale, shift, False, 0.0, op.attrs["eps"])
    if op.kind is Kind.POINTWISE:
        return op.attrs["call"](x)
    operands = op.attrs.get("operands", (*op.inputs, *op.parameters))
    return op.attrs["call"](*(own.get(name, x) for name in operands))
