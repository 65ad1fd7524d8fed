"""Run a graph as one runtime would."""

import sys
from collections.abc import Mapping

import numpy as np

from zerobit.integer.accumulate import Array
from zerobit.integer.ir import IntegerGraph
from zerobit.integer.walk import Feeds, Rule, batches, walk


def run_twin(
    graph: IntegerGraph,
    rule: Rule,
    x: Feeds,
    *,
    keep: bool = False,
    batch_size: int = 64,
    floats: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """Run a graph by the rule of a runtime.

    Args:
        graph: a valid graph.
        rule: how the runtime rounds.
        x: [N, *shape], or one such array per graph input by name.
        keep: return every tensor, and not only the outputs.
        batch_size: images at a time; bounds memory, changes no result. A network of one batch size gets all at once.
        floats: what to take for the float tensors that islands make, for all of `x` at once; torch computes them
            if None.

    Returns:
        Arrays [N, *shape] by tensor name, int8 or uint8; logits in the rule's type.

    Raises:
        ZerobitError: an input is missing, has the wrong shape or holds a NaN.
    """
    if floats is not None or graph.batch is not None:
        batch_size = sys.maxsize
    parts = [walk(graph, rule, feeds, keep, floats) for feeds in batches(graph, x, batch_size)]
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
