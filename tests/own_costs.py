"""What tests of costs of one's own share: terms and widths, and made-up measurements of layers."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

from zerobit.cost.measured import MeasuredCost
from zerobit.cost.measurements import OPS, Measurement
from zerobit.cost.terms import Widths, amounts_of_rows, term

WIDTHS = Widths((2, 4, 8), (4, 8))
TERMS = ("call", "windows", "reads", "macs", "macs_w>2", "macs_w>4", "macs_a>4", "inputs", "outputs", "weights",
         "weight_bytes", "tiles/16", "tiled/16")  # fmt: skip
EVERY = MeasuredCost("every", "us", {op: dict.fromkeys(TERMS, 1.0) for op in OPS}, WIDTHS)


def layer_rows(value: Callable[[Measurement], float]) -> tuple[Measurement, ...]:
    """Layers of each kind over channels and widths."""
    channels, sizes = (8, 16, 24, 40), ((8, 8), (16, 16), (5, 12))
    rows = [
        Measurement(op, i, i if op == "depthwise" else o, kernel, stride, *size, w, 8, 1.0)
        for op, kernel, stride in (("conv", (3, 3), (1, 1)), ("conv", (1, 1), (2, 2)), ("depthwise", (3, 3), (1, 1)),
                                   ("linear", (1,), (1,)))
        for i, o, size, w in product(channels, channels, sizes, (2, 4, 8))
        if op != "depthwise" or i == o
    ]  # fmt: skip
    return tuple(replace(row, value=value(row)) for row in rows)


def synthetic(terms: dict[str, float], widths: Widths) -> Callable[[Measurement], float]:
    def value(row: Measurement) -> float:
        amounts = amounts_of_rows([row], widths)
        return sum(c * term(t, amounts, widths).item() for t, c in terms.items())

    return value
