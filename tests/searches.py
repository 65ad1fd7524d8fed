"""Methods and search networks that several tests share. A new method is one row in `METHODS`."""

import copy
from functools import cache

import torch
from torch import nn

from cases import case, randomised
from zerobit.search.attach import attach
from zerobit.search.choice import AbstractChoice
from zerobit.search.methods.softmax import ChannelSoftmax
from zerobit.search.net import SearchNet

METHODS: dict[str, ChannelSoftmax] = {
    "default": ChannelSoftmax(),
    "shared": ChannelSoftmax(shared=True),
    "softmax": ChannelSoftmax(sampling="softmax", end_temperature=0.05),
    "gumbel": ChannelSoftmax(sampling="gumbel", end_temperature=0.05),
    "published": ChannelSoftmax(shared=True, sampling="softmax", grid="minmax", end_temperature=1e-9),
    "layer": ChannelSoftmax(granularity="layer"),
    "no_pruning": ChannelSoftmax(weight_bits=(2, 4, 8)),
    "shared_no_pruning": ChannelSoftmax(weight_bits=(2, 4, 8), shared=True),
    "one_width": ChannelSoftmax(weight_bits=(0, 8)),
    "minmax": ChannelSoftmax(grid="minmax"),
    "activations": ChannelSoftmax(activation_bits=(4, 8)),
    "odd_widths": ChannelSoftmax(weight_bits=(0, 2, 3, 8)),
    "all_widths": ChannelSoftmax(weight_bits=(0, 2, 3, 4, 5, 6, 7, 8)),
    "three_channels": ChannelSoftmax(min_channels=3),
}

#: Small networks that differ in what hangs together: residual, depthwise, concatenation, unfolded norm, two inputs.
QUICK = ("digits", "inverted_residual", "concat_branches", "tcn", "pre_activation", "mlp", "two_inputs", "rows")


@cache
def _attached(name: str, method: ChannelSoftmax) -> SearchNet:
    row = case(name)
    torch.manual_seed(0)
    return attach(randomised(row.build()), row.inputs(4), method)


def attached(name: str, method: str | ChannelSoftmax = "default") -> SearchNet:
    """The search network of a row of `cases` and a row of `METHODS`; a copy of its own."""
    return copy.deepcopy(_attached(name, METHODS[method] if isinstance(method, str) else method))


def scramble(net: SearchNet, seed: int, spread: float = 2.0) -> SearchNet:
    """Give every choice random logits in place: hard choices then interleave precisions and remove units."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in choice_parameters(net):
            parameter.add_(spread * torch.randn(parameter.shape, generator=random))
    return net


def choice_parameters(net: SearchNet) -> list[nn.Parameter]:
    """What the choices of a search network train."""
    return [p for m in net.modules() if isinstance(m, AbstractChoice) for p in m.parameters(recurse=False)]
