"""Folding: passes after capture, since capture itself is bit-identical to the model."""

import torch
from torch import Tensor, nn

from zerobit.graph.constants import fold_constants
from zerobit.graph.describe import describe
from zerobit.graph.edits import add_operand, bypass, drop_unused, replace_tensor
from zerobit.graph.ir import Graph, Kind, Op, Rows
from zerobit.graph.program import Program

#: Position of the bias among the arguments of conv and linear calls.
_BIAS = 2


def fold(program: Program) -> Program:
    """Fold computed weights into parameters, then BatchNorms into layers, in place; returns the program."""
    return fold_batch_norm(fold_constants(program))


def fold_batch_norm(program: Program) -> Program:
    """Fold every BatchNorm straight behind a convolution or linear layer into it, in place.

    Arithmetic is in float64, then rounded to the parameters' type. A BatchNorm that follows anything else, or
    a layer whose output, weight or bias is used elsewhere too, stays an affine op.

    Returns:
        The program.
    """
    graph = describe(program)
    for norm in [op for op in graph.ops if op.kind is Kind.NORM]:
        layer = graph.producer(norm.inputs[0])
        if layer is not None and _foldable(layer, graph):
            _fold(program, layer, norm)
    drop_unused(program)
    return program


def _foldable(layer: Op, graph: Graph) -> bool:
    if layer.kind not in (Kind.CONV, Kind.LINEAR) or layer.rows != Rows():  # a product's weight is [I, O]
        return False
    alone = len(graph.consumers(layer.name)) == 1 and layer.name not in graph.outputs
    channels_last = layer.kind is Kind.LINEAR and len(graph.shapes[layer.name]) != 2
    return alone and not channels_last and all(_read_once(name, graph) for name in layer.parameters)


def _read_once(parameter: str, graph: Graph) -> bool:
    return sum(parameter in op.parameters for op in graph.ops) == 1 and parameter not in graph.outputs


def _fold(program: Program, layer: Op, norm: Op) -> None:
    tensors = program.tensors()
    assert layer.weight is not None
    assert norm.weight is not None
    assert norm.bias is not None
    weight = tensors[layer.weight].detach()
    scale = tensors[norm.weight].double() / (tensors[norm.attrs["var"]].double() + norm.attrs["eps"]).sqrt()
    bias = tensors[layer.bias].double() if layer.bias else torch.zeros_like(scale)
    shift = (bias - tensors[norm.attrs["mean"]].double()) * scale + tensors[norm.bias].double()
    rows = scale.reshape(-1, *(1,) * (weight.dim() - 1))
    trained = tensors[layer.weight].requires_grad
    replace_tensor(program, layer.weight, _parameter(weight.double() * rows, weight, trained))
    new_bias = _parameter(shift, weight, trained)
    if layer.bias:
        replace_tensor(program, layer.bias, new_bias)
    else:
        add_operand(program, layer.name, _BIAS, _bias_name(layer.weight, tensors), new_bias)
    bypass(program, norm.name)


def _parameter(value: Tensor, like: Tensor, requires_grad: bool) -> nn.Parameter:
    return nn.Parameter(value.detach().to(like.dtype), requires_grad)


def _bias_name(weight: str, taken: dict[str, Tensor]) -> str:
    """The name a layer's bias would have, or one that is free."""
    stem = weight.removesuffix("weight") if weight.endswith("weight") else weight + "_"
    return next(name for name in (stem + "bias" + "_" * i for i in range(len(taken) + 1)) if name not in taken)
