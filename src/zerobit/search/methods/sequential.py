"""First gates, then widths: the sequential baseline of joint searches."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from zerobit.errors import FormatError
from zerobit.formats import DEFAULT_STORAGE
from zerobit.graph.ir import ChannelGroup
from zerobit.search.choice import AbstractGroupChoice, UnitRule
from zerobit.search.method import (
    GRANULARITIES,
    AbstractMethod,
    Granularity,
    Searched,
    check_one_of,
    check_share,
    check_widths,
)
from zerobit.search.methods.softmax import ChannelSoftmax
from zerobit.search.widths.base import AbstractWidthChoice, GridQuantizer
from zerobit.search.widths.softmax import SoftmaxWidth


@dataclass(frozen=True)
class PruneThenQuantize(AbstractMethod):
    """Gates are searched at the widest width and then stand; widths are searched for what stays.

    The baseline that joint searches are compared with: PIT, then channel-wise mixed precision, in Motetti et al. (IEEE
    TC 2024), and pruning before quantisation in DJPQ (Wang et al., ECCV 2020). The gates and widths are those of
    `ChannelSoftmax`.

    Attributes:
        weight_bits: offered to weights, from {0, 2..8}; 0 and two others at least.
        activation_bits: offered to activations, from {2..8}; searched with the widths of weights.
        granularity: "channel", or "layer" for one width per layer.
        prune_share: of the search, that is spent with gates.
        prune_to: of a budget's logarithm, that is saved by pruning. At 0.5, a quarter of the size is half by pruning
            and half of that by widths. For a cost that widths hardly change (MACs, MPIC) give 1: there is nothing that
            they could save.
        start_bits: the widest, at which the gates are searched.
        min_channels: units that every group keeps.

    Raises:
        FormatError: a width or granularity that does not exist, nothing to prune or to quantise, or a share that is
            not between 0 and 1.
    """

    weight_bits: tuple[int, ...] = (0, *DEFAULT_STORAGE)
    activation_bits: tuple[int, ...] = (8,)
    granularity: Granularity = "channel"
    prune_share: float = 0.5
    prune_to: float = 0.5
    start_bits: int | None = field(init=False, repr=False, default=None)
    min_channels: int = 1

    def __post_init__(self) -> None:
        check_widths(self)
        check_one_of("granularity", self.granularity, GRANULARITIES)
        check_share("prune_share", self.prune_share)
        if self.prune_to != 1:
            check_share("prune_to", self.prune_to)
        if 0 not in self.weight_bits or len(self.widths) == 1:
            msg = (
                f"`weight_bits` is {self.weight_bits}; pruning needs 0 among them and quantising two widths besides; "
                "allowed are for example (0, 2, 4, 8); add what is missing"
            )
            raise FormatError(msg)
        object.__setattr__(self, "start_bits", max(self.widths))

    @property
    def _joint(self) -> ChannelSoftmax:
        """What makes the choices."""
        return ChannelSoftmax(
            self.weight_bits,
            self.activation_bits,
            granularity=self.granularity,
            start_bits=self.start_bits,
            min_channels=self.min_channels,
        )

    @property
    def choosing_share(self) -> float:
        """The shorter of the two parts."""
        return min(self.prune_share, 1 - self.prune_share)

    def group_choice(self, group: ChannelGroup, rule: UnitRule, *, removable: bool) -> AbstractGroupChoice | None:
        """A gate."""
        return self._joint.group_choice(group, rule, removable=removable)

    def weight_quantizer(self, w_CK: Tensor, widths: tuple[int, ...], *, coupled: bool) -> GridQuantizer:
        """A grid, mixed per channel or per layer."""
        return self._joint.weight_quantizer(w_CK, widths, coupled=coupled)

    def activation_choice(self) -> SoftmaxWidth | None:
        """One row."""
        return self._joint.activation_choice()

    def prunes(self, progress: float) -> bool:
        """Whether gates are trained at a share of the search, 0..1; else widths are."""
        return progress < self.prune_share

    def advance(self, net: Searched, progress: float) -> None:
        """Train gates or widths; what is not trained keeps its hard choice, which the forward uses anyway.

        Optimizers leave alone what has no gradient.
        """
        pruning = self.prunes(progress)
        for gates, parameter in _choices(net):
            parameter.requires_grad_(gates == pruning)

    def limit_share(self, progress: float, ramp: float) -> float:
        """Falls in two parts: to `prune_to` while gates are trained, and to the budget with the widths."""
        share = super().limit_share(self._progress_of_part(progress), ramp)
        return self.prune_to * share if self.prunes(progress) else self.prune_to + (1 - self.prune_to) * share

    def rate_progress(self, progress: float) -> float:
        """Gates have a learning rate that falls to 0, and so have the widths after them."""
        return self._progress_of_part(progress)

    def _progress_of_part(self, progress: float) -> float:
        """Share of the gates' or of the widths' part that is done."""
        if self.prunes(progress):
            return progress / self.prune_share
        return (progress - self.prune_share) / (1 - self.prune_share)


def _choices(net: Searched) -> Iterator[tuple[bool, nn.Parameter]]:
    """(whether it is a gate's, else a width's) and each parameter of a choice."""
    for module in net.modules():
        if isinstance(module, (AbstractGroupChoice, AbstractWidthChoice)):
            for parameter in module.parameters(recurse=False):
                yield isinstance(module, AbstractGroupChoice), parameter
