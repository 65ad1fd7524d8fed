"""What is measured on a row of the matrix, for the tests and for the coverage table alike."""

import copy
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from laws.test_cut_equals_masked import Keep, cut_copy, keep_one, keep_some, removable
from matrix.row import MatrixRow
from zerobit.graph.capture import FloatProgram, capture
from zerobit.graph.describe import describe
from zerobit.graph.folding import fold
from zerobit.graph.ir import Graph
from zerobit.graph.program import Program
from zerobit.graph.walks import masked_run

#: Largest difference of a cut and a masked network, relative to the largest value of a result. The networks are up
#: to forty layers deep, and what is summed over the channels is summed in another order.
TOLERANCE = 1e-9
#: Groups that are also cut alone, where a network has more.
_ALONE = 5


@functools.cache
def _captured(row: MatrixRow, dtype: torch.dtype) -> FloatProgram:
    return capture(row.model(dtype), row.sample(3, dtype=dtype))


def captured(row: MatrixRow, dtype: torch.dtype = torch.float32) -> FloatProgram:
    """The capture of a row's network; a copy, so that a test may do with it what it likes."""
    return copy.deepcopy(_captured(row, dtype))


def folded(row: MatrixRow, dtype: torch.dtype = torch.float32) -> FloatProgram:
    """The capture with weights computed once and BatchNorm folded, as the search sees it."""
    program = captured(row, dtype)
    fold(program)
    return program


def tensors(results: Any) -> list[Tensor]:
    """The tensors of nested results, in order."""
    return [leaf for leaf in pytree.tree_leaves(results) if isinstance(leaf, Tensor)]


@torch.no_grad()
def run(network: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """What a network returns, flat."""
    return tensors(network(*inputs))


def cuts(graph: Graph, seed: int = 0) -> Iterator[Keep]:
    """All groups at once, by chance and down to one unit; every second group; and some groups alone."""
    groups = removable(graph)
    if not groups:
        return
    yield {g: keep_some(g, seed) for g in groups}
    yield {g: keep_one(g, seed) for g in groups}
    yield {g: keep_some(g, seed + 1) for g in groups[::2]}
    random = torch.Generator().manual_seed(seed)
    alone = torch.randperm(len(groups), generator=random)[:_ALONE].tolist()
    yield from ({groups[i]: keep_some(groups[i], seed + i)} for i in alone)


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    """Largest difference of two lists of results, relative to the largest finite value; infinite where one is NaN.

    Raises:
        AssertionError: the results differ in number or size.
    """
    assert [x.shape for x in one] == [x.shape for x in other]
    largest = 0.0
    for a, b in zip(one, other, strict=True):
        same = a == b  # infinities too
        gap = torch.where(same, 0.0, (a - b).abs().double()).max().item() if a.numel() else 0.0
        scale = b[b.isfinite()].abs().max().item() if b.isfinite().any() else 0.0
        if gap != gap:
            return float("inf")
        largest = max(largest, gap / scale if gap else 0.0)
    return largest


def cut_difference(program: Program, graph: Graph, row: MatrixRow) -> float | None:
    """Largest relative difference between cut and masked networks in float64; None where nothing can be cut."""
    inputs = row.sample(2, seed=1, dtype=torch.float64)
    worst: float | None = None
    for keep in cuts(graph):
        with torch.no_grad():
            masked = tensors(masked_run(program, keep, *inputs))
        gap = difference(run(cut_copy(program, graph, keep), inputs), masked)
        worst = gap if worst is None else max(worst, gap)
    return worst


def measure_cuts(row: MatrixRow) -> float | None:
    """`cut_difference` of a row's folded capture."""
    program = folded(row, torch.float64)
    return cut_difference(program, describe(program), row)
