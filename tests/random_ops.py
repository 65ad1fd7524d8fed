"""Functions, moves and meetings of tensors that random networks are made of, and the table of all forms."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import Forward
from random_forms import WIDTHS, Form, Size, along, divisors, function, grows, image, ints, ranked, sequence, windows
from random_layers import BLOCKS, LAYERS, NORMS


def _shuffle(x: Tensor, dim: int, groups: int) -> Tensor:
    return x.unflatten(dim, (groups, -1)).transpose(dim, dim + 1).flatten(dim, dim + 1)


def _swap_halves(x: Tensor, dim: int, _: int) -> Tensor:
    first, second = x.chunk(2, dim)
    return torch.cat([second, first], dim)


def _gated_halves(x: Tensor, dim: int, style: int) -> Tensor:
    if style == 0:
        return F.glu(x, dim)
    first, second = x.chunk(2, dim)
    return first * torch.sigmoid(second) if style == 1 else first * second


def _cross(x: Tensor, y: Tensor) -> Tensor:
    """Similarity of positions: a product of two tensors, summed over their last dimension."""
    return x @ y.transpose(-1, -2) / x.shape[-1]


def _einsum(x: Tensor, y: Tensor) -> Tensor:
    return torch.einsum("nac,nbc->nba", x, torch.tanh(y))


def _broadcast(x: Tensor, y: Tensor, style: int) -> Tensor:
    return (x + y, x * y, x - y, y - x, torch.maximum(x, y), x / (1 + y.abs()), torch.where(x > y, x, 0 * y))[style]


def _meet(sizes: Sequence[Size]) -> bool:
    """Whether the second operand broadcasts to the first."""
    first, second = sizes
    return len(first) == len(second) and all(b in (a, 1) for a, b in zip(first, second, strict=True))


def _cat_dims(sizes: Sequence[Size]) -> list[int]:
    first, second = sizes
    if len(first) != len(second):
        return []
    unequal = [d for d, (a, b) in enumerate(zip(first, second, strict=True), 1) if a != b]
    return unequal if len(unequal) == 1 else [] if unequal else list(range(1, len(first) + 1))


def _small(limit: int) -> Callable[[int], list[int]]:
    return lambda size: list(range(min(size, limit)))


#: Functions of single values that keep zero. None jumps, so that rounding stays small.
FUNCTIONS: dict[str, Form] = {
    "relu": function(F.relu, exact=True),
    "relu_in_place": function(lambda x: F.relu(x.clone(), inplace=True), exact=True),
    "relu6": function(F.relu6, exact=True),
    "clamp": function(lambda x: x.clamp(0, 4), exact=True),
    "clamp_around": function(lambda x: x.clamp(-1, 2), exact=True),
    "negate": function(lambda x: -x, exact=True),
    "abs": function(torch.abs, exact=True),
    "leaky": function(lambda x: F.leaky_relu(x, 0.25), exact=True),
    "dropout": function(lambda x: F.dropout(x, 0.5, training=False), exact=True),
    "half": function(lambda x: x / 2, exact=True),
    "gelu": function(F.gelu),
    "silu": function(F.silu),
    "hardswish": function(F.hardswish),
    "tanh": function(torch.tanh),
    "elu": function(F.elu),
    "sine": function(torch.sin),
    "square": function(lambda x: torch.tanh(x) ** 2),
}

#: Functions of single values that map zero elsewhere.
AWAY: dict[str, Form] = {
    "sigmoid": function(torch.sigmoid),
    "hardsigmoid": function(F.hardsigmoid),
    "softplus": function(F.softplus),
    "cosine": function(torch.cos),
    "decay": function(lambda x: torch.exp(-x.abs())),
    "inverse": function(lambda x: 1 / (1 + x * x)),
    "plus_one": function(lambda x: x + 1, exact=True),
    "one_minus": function(lambda x: 1 - x, exact=True),
    "clamp_away": function(lambda x: x.clamp(1, 3), exact=True),
}

SPACE: dict[str, Form] = {
    "max_pool": function(lambda x: F.max_pool2d(x, 2, 1, padding=1), grows, exact=True),
    "max_pool_ceil": function(lambda x: F.max_pool2d(x, 3, 2, padding=1, ceil_mode=True), windows, exact=True),
    "avg_pool": function(lambda x: F.avg_pool2d(x, 2, 1, padding=1), grows, exact=True),
    "avg_pool_inside": function(lambda x: F.avg_pool2d(x, 2, 2, 1, ceil_mode=True, count_include_pad=False), windows),
    "adaptive_avg_pool": function(F.adaptive_avg_pool2d, image, (1, 2, 3)),
    "adaptive_max_pool": function(F.adaptive_max_pool2d, image, (1, 2, 3), exact=True),
    "nearest": function(lambda x: F.interpolate(x, scale_factor=2.0), windows, exact=True),
    "bilinear": function(lambda x: F.interpolate(x, (3, 4), mode="bilinear"), image),
    "pad": function(lambda x: F.pad(x, (0, 1, 1, 0)), grows, exact=True),
    "pad_value": function(lambda x: F.pad(x, (1, 0), value=1.5), grows, exact=True),
    "pad_mirrored": function(lambda x: F.pad(x, (1, 0, 0, 1), mode="reflect"), windows, exact=True),
    "crop": function(lambda x: F.pad(x, (-1, 0)), windows, exact=True),
    "pad_channels": function(lambda x, v: F.pad(x, (0, 0, 0, 0, 1, 2), value=v), image, (0, 1), exact=True),
    "pixel_shuffle": function(
        lambda x: F.pixel_shuffle(x, 2), lambda s: len(s[0]) == 3 and s[0][0] % 4 == 0, exact=True
    ),
    "pixel_unshuffle": function(
        lambda x: F.pixel_unshuffle(x, 2),
        lambda s: len(s[0]) == 3 and s[0][1] % 2 == 0 and s[0][2] % 2 == 0,
        exact=True,
    ),
    "softmax_over_space": function(lambda x: x.flatten(2).softmax(-1).view_as(x), image),
}

BARRIERS: dict[str, Form] = {
    "spectrum": function(lambda x: torch.fft.fft(x).real),
    "recurrent": Form(
        lambda s, n: Forward(lambda m, x: m.layer(x)[0], layer=nn.LSTM(s[0][1], n[0], batch_first=True)),
        lambda s: ints(WIDTHS) if sequence(s) else None,
    ),
    "sorted": function(lambda x: torch.sort(x, -1)[0], exact=True),
}

#: Ops that move values along any dimension, channels or not.
MOVES: dict[str, Form] = {
    "narrow": along(lambda x, d, n: x.narrow(d, n, x.shape[d] - n), lambda n: [1, n - 1], exact=True),
    "head_of": along(lambda x, d, n: x.narrow(d, 0, n), lambda n: [1, n - 1], exact=True),
    "every_second": along(lambda x, d, n: x[(slice(None),) * d + (slice(n, None, 2),)], lambda n: [0, 1], exact=True),
    "select": along(lambda x, d, n: x.select(d, n), lambda n: [0, n - 1], exact=True),
    "swap_halves": along(_swap_halves, exact=True),
    "glue": along(lambda x, d, n: torch.cat([x, x.narrow(d, n, 1)], d), _small(3), exact=True),
    "ones_joined": along(lambda x, d, n: torch.cat([x, torch.ones_like(x)], d), exact=True),
    "gated_halves": along(_gated_halves, _small(3), even=True),
    "shuffle": along(_shuffle, lambda n: divisors(n, 2), exact=True),
    "split": along(lambda x, d, n: x.unflatten(d, (n, -1)), lambda n: divisors(n, 2)[:-1], exact=True),
    "unbound": along(lambda x, d, n: torch.stack(x.unbind(d)[::-1], d), exact=True),
    "picked": along(lambda x, d, n: x.index_select(d, torch.tensor([n, 0, n])), _small(3), exact=True),
    "flip": along(lambda x, d, n: x.flip(d), exact=True),
    "roll": along(lambda x, d, n: x.roll(1, d), exact=True),
    "repeated": along(lambda x, d, n: x.repeat_interleave(2, d), exact=True),
    "tiled": along(lambda x, d, n: x.repeat(*(2 if i == d else 1 for i in range(x.dim()))), exact=True),
    "expanded": function(lambda x: x.unsqueeze(1).expand(-1, 3, *x.shape[1:]).flatten(1, 2), exact=True),
    "mean": along(lambda x, d, n: x.mean(d, keepdim=bool(n)), lambda n: [0, 1]),
    "sum": along(lambda x, d, n: x.sum(d, keepdim=bool(n)), lambda n: [0, 1], exact=True),
    "largest": along(lambda x, d, n: x.amax(d, keepdim=bool(n)), lambda n: [0, 1], exact=True),
    "variance": along(lambda x, d, n: x.var(d, keepdim=True)),
    "centred": along(lambda x, d, n: x - x.mean(d, keepdim=True)),
    "scaled": along(lambda x, d, n: x * (x.square().sum(d, keepdim=True) + 1).rsqrt()),
    "softmax": along(lambda x, d, n: x.softmax(d)),
    "cumulative": along(lambda x, d, n: x.cumsum(d), exact=True),
    "merge": function(lambda x, d: x.flatten(d, d + 1), lambda s: len(s[0]) > 1, (1,), exact=True),
    "merge_last": function(lambda x: x.flatten(-2), lambda s: len(s[0]) > 1, exact=True),
    "swap": function(lambda x, a, b: x.transpose(a, b), lambda s: len(s[0]) > 1, (1, 2), (2, -1), exact=True),
    "to_sequence": function(lambda x: x.flatten(2).transpose(1, 2), image, exact=True),
    "to_image": function(
        lambda x: x.transpose(1, 2).unflatten(2, (2, -1)), lambda s: sequence(s) and s[0][0] % 2 == 0, exact=True
    ),
    "from_vector": function(lambda x: x.unsqueeze(1), ranked(1), exact=True),
    "drop_ones": function(lambda x: x.squeeze(-1), lambda s: len(s[0]) > 1 and s[0][-1] == 1, exact=True),
}

PAIRS: dict[str, Form] = {
    "add": function(lambda x, y: x + y, lambda s: s[0] == s[1], reads=2, exact=True),
    "meet": function(_broadcast, _meet, range(7), reads=2),
    "cross": function(_cross, lambda s: len(s[0]) > 1 and s[0][:-2] == s[1][:-2] and s[0][-1] == s[1][-1], reads=2),
    "einsum": function(_einsum, lambda s: len(s[0]) == len(s[1]) == 2 and s[0][1] == s[1][1], reads=2),
    "concat": Form(
        lambda s, n: Forward(lambda m, x, y: torch.cat([x, y], n[0])),
        lambda s: ints(_cat_dims(s)) if _cat_dims(s) else None,
        2,
        exact=True,
    ),
}

#: By family.
FAMILIES: dict[str, dict[str, Form]] = {
    "layer": LAYERS,
    "norm": NORMS,
    "block": BLOCKS,
    "function": FUNCTIONS,
    "away": AWAY,
    "space": SPACE,
    "move": MOVES,
    "pair": PAIRS,
    "barrier": BARRIERS,
}
FORMS: dict[str, Form] = {name: form for family in FAMILIES.values() for name, form in family.items()}
