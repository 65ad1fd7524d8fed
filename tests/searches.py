"""Methods and search networks that several tests share. A new method is one row in `METHODS`."""

import copy
from functools import cache

import torch
from torch import nn

from cases import case, randomised
from zerobit.search.attach import attach
from zerobit.search.choice import AbstractChoice
from zerobit.search.gates.bottleneck import BottleneckGate
from zerobit.search.method import AbstractMethod
from zerobit.search.methods.bsq import Bsq
from zerobit.search.methods.djpq import Djpq
from zerobit.search.methods.fixed import Fixed
from zerobit.search.methods.fracbits import FracBits
from zerobit.search.methods.sequential import PruneThenQuantize
from zerobit.search.methods.softmax import ChannelSoftmax
from zerobit.search.net import SearchNet
from zerobit.search.widths.planes import Planes

METHODS: dict[str, AbstractMethod] = {
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
    "fixed_4": Fixed(bits=4),
    "sequential": PruneThenQuantize(),
    "djpq": Djpq(),
    "djpq_channel": Djpq(granularity="channel", restrict="none", activation_bits=(8,)),
    "djpq_power_of_two": Djpq(restrict="power_of_two"),
    "fracbits": FracBits(),
    "fracbits_layer": FracBits(granularity="layer"),
    "fracbits_activations": FracBits(weight_bits=(0, 2, 4, 8), activation_bits=(4, 6, 8), start_bits=4),
    "bsq": Bsq(),
    "bsq_channel": Bsq(granularity="channel"),
}

#: Small networks that differ in what hangs together: residual, depthwise, concatenation, unfolded norm, two inputs.
QUICK = ("digits", "inverted_residual", "concat_branches", "tcn", "pre_activation", "mlp", "two_inputs", "rows")


@cache
def _attached(name: str, method: AbstractMethod) -> SearchNet:
    row = case(name)
    torch.manual_seed(0)
    return attach(randomised(row.build()), row.inputs(4), method)


def attached(name: str, method: str | AbstractMethod = "default") -> SearchNet:
    """The search network of a row of `cases` and a row of `METHODS`; a copy of its own."""
    return copy.deepcopy(_attached(name, METHODS[method] if isinstance(method, str) else method))


def scramble(net: SearchNet, seed: int, spread: float = 2.0) -> SearchNet:
    """Give every choice random logits in place: hard choices then interleave precisions and remove units."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in choice_parameters(net):
            parameter.add_(spread * torch.randn(parameter.shape, generator=random))
        scramble_planes(net, random)
        for module in net.modules():
            if isinstance(module, BottleneckGate):  # from the noise of the start to where units go
                module.noise.add_(4 + spread * torch.randn(module.mean.shape, generator=random))
    return net


@torch.no_grad()
def scramble_planes(net: SearchNet, random: torch.Generator) -> None:
    """Give bit planes random integers of random widths, and some rows none but zeros."""
    for module in net.modules():
        if isinstance(module, Planes):
            high = len(module.positive)
            live = torch.randint(1, high + 1, module.live.shape, generator=random)
            integers = torch.randint(-(2**high), 2**high, module.positive.shape[1:], generator=random)
            integers *= (torch.rand(integers.shape[0], 1, generator=random) < 0.8).long()
            module.write(integers.clamp(1 - 2 ** live[:, None], 2 ** live[:, None] - 1), live)


def choice_parameters(net: SearchNet) -> list[nn.Parameter]:
    """What the choices of a search network train."""
    return [p for m in net.modules() if isinstance(m, AbstractChoice) for p in m.parameters(recurse=False)]
