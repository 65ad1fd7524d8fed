"""Layers, norms and blocks that random networks are made of."""

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from cases import Forward
from random_forms import WIDTHS, Form, Settings, Size, divisors, image, ints, sequence


def _conv(sizes: Sequence[Size], settings: Settings) -> nn.Module:
    outputs, kernel, groups, bias = settings
    return nn.Conv2d(sizes[0][0], outputs, kernel, padding=kernel // 2, groups=groups, bias=bool(bias))


def _conv_transpose(sizes: Sequence[Size], settings: Settings) -> nn.Module:
    outputs, kernel, groups, bias = settings
    return nn.ConvTranspose2d(sizes[0][0], outputs, kernel, padding=kernel // 2, groups=groups, bias=bool(bias))


def _grouped(sizes: Sequence[Size]) -> st.SearchStrategy[Settings] | None:
    """Output channels, kernel, groups, bias; half of the layers are dense."""
    if len(sizes[0]) != 3:
        return None
    groups = st.sampled_from([1, 1, 1, *divisors(sizes[0][0], 2), sizes[0][0]])
    return groups.flatmap(
        lambda g: st.tuples(
            st.sampled_from([n * g for n in WIDTHS if n * g <= 8] or [g]),
            st.sampled_from([1, 3]),
            st.just(g),
            st.sampled_from([1, 0]),
        )
    )


def _conv1d(sizes: Sequence[Size], settings: Settings) -> nn.Module:
    return nn.Conv1d(sizes[0][0], settings[0], 3, padding=1)


def _linear(sizes: Sequence[Size], settings: Settings) -> nn.Module:
    return nn.Linear(sizes[0][-1], settings[0], bias=bool(settings[1]))


class Value(nn.Module):
    """A parameter that meets a tensor: added, multiplied, subtracted from, or each in turn for a number."""

    def __init__(self, shape: Size, kind: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(shape))
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        v = self.value
        return (x + v, x * v, v - x, v * x, torch.maximum(x, v))[self.kind]


def _value_shapes(size: Size) -> list[Size]:
    """Along the first dimension, the last, all, all but the first; and a single value."""
    rank = len(size)
    return [(size[0], *(1,) * (rank - 1)), size[-1:], size, (1, *size[1:]), (1,), (1, *size)]


# Blocks of several ops.


def _gate(sizes: Sequence[Size], settings: Settings) -> nn.Module:
    """Squeeze and excite: channels scaled by what their means say."""
    hidden, style = settings
    function = (torch.sigmoid, F.hardsigmoid, torch.tanh, F.softplus)[style % 4]

    def forward(m: Any, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True) if style < 4 else F.adaptive_avg_pool2d(x, 1)
        return x * function(m.expand(F.relu(m.squeeze(pooled))))

    channels = sizes[0][0]
    return Forward(forward, squeeze=nn.Conv2d(channels, hidden, 1), expand=nn.Conv2d(hidden, channels, 1))


def _mixer(sizes: Sequence[Size], settings: Settings) -> nn.Module:
    """A block of ConvNeXt: channels last, normalised, two linear layers, back, added."""
    hidden, residual = settings

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.narrow(F.gelu(m.widen(m.norm(x.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
        return x + y if residual else y

    channels = sizes[0][0]
    return Forward(
        forward,
        norm=nn.LayerNorm(channels, 0.1),
        widen=nn.Linear(channels, hidden),
        narrow=nn.Linear(hidden, channels),
    )


def _fused_heads(m: Any, x: Tensor, heads: int, style: int) -> tuple[Tensor, ...]:
    """Query, key and value, [batch, heads, positions, width] each, of one layer."""
    whole, length = m.qkv(x), x.shape[1]
    if style % 3 == 0:
        return whole.reshape(-1, length, 3, heads, whole.shape[-1] // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)
    if style % 3 == 1:
        return tuple(t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in whole.chunk(3, -1))
    split = whole.view(-1, length, heads, whole.shape[-1] // heads).transpose(1, 2)
    return split.chunk(3, -1)


def _attention(sizes: Sequence[Size], settings: Settings) -> nn.Module:
    """Self-attention over positions: fused or separate layers, fused or written out."""
    heads, width, style = settings
    channels = sizes[0][1]

    def forward(m: Any, x: Tensor) -> Tensor:
        if style < 6:
            query, key, value = _fused_heads(m, x, heads, style)
        else:
            split = [layer(x).unflatten(-1, (heads, width)).transpose(1, 2) for layer in (m.query, m.key, m.value)]
            query, key, value = split
        if style % 2:
            mixed = F.scaled_dot_product_attention(query, key, value)
        else:
            mixed = (query @ key.transpose(-1, -2) * width**-0.5).softmax(-1) @ value
        return m.out(mixed.transpose(1, 2).flatten(2))

    inner = heads * width
    names = ("qkv",) if style < 6 else ("query", "key", "value")
    layers = {name: nn.Linear(channels, inner * (3 if name == "qkv" else 1)) for name in names}
    return Forward(forward, out=nn.Linear(inner, channels), **layers)


def _torch_attention(sizes: Sequence[Size], settings: Settings) -> nn.Module:
    channels, heads = sizes[0][1], settings[0]
    layer = nn.MultiheadAttention(channels, heads, batch_first=True)
    return Forward(lambda m, x: m.layer(x, x, x, need_weights=False)[0], layer=layer)


def _token(sizes: Sequence[Size], settings: Settings) -> nn.Module:
    """A learned position in front of all others; or learned values that are added to every position."""
    length, channels = sizes[0]
    if settings[0]:
        table = nn.Embedding(length, channels)
        return Forward(lambda m, x: x + m.table(torch.arange(length, device=x.device)), table=table)
    value = Value((1, 1, channels), 0)
    return Forward(lambda m, x: torch.cat([m.own.value.expand(x.shape[0], -1, -1), x], 1), own=value)


def _normed_linear(sizes: Sequence[Size], settings: Settings) -> nn.Module:
    """Its weight is computed from a direction and a length."""
    return nn.utils.parametrizations.weight_norm(nn.Linear(sizes[0][-1], settings[0]))


def _added_product(sizes: Sequence[Size], settings: Settings) -> nn.Module:
    """A linear layer written out, its weight [inputs, outputs]."""
    values = {"weight": Value((sizes[0][0], settings[0]), 0), "shift": Value((settings[0],), 0)}
    return Forward(lambda m, x: torch.addmm(m.shift.value, x, m.weight.value), **values)


LAYERS: dict[str, Form] = {
    "conv": Form(_conv, _grouped, exact=True),
    "conv_transpose": Form(_conv_transpose, _grouped, exact=True),
    "conv1d": Form(_conv1d, lambda s: ints(WIDTHS) if sequence(s) else None, exact=True),
    "linear": Form(_linear, lambda s: ints(WIDTHS, (1, 0)), exact=True),
    "normed_linear": Form(_normed_linear, lambda s: ints(WIDTHS)),
    "added_product": Form(_added_product, lambda s: ints(WIDTHS) if len(s[0]) == 1 else None, exact=True),
}

NORMS: dict[str, Form] = {
    "batch_norm": Form(lambda s, _: nn.BatchNorm2d(s[0][0]), lambda s: ints() if image(s) else None, exact=True),
    "batch_norm1d": Form(lambda s, _: nn.BatchNorm1d(s[0][0]), lambda s: ints() if sequence(s) else None, exact=True),
    "group_norm": Form(
        lambda s, n: nn.GroupNorm(n[0], s[0][0], 0.1), lambda s: ints(divisors(s[0][0])) if len(s[0]) > 1 else None
    ),
    "instance_norm": Form(
        lambda s, n: nn.InstanceNorm2d(s[0][0], 0.1, affine=bool(n[0])),
        lambda s: ints((0, 1)) if image(s) and s[0][1] * s[0][2] > 1 else None,
    ),
    "layer_norm": Form(lambda s, n: nn.LayerNorm(s[0][-n[0] :], 0.1), lambda s: ints((1, len(s[0])))),
    "rms_norm": Form(lambda s, n: nn.RMSNorm(s[0][-n[0] :], 0.1), lambda s: ints((1, len(s[0])))),
    "prelu": Form(
        lambda s, n: nn.PReLU(s[0][0] if n[0] else 1), lambda s: ints((0, 1)) if len(s[0]) > 1 else None, exact=True
    ),
    "value": Form(lambda s, n: Value(_value_shapes(s[0])[n[0]], n[1]), lambda s: ints(range(6), range(5)), exact=True),
}

BLOCKS: dict[str, Form] = {
    "gate": Form(_gate, lambda s: ints(range(1, 5), range(8)) if image(s) else None),
    "mixer": Form(_mixer, lambda s: ints(WIDTHS, (0, 1)) if image(s) else None),
    "attention": Form(_attention, lambda s: ints((1, 2, 3), (1, 2, 3), range(8)) if sequence(s) else None),
    "torch_attention": Form(_torch_attention, lambda s: ints(divisors(s[0][1])) if sequence(s) else None),
    "token": Form(_token, lambda s: ints((0, 1)) if sequence(s) else None),
}
