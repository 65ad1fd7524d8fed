"""Networks with ops that have no integer form, and with every way in which they meet ops that have one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Fused query, key and value; heads through a permutation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, t, c))


class VisionTransformer(nn.Module):
    """One block, with a class token and positions that are parameters of the root."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 5, 8) / 10)
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(8), Attention(8, 2), nn.LayerNorm(8)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        x = x + self.attention(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x[:, 0])


class Tokens(nn.Module):
    """Integers as input: an embedding, attention in one call, and positions that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, 8), nn.Embedding(7, 8)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        heads = [layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v)]
        x = x + self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return self.head(x.mean(1))


class Excite(nn.Module):
    """Squeeze and excite with hard activations, and a residual product: integers from end to end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.depthwise, self.fc = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.stem(x)))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        x = F.leaky_relu(x * gate - x, 0.1)
        return self.fc(F.silu(self.depthwise(x)).mean((2, 3)))


class Recurrent(nn.Module):
    """Two layers of an LSTM in both directions, the batch first or second."""

    def __init__(self, *, batch_first: bool, kind: type[nn.Module] = nn.LSTM) -> None:
        super().__init__()
        self.fc, self.out, self.batch_first = nn.Linear(6, 8), nn.Linear(10, 3), batch_first
        self.rnn = kind(8, 5, num_layers=2, batch_first=batch_first, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc(x))
        y, _ = self.rnn(x if self.batch_first else x.transpose(0, 1))
        return self.out(y[:, -1] if self.batch_first else y[-1])


class UNet(nn.Module):
    """Down and up by transposed convolution, bilinear and nearest interpolation, and pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.bottom = (
            nn.Conv2d(3, 6, 3, padding=1),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.Conv2d(8, 8, 1),
        )
        self.up1, self.up2 = nn.ConvTranspose2d(8, 8, 2, 2), nn.Upsample(scale_factor=2, mode="bilinear")
        self.join1, self.join2 = nn.Conv2d(16, 6, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.last = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.one(x))
        b = F.relu(self.two(F.max_pool2d(a, 2)))
        y = self.join1(torch.cat([self.up1(F.relu(self.bottom(F.max_pool2d(b, 2)))), b], 1))
        y = F.pixel_shuffle(self.join2(torch.cat([self.up2(y), a], 1)), 2)
        return self.last(F.interpolate(y, scale_factor=2))


class Transposed(nn.Module):
    """Transposed convolutions with every setting, grouped and in one dimension too."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1)
        self.two = nn.ConvTranspose1d(6, 8, 4, stride=3, padding=2, groups=2, dilation=2, bias=False)
        self.three, self.four = nn.ConvTranspose1d(8, 8, 3, groups=8), nn.ConvTranspose1d(8, 2, 2, padding=1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.four(F.relu(self.three(self.two(F.relu(self.one(x))))))


class Dense(nn.Module):
    """Concatenation and BatchNorm before each convolution, which can't be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(12, 3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in (4, 8, 12))
        self.convs = nn.ModuleList(nn.Conv2d(width, 4, 3, padding=1) for width in (4, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.norms[2](x)), 1).flatten(1))


class Perceptron(nn.Module):
    """Functions of one value, of one channel, and of a result that nothing on integers reads."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.gain, self.slope = nn.Parameter(torch.randn(12)), nn.PReLU(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(F.gelu(self.one(x)) * self.gain)
        return F.log_softmax(self.three(torch.tanh(self.two(x) - 0.5 * x)), -1)


class Windows(nn.Module):
    """Attention in windows: for a while the first dimension is larger than the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attention, self.out = nn.Conv2d(3, 8, 2, 2), Attention(8, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        y = torch.roll(x, (-1, -1), (1, 2)).view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5)
        y = self.attention(y.reshape(-1, 4, c)).view(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5)
        return self.out((x + y.reshape(n, h, w, c)).mean((1, 2)))


class Volume(nn.Module):
    """Convolution over three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 4, 3, padding=1, stride=2)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.max_pool3d(F.relu(self.two(F.relu(self.one(x)))), 2).mean((2, 3, 4)))


class Assorted(nn.Module):
    """An input without a batch, one of booleans, results of other types, an input that is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.grouped, self.fc = nn.Conv1d(3, 6, 3), nn.Conv1d(6, 6, 3, groups=2), nn.Linear(6, 4)
        self.group_norm, self.instance_norm = nn.GroupNorm(2, 6), nn.InstanceNorm1d(6, affine=True)

    def forward(self, x: Tensor, scale: Tensor, mask: Tensor) -> dict[str, Tensor]:
        y = self.grouped(self.instance_norm(self.group_norm(self.conv(x))))
        y = F.glu(torch.cat([y, y], 1), 1) * scale
        y = torch.where(mask[:, None], y, torch.zeros_like(y)).cumsum(-1)
        scores = self.fc(y.amax(-1))
        return {"scores": scores, "best": scores.argmax(-1), "pooled": F.max_pool1d(y, 3, 2, ceil_mode=True), "x": x}


class Branch(nn.Module):
    """Control flow on tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return self.out(torch.cond(y.sum() > 0, lambda y: y + 1, lambda y: y - 1, (y,)))


class Tail(nn.Module):
    """A layer whose accumulators only an op in float reads, and its result only the caller."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 3, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.relu(self.conv(x)), F.relu(self.fc(x)).flatten(1)


@dataclass(frozen=True)
class MixedCase:
    """One network.

    Attributes:
        name: of the row.
        build: makes a fresh network.
        inputs: makes inputs of a batch size.
        islands: how many islands it has.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Any, ...]]
    islands: int


def _floats(*shape: int) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda batch: (torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch)),)


def _assorted(batch: int) -> tuple[Tensor, ...]:
    return (*_floats(3, 9)(batch), torch.linspace(-1, 1, 5)[None], torch.arange(5 * batch).reshape(batch, 5) > 3)


MIXED: tuple[MixedCase, ...] = (
    MixedCase("vision_transformer", VisionTransformer, _floats(3, 8, 8), 4),
    MixedCase("tokens", Tokens, lambda n: (torch.arange(7 * n).reshape(n, 7) % 11,), 3),
    MixedCase("excite", Excite, _floats(3, 8, 8), 0),
    MixedCase("lstm", lambda: Recurrent(batch_first=True), _floats(5, 6), 1),
    MixedCase("lstm_batch_second", lambda: Recurrent(batch_first=False), _floats(5, 6), 1),
    MixedCase("gru", lambda: Recurrent(batch_first=True, kind=nn.GRU), _floats(5, 6), 1),
    MixedCase("u_net", UNet, _floats(3, 8, 8), 1),
    MixedCase("transposed", Transposed, _floats(4, 5), 0),
    MixedCase("dense", Dense, _floats(3, 8, 8), 0),
    MixedCase("perceptron", Perceptron, _floats(6), 1),
    MixedCase("windows", Windows, _floats(3, 8, 8), 3),
    MixedCase("volume", Volume, _floats(1, 6, 6, 6), 0),
    MixedCase("assorted", Assorted, _assorted, 4),
    MixedCase("branch", Branch, _floats(6), 1),
    MixedCase("tail", Tail, _floats(2, 3, 4), 2),
)
