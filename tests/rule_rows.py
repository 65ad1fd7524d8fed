"""One call of every aten overload that a rule reads. A new one is a row in `ROWS`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

aten = torch.ops.aten

IMAGE, LINE, VOLUME = (4, 4, 4), (4, 8), (4, 2, 4, 2)


class Parts(nn.Module):
    """Parameters that the calls of the rows read."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {
            "scale": (4,), "shift": (4,), "slope": (4,), "six": (6,), "plane": (4, 4, 4), "table": (5, 4),
            "square": (4, 4), "wide": (64, 6), "line": (6, 4, 3), "grouped": (6, 2, 3, 3), "volume": (6, 4, 2, 2, 2),
            "depthwise": (4, 1, 3, 1), "line_back": (4, 6, 3), "grouped_back": (4, 3, 3, 3), "spread": (4, 2, 2, 2, 2),
            "twofold": (8, 1, 2, 2), "pairs": (4, 2, 2, 2), "row": (1, 6),
        }  # fmt: skip
        for name, size in sizes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(size)))
        self.register_buffer("average", torch.randn(4))
        self.register_buffer("variance", torch.rand(4) + 0.5)
        self.lstm = nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(4, 3, 2, batch_first=True)
        self.tanh = nn.RNN(4, 3, bias=False, batch_first=True)
        self.projecting = nn.LSTM(4, 3, proj_size=2, batch_first=True)
        self.qkv = nn.Linear(4, 24)
        self.relu = nn.RNN(4, 3, nonlinearity="relu", batch_first=True)


@dataclass(frozen=True)
class RuleRow:
    """A call between a convolution that makes 4 channels and a linear layer over all that it returns.

    Attributes:
        call: of the parameters and the convolution's result [B, *shape].
        shape: of one sample of that result.
        reason: why the units of the group stay; "" where they go.
        group: whose units the row is about.
    """

    call: Callable[[Any, Tensor], Tensor]
    shape: tuple[int, ...] = IMAGE
    reason: str = ""
    group: str = "conv"


def _aten(target: str) -> Callable[..., Tensor]:
    _, name, overload = target.split(".")
    return getattr(getattr(aten, name), overload)


def _unary(target: str, *constants: float) -> RuleRow:
    return RuleRow(lambda m, x: _aten(target)(x, *constants).to(x.dtype))


def _positive(target: str, reason: str = "") -> RuleRow:
    return RuleRow(lambda m, x: _aten(target)(x.abs() + 0.5), reason=reason)


def _binary(target: str, reason: str = "") -> RuleRow:
    return RuleRow(lambda m, x: _aten(target)(x, torch.cos(x)).to(x.dtype), reason=reason)


def _condition(target: str) -> RuleRow:
    return RuleRow(lambda m, x: _aten(target)(x > 0, x < 0.5).to(x.dtype))


def _resize(target: str) -> RuleRow:
    """Both overloads of an interpolation, with the arguments that its schema wants."""
    rank = next(int(c) for c in target if c.isdigit())
    size = [3, 6, 4][:rank]
    mode = () if "nearest" in target else (False,)
    scales = (None,) if target.endswith("vec") else (None,) * rank
    return RuleRow(lambda m, x: _aten(target)(x, size, *mode, *scales), {1: LINE, 2: IMAGE, 3: VOLUME}[rank])


def _pad(target: str) -> RuleRow:
    rank = next(int(c) for c in target if c.isdigit())
    return RuleRow(lambda m, x: _aten(target)(x, [1, 0] * rank), {1: LINE, 2: IMAGE, 3: VOLUME}[rank])


def _pool(rank: int, call: Callable[[Tensor], Tensor]) -> RuleRow:
    return RuleRow(lambda m, x: call(x), {1: LINE, 2: IMAGE, 3: VOLUME}[rank])


def _copy(target: str, *arguments: Any, **named: Any) -> RuleRow:
    return RuleRow(lambda m, x: _aten(target)(x, *arguments, **named))


def _made(call: Callable[[Any, Tensor], Tensor]) -> RuleRow:
    """A tensor that is made in the code, shaped by the batch so that it is not computed at capture, times the data."""
    return RuleRow(lambda m, x: x * call(x.shape[0], x))


LAYERS = {
    "aten.conv1d.default": RuleRow(lambda m, x: F.conv1d(x, m.line, m.six), LINE),
    "aten.conv2d.default": RuleRow(lambda m, x: F.conv2d(x, m.grouped, m.six, padding=1, groups=2)),
    "aten.conv3d.default": RuleRow(lambda m, x: F.conv3d(x, m.volume, m.six, stride=2), VOLUME),
    "aten.conv1d.padding": RuleRow(lambda m, x: F.conv1d(x, m.line, padding="same", dilation=2), LINE),
    "aten.conv2d.padding": RuleRow(lambda m, x: F.conv2d(x, m.depthwise, padding="same", groups=4)),
    "aten.conv3d.padding": RuleRow(lambda m, x: F.conv3d(x, m.volume, padding="valid"), VOLUME),
    "aten.conv_transpose1d.default": RuleRow(lambda m, x: F.conv_transpose1d(x, m.line_back, m.six, stride=2), LINE),
    "aten.conv_transpose2d.input": RuleRow(lambda m, x: F.conv_transpose2d(x, m.grouped_back, m.six, groups=2)),
    "aten.conv_transpose3d.input": RuleRow(lambda m, x: F.conv_transpose3d(x, m.spread, groups=4), VOLUME),
    "aten.linear.default": RuleRow(lambda m, x: F.linear(x.movedim(1, -1), m.square, m.shift)),
    "aten.addmm.default": RuleRow(lambda m, x: aten.addmm.default(m.six, x.flatten(1), m.wide)),
    "aten.mm.default": RuleRow(lambda m, x: aten.mm.default(x.flatten(1), m.wide)),
    "aten.embedding.default": RuleRow(lambda m, x: F.embedding((x > 0).to(torch.int64), m.table), group="call.table"),
    "aten.matmul.default": RuleRow(lambda m, x: torch.matmul(x, x.transpose(2, 3).exp())),
    "aten.bmm.default": RuleRow(lambda m, x: torch.bmm(x.transpose(1, 2), x.exp()), LINE),
    "aten.einsum.default": RuleRow(lambda m, x: torch.einsum("bcij,dj,bcik->bdc", x, m.square, x)),
    "aten.scaled_dot_product_attention.default": RuleRow(lambda m, x: F.scaled_dot_product_attention(x, x, x)),
    "aten.batch_norm.default": RuleRow(lambda m, x: F.batch_norm(x.relu(), m.average, m.variance, m.scale, m.shift)),
    "aten.instance_norm.default": RuleRow(lambda m, x: F.instance_norm(x, weight=m.scale, bias=m.shift)),
    "aten.group_norm.default": RuleRow(lambda m, x: F.group_norm(x, 2, m.scale, m.shift)),
    "aten.layer_norm.default": RuleRow(lambda m, x: F.layer_norm(x.movedim(1, -1), (4,), m.scale, m.shift)),
    "aten.rms_norm.default": RuleRow(lambda m, x: F.rms_norm(x.movedim(1, -1), (4,), m.scale)),
    "aten.prelu.default": RuleRow(lambda m, x: F.prelu(x, m.slope)),
    "aten.lstm.input": RuleRow(lambda m, x: m.lstm(x.transpose(1, 2))[0], LINE),
    "aten.gru.input": RuleRow(lambda m, x: torch.cat([m.gru(x.transpose(1, 2))[1][i] for i in (0, 1)], 1), LINE),
    "aten.rnn_tanh.input": RuleRow(lambda m, x: m.tanh(x.transpose(1, 2))[0], LINE),
    "aten.rnn_relu.input": RuleRow(lambda m, x: m.relu(x.transpose(1, 2))[0], LINE, group="call.relu"),
}

_FUNCTIONS = (
    "gelu", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "leaky_relu", "elu", "selu", "celu", "mish",
    "softplus", "hardshrink", "softshrink", "log_sigmoid", "exp", "expm1", "square", "neg", "abs", "sign",
    "sin", "cos", "erf", "floor", "ceil", "round", "trunc", "nan_to_num", "logical_not", "isnan", "isinf",
    "relu", "relu6",
)  # fmt: skip
UNARY = {
    **{f"aten.{name}.default": _unary(f"aten.{name}.default") for name in _FUNCTIONS},
    **{f"aten.{name}.default": _positive(f"aten.{name}.default") for name in ("log1p", "sqrt")},
    **{
        f"aten.{name}.default": _positive(f"aten.{name}.default", f"has no value at zero in `{name}`")
        for name in ("log", "rsqrt", "reciprocal")
    },
    "aten.hardtanh.default": _unary("aten.hardtanh.default", 0.0, 3.0),
    "aten.clamp.default": _unary("aten.clamp.default", 0.0),
    "aten.clamp_min.default": _unary("aten.clamp_min.default", 0.5),
    "aten.clamp_max.default": _unary("aten.clamp_max.default", 0.5),
    "aten.threshold.default": _unary("aten.threshold.default", -0.5, 1.0),
    "aten.pow.Tensor_Scalar": _unary("aten.pow.Tensor_Scalar", 3),
    **{f"aten.{name}.Scalar": _unary(f"aten.{name}.Scalar", 0.5) for name in ("rsub", "add", "sub", "mul", "div")},
    **{f"aten.{name}.Scalar": _unary(f"aten.{name}.Scalar", 0.5) for name in ("eq", "ne", "ge", "gt", "le", "lt")},
}

_SUMS = ("add", "sub", "mul", "rsub")
_COMPARISONS = ("eq", "ne", "ge", "gt", "le", "lt")
BINARY = {
    **{f"aten.{name}.Tensor": _binary(f"aten.{name}.Tensor") for name in (*_SUMS, *_COMPARISONS)},
    **{f"aten.{name}.default": _binary(f"aten.{name}.default") for name in ("maximum", "minimum", "atan2")},
    "aten.div.Tensor": _binary("aten.div.Tensor", "divides in `div`"),
    "aten.remainder.Tensor": _binary("aten.remainder.Tensor", "divides in `remainder`"),
    "aten.floor_divide.default": _binary("aten.floor_divide.default", "divides in `floor_divide`"),
    "aten.pow.Tensor_Tensor": RuleRow(
        lambda m, x: torch.pow(x.abs() + 0.5, x), reason="raised to a power that may be negative in `pow_1`"
    ),
    **{f"aten.logical_{name}.default": _condition(f"aten.logical_{name}.default") for name in ("and", "or")},
    **{f"aten.bitwise_{name}.Tensor": _condition(f"aten.bitwise_{name}.Tensor") for name in ("and", "or")},
    "aten.where.self": RuleRow(lambda m, x: torch.where(x > 0.5, x, x.exp())),
    "aten.where.ScalarOther": RuleRow(lambda m, x: torch.where(x > 0.5, x, 2.0)),
    "aten.where.ScalarSelf": RuleRow(lambda m, x: torch.where(x > 0.5, 2.0, x)),
    "aten.masked_fill.Scalar": RuleRow(lambda m, x: x.masked_fill(x < 0, 2.0)),
    "aten.glu.default": RuleRow(lambda m, x: F.glu(x, 1)),
}

CONSTANTS = {
    "aten.zeros.default": RuleRow(lambda m, x: x + torch.zeros(x.shape[0], 4, 1, 1).to(x.dtype)),
    "aten.ones.default": _made(lambda b, x: torch.ones(b, 4, 1, 1).to(x.dtype)),
    "aten.full.default": _made(lambda b, x: torch.full((b, 4, 4, 1), 2.0).to(x.dtype)),
    "aten.new_zeros.default": RuleRow(lambda m, x: x.exp() * x.new_zeros(x.shape[0], 4, 1, 1) + x),
    "aten.new_ones.default": RuleRow(lambda m, x: x + x.new_ones(x.shape[0], 4, 4, 1)),
    "aten.new_full.default": _made(lambda b, x: x.new_full((b, 4, 1, 1), 3.0)),
    "aten.zeros_like.default": RuleRow(lambda m, x: torch.maximum(x, torch.zeros_like(x))),
    "aten.ones_like.default": RuleRow(lambda m, x: x - torch.ones_like(x)),
    "aten.full_like.default": RuleRow(lambda m, x: torch.minimum(x, torch.full_like(x, 0.25))),
    "aten.arange.default": _made(lambda b, x: torch.arange(b)[:, None, None, None]),
    "aten.arange.start": _made(lambda b, x: torch.arange(1, b + 1)[:, None, None, None]),
    "aten.arange.start_step": _made(lambda b, x: torch.arange(0, 2 * b, 2)[:, None, None, None]),
    "aten.scalar_tensor.default": _made(lambda b, x: aten.scalar_tensor.default(b)),
    "aten.eye.default": RuleRow(lambda m, x: torch.matmul(aten.eye.default(x.shape[0]).to(x.dtype), x.flatten(1))),
    "aten.linspace.default": _made(lambda b, x: aten.linspace.default(0, b, 4).to(x.dtype)),
}

MOVEMENT = {
    "aten.clone.default": _copy("aten.clone.default"),
    "aten.contiguous.default": _copy("aten.contiguous.default"),
    "aten.alias.default": _copy("aten.alias.default"),
    "aten.detach.default": _copy("aten.detach.default"),
    "aten.lift_fresh_copy.default": _copy("aten.lift_fresh_copy.default"),
    "aten.to.dtype": RuleRow(lambda m, x: aten.to.dtype(x, torch.float32).double()),
    "aten.to.dtype_layout": _copy("aten.to.dtype_layout", dtype=torch.float64, layout=torch.strided),
    "aten.to.device": _copy("aten.to.device", torch.device("cpu"), torch.float64),
    "aten.to.other": RuleRow(lambda m, x: aten.to.other(x > 0, x)),
    "aten.type_as.default": RuleRow(lambda m, x: (x > 0).type_as(x)),
    "aten._to_copy.default": _copy("aten._to_copy.default", dtype=torch.float64),
    "aten.permute.default": RuleRow(lambda m, x: x.permute(0, 2, 3, 1)),
    "aten.transpose.int": RuleRow(lambda m, x: x.transpose(1, -1)),
    "aten.swapaxes.default": RuleRow(lambda m, x: aten.swapaxes.default(x, 1, 2)),
    "aten.movedim.int": RuleRow(lambda m, x: x.movedim(1, -1)),
    "aten.t.default": RuleRow(lambda m, x: aten.t.default(aten.t.default(x.flatten(1)))),
    "aten.numpy_T.default": RuleRow(lambda m, x: aten.numpy_T.default(aten.numpy_T.default(x))),
    "aten.slice.Tensor": RuleRow(lambda m, x: x[:, 1:3]),
    "aten.select.int": RuleRow(lambda m, x: x[:, :, 2]),
    "aten.expand.default": RuleRow(lambda m, x: m.plane[:, :1, :1].expand(x.shape[0], 4, 4, 4) * x),
    "aten.expand_as.default": RuleRow(lambda m, x: x.mean((2, 3), keepdim=True).expand_as(x) + x),
    "aten.repeat_interleave.self_int": RuleRow(lambda m, x: x.repeat_interleave(2, 1)),
    "aten.repeat.default": RuleRow(lambda m, x: x.repeat(1, 2, 1, 1)),
    "aten.tile.default": RuleRow(lambda m, x: aten.tile.default(x, [2, 1, 2])),
    "aten.softmax.int": RuleRow(lambda m, x: x.softmax(-1)),
    "aten.log_softmax.int": RuleRow(lambda m, x: x.log_softmax(2)),
    "aten._softmax.default": RuleRow(lambda m, x: aten._softmax.default(x, 3, False)),
    "aten._log_softmax.default": RuleRow(lambda m, x: aten._log_softmax.default(x, 3, False)),
    "aten.roll.default": RuleRow(lambda m, x: x.roll((1, 2), (2, 3))),
    "aten.flip.default": RuleRow(lambda m, x: x.flip(2, 3)),
    "aten.cumsum.default": RuleRow(lambda m, x: x.cumsum(3)),
    "aten.cumprod.default": RuleRow(lambda m, x: x.cumprod(3)),
    "aten.index.Tensor": RuleRow(lambda m, x: x[:, :, torch.tensor([[0, 3], [1, 1]])]),
    "aten.pad.default": RuleRow(lambda m, x: F.pad(x, (1, 0, 0, 2))),
    "aten.constant_pad_nd.default": RuleRow(lambda m, x: aten.constant_pad_nd.default(x, [0, 1], 2.0)),
    **{f"aten.{mode}_pad{n}d.default": _pad(f"aten.{mode}_pad{n}d.default")
       for mode in ("reflection", "replication") for n in (1, 2, 3)},
    "aten.cat.default": RuleRow(lambda m, x: torch.cat([x, x.relu()], 1)),
    "aten.concat.default": RuleRow(lambda m, x: torch.concat([x, x.cos()], -3)),
    "aten.concatenate.default": RuleRow(lambda m, x: torch.concatenate([x, x], 2)),
    "aten.pixel_shuffle.default": RuleRow(
        lambda m, x: F.pixel_shuffle(x.repeat_interleave(4, 1), 2)
    ),
    "aten.pixel_unshuffle.default": RuleRow(lambda m, x: F.pixel_unshuffle(x, 2)),
    "aten.flatten.using_ints": RuleRow(lambda m, x: x.flatten(1, 2)),
    "aten.unflatten.int": RuleRow(lambda m, x: x.unflatten(2, (2, 2))),
    "aten.view.default": RuleRow(lambda m, x: x.view(-1, 4, 16)),
    "aten.reshape.default": RuleRow(lambda m, x: x.reshape(x.shape[0], 64)),
    "aten._unsafe_view.default": RuleRow(lambda m, x: aten._unsafe_view.default(x, [x.shape[0], -1, 8])),
    "aten.view_as.default": RuleRow(lambda m, x: x.view_as(x.exp())),
    "aten.reshape_as.default": RuleRow(lambda m, x: x.flatten(2).reshape_as(x)),
    "aten.squeeze.default": RuleRow(lambda m, x: aten.squeeze.default(x.mean((2, 3), keepdim=True))),
    "aten.squeeze.dim": RuleRow(lambda m, x: x.mean((2, 3), keepdim=True).squeeze(3)),
    "aten.squeeze.dims": RuleRow(lambda m, x: x.mean((2, 3), keepdim=True).squeeze((2, 3))),
    "aten.unsqueeze.default": RuleRow(lambda m, x: x.unsqueeze(1)),
}  # fmt: skip

_INTERPOLATIONS = (
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d",
    "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
)  # fmt: skip
POOLING = {
    "aten.max_pool1d.default": _pool(1, lambda x: F.max_pool1d(x, 2)),
    "aten.max_pool2d.default": _pool(2, lambda x: F.max_pool2d(x, 3, 2, padding=1, ceil_mode=True)),
    "aten.max_pool3d.default": _pool(3, lambda x: F.max_pool3d(x, 2, dilation=(1, 2, 1), stride=1)),
    "aten.avg_pool1d.default": _pool(1, lambda x: F.avg_pool1d(x, 2)),
    "aten.avg_pool2d.default": _pool(2, lambda x: F.avg_pool2d(x, 3, 2, divisor_override=5)),
    "aten.avg_pool3d.default": _pool(3, lambda x: F.avg_pool3d(x, 2, padding=1, count_include_pad=False)),
    **{
        f"aten.adaptive_{kind}_pool{n}d.default": _pool(n, lambda x, n=n, f=f: f(n)(x))
        for kind, f in (
            ("avg", lambda n: getattr(nn, f"AdaptiveAvgPool{n}d")(2)),
            ("max", lambda n: getattr(nn, f"AdaptiveMaxPool{n}d")(2)),
        )
        for n in (1, 2, 3)
    },
    **{
        f"aten.{name}.{overload}": _resize(f"aten.{name}.{overload}")
        for name in _INTERPOLATIONS
        for overload in ("default", "vec")
    },
    "aten.mean.dim": RuleRow(lambda m, x: x.mean(-1)),
    "aten.sum.dim_IntList": RuleRow(lambda m, x: x.cos().sum(1)),
    "aten.amax.default": RuleRow(lambda m, x: x.amax((2, 3))),
    "aten.amin.default": RuleRow(lambda m, x: x.amin(1)),
    "aten.var.correction": RuleRow(lambda m, x: aten.var.correction(x, [2, 3], correction=0)),
    "aten.var.dim": RuleRow(lambda m, x: aten.var.dim(x, [2], False)),
    "aten.std.correction": RuleRow(lambda m, x: aten.std.correction(x, [1]), reason="reduced over in `std`"),
    "aten.std.dim": RuleRow(lambda m, x: aten.std.dim(x, [3])),
    "aten.logsumexp.default": RuleRow(lambda m, x: x.logsumexp(3)),
    "aten.linalg_vector_norm.default": RuleRow(lambda m, x: torch.linalg.vector_norm(x, dim=1)),
    "aten.prod.dim_int": RuleRow(lambda m, x: x.prod(2)),
    "aten.argmax.default": RuleRow(lambda m, x: x.argmax(2).to(x.dtype)),
    "aten.argmin.default": RuleRow(lambda m, x: x.argmin(3).to(x.dtype)),
    "aten.max.dim": RuleRow(lambda m, x: x.max(2).values),
    "aten.min.dim": RuleRow(lambda m, x: torch.add(*x.min(2))),
}

ROWS = {**LAYERS, **UNARY, **BINARY, **CONSTANTS, **MOVEMENT, **POOLING}

#: Calls that a cut makes of others: target -> the row whose cut makes it.
MADE_BY_CUTS = {
    "zerobit.amax.default": RuleRow(lambda m, x: x.amax((1, 2), keepdim=True) + x.amax(3, keepdim=True)),
    "zerobit.amin.default": RuleRow(lambda m, x: x.cos().amin(1)),
    "zerobit.layer_norm.default": LAYERS["aten.layer_norm.default"],
    "zerobit.rms_norm.default": LAYERS["aten.rms_norm.default"],
    "zerobit.group_norm.default": RuleRow(lambda m, x: F.group_norm(x, 1, m.scale, m.shift)),
    "zerobit.mean.default": RuleRow(lambda m, x: x.cos().mean((1, 2), keepdim=True)),
}
