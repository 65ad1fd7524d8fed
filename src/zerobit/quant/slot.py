"""Slots: the modules on the edges of a program. Weights, biases and activations go through them.

Steps are learned as logarithms: they stay positive, and one learning rate suits all of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zerobit.formats import Format
from zerobit.graph.ir import Rows
from zerobit.graph.rows import from_rows, to_rows
from zerobit.quant.fake import fake_quantize, mix_precisions, quantize
from zerobit.quant.ranges import least_squares_step, min_max_step

#: Output channels on dimension 0, as most layers have them.
ROWS_FIRST = Rows()


class AbstractWeightGrid(nn.Module, ABC):
    """How P precisions of a weight get their levels and steps.

    Args:
        widths: the P widths.
        full_range: whether the lowest level of two's complement is used.
    """

    low: Tensor
    high: Tensor

    def __init__(self, widths: Sequence[int], full_range: bool) -> None:
        super().__init__()
        self.widths, self.full_range = tuple(widths), full_range
        formats = [Format(w, signed=True, full_range=full_range) for w in widths]
        self.register_buffer("low", torch.tensor([float(f.low) for f in formats]), persistent=False)
        self.register_buffer("high", torch.tensor([float(f.high) for f in formats]), persistent=False)

    @abstractmethod
    def steps(self, w_CK: Tensor) -> Tensor:
        """[C, P] steps for a weight."""

    @abstractmethod
    def mix(self, w_CK: Tensor, choice: Tensor) -> Tensor:
        """[C, K] effective weight for choices [C, P]."""


class LearnedGrid(AbstractWeightGrid):
    """A learned step per channel and precision (LSQ, Esser et al., ICLR 2020), started at least squared error."""

    def __init__(self, widths: Sequence[int], w_CK: Tensor) -> None:
        super().__init__(widths, full_range=False)
        steps = [least_squares_step(w_CK, -int(h), int(h)) for h in self.high.tolist()]
        self.log_step = nn.Parameter(torch.stack(steps, 1).log().to(w_CK.dtype))

    def steps(self, w_CK: Tensor) -> Tensor:
        """The learned ones."""
        del w_CK
        return self.log_step.exp()

    def mix(self, w_CK: Tensor, choice: Tensor) -> Tensor:
        """With gradients for weights, steps and choices."""
        return mix_precisions(w_CK, choice, self.steps(w_CK), self.low, self.high)


class MinMaxGrid(AbstractWeightGrid):
    """Steps from the largest magnitude, nothing learned (Motetti et al., IEEE TC 2024). For reproduction.

    At 2 bit its levels are -4/3, -2/3, 0, 2/3 of the largest magnitude: lopsided, which is why it is not the default.
    """

    def __init__(self, widths: Sequence[int], w_CK: Tensor) -> None:
        super().__init__(widths, full_range=True)
        del w_CK

    def steps(self, w_CK: Tensor) -> Tensor:
        """From the weight as it is now."""
        return torch.stack([min_max_step(w_CK, w) for w in self.widths], 1)

    def mix(self, w_CK: Tensor, choice: Tensor) -> Tensor:
        """With the straight-through gradient for weights, none for steps."""
        return mix_precisions(w_CK, choice, self.steps(w_CK), self.low, self.high, learned=False)


GRIDS: dict[str, type[LearnedGrid] | type[MinMaxGrid]] = {"learned": LearnedGrid, "minmax": MinMaxGrid}


class AbstractActivationSlot(nn.Module, ABC):
    """Quantises an activation.

    Args:
        widths: the A widths it may have.
        signed: whether values can be negative; signed activations use the full range.
    """

    def __init__(self, widths: Sequence[int], signed: bool) -> None:
        super().__init__()
        self.widths, self.signed = tuple(widths), signed
        self.bypassed = False

    @abstractmethod
    def forward(self, x: Tensor, choice: Tensor | None = None) -> Tensor:
        """Quantised x; with several widths, mixed by `choice` [1, A] unless the slot itself chooses."""

    @abstractmethod
    def fit(self, values: Tensor) -> None:
        """Set the ranges to observed values, in place."""

    @abstractmethod
    def step(self, bits: int) -> float:
        """Quantisation step at one of the widths."""

    def distribution(self, *, hard: bool) -> Tensor | None:
        """[1, A], the slot's own choice of a width as a cost sees it, or the hard one; None if it has none."""
        del hard
        return None


class AbstractSteppedSlot(AbstractActivationSlot):
    """One learned step per width."""

    def __init__(self, widths: Sequence[int], signed: bool) -> None:
        super().__init__(widths, signed)
        self.formats = [Format(w, signed=signed, full_range=True) for w in widths]
        self.log_step = nn.Parameter(torch.zeros(len(self.widths)))

    def copy(self, x: Tensor, column: int) -> Tensor:
        """Quantised x at one of the widths, by its place among them."""
        levels = self.formats[column]
        return fake_quantize(x, self.log_step[column].exp(), levels.low, levels.high)

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Set the steps to least squared error."""
        flat = values.reshape(1, -1).float()
        steps = [least_squares_step(flat, f.low, f.high) for f in self.formats]
        self.log_step.copy_(torch.cat(steps).log())

    def step(self, bits: int) -> float:
        """The learned one."""
        return float(self.log_step.detach().exp()[self.widths.index(bits)])


class ActivationSlot(AbstractSteppedSlot):
    """Mixed from copies at all widths by a choice that is given."""

    def forward(self, x: Tensor, choice: Tensor | None = None) -> Tensor:
        """The sum of the copies."""
        if self.bypassed:
            return x
        copies = [self.copy(x, column) for column in range(len(self.widths))]
        if choice is None:
            assert len(copies) == 1
            return copies[0]
        mixed = choice[0, 0] * copies[0]
        for share, copy in zip(choice[0, 1:], copies[1:], strict=True):
            mixed = mixed + share * copy
        return mixed


class FixedWeightSlot(nn.Module):
    """Quantises a weight at one width per channel.

    Args:
        bits: [C], each on the grid and not 0.
        step: [C].
        full_range: whether the lowest level of two's complement is used.
        layout: how the C output channels lie in the weight.
    """

    low: Tensor
    high: Tensor

    def __init__(self, bits: Sequence[int], step: Tensor, full_range: bool, layout: Rows = ROWS_FIRST) -> None:
        super().__init__()
        self.bits, self.full_range, self.layout = tuple(bits), full_range, layout
        formats = [Format(b, signed=True, full_range=full_range) for b in bits]
        self.register_buffer("low", torch.tensor([[float(f.low)] for f in formats]), persistent=False)
        self.register_buffer("high", torch.tensor([[float(f.high)] for f in formats]), persistent=False)
        self.log_step = nn.Parameter(step.detach().log().reshape(-1, 1))

    def forward(self, w: Tensor) -> Tensor:
        """Quantised weight of the same shape; gradients as in LSQ."""
        flat = to_rows(w, self.layout)
        ones = torch.ones_like(self.log_step)
        step = self.log_step.exp()
        # one precision per row: levels differ by row, so they enter by broadcasting
        return from_rows(_rowwise(flat, ones, step, self.low, self.high), w, self.layout)

    @torch.no_grad()
    def integers(self, w: Tensor) -> Tensor:
        """Integer levels, int8, of the shape of w."""
        levels = quantize(to_rows(w, self.layout), self.log_step.exp(), self.low, self.high)
        return from_rows(levels.to(torch.int8), w, self.layout)


def _rowwise(x: Tensor, choice: Tensor, step: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return mix_precisions(x, choice, step, low[None], high[None])
