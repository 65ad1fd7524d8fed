"""Small networks of attention, in every way that attention is commonly written, and without any: MLP-Mixer."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import Forward
from matrix.row import MatrixRow, Tokens

WIDTH, HEADS = 24, 3


def _heads(x: Tensor, heads: int = HEADS) -> Tensor:
    """[B, N, heads * D] to [B, heads, N, D]."""
    batch, length, width = x.shape
    return x.view(batch, length, heads, width // heads).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    """[B, heads, N, D] to [B, N, heads * D]."""
    return x.transpose(1, 2).flatten(2)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention written out."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    return torch.softmax(scores if bias is None else scores + bias, -1) @ v


class FusedUnbind(nn.Module):
    """One layer makes q, k and v; they are put apart by reshape, permute and unbind."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        attention = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(batch, length, WIDTH))


class FusedChunk(nn.Module):
    """One layer makes q, k and v; they are put apart by chunk, and attention is torch's own function."""

    def __init__(self, is_causal: bool = False) -> None:
        super().__init__()
        self.qkv, self.proj, self.is_causal = (
            nn.Linear(WIDTH, 3 * WIDTH, bias=False),
            nn.Linear(WIDTH, WIDTH),
            is_causal,
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (_heads(part) for part in self.qkv(x).chunk(3, dim=-1))
        return self.proj(_joined(F.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal)))


class Separate(nn.Module):
    """A layer for each of q, k and v; what is attended to may be another sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        y = x if memory is None else memory
        return self.out(_joined(_attend(_heads(self.q(x)), _heads(self.k(y)), _heads(self.v(y)))))


class Grouped(nn.Module):
    """Four heads of q share two heads of k and v, which are repeated; positions enter by rotation."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(WIDTH, 32), nn.Linear(WIDTH, 16), nn.Linear(WIDTH, 16)
        self.out = nn.Linear(32, WIDTH, bias=False)
        angles = torch.outer(torch.arange(6.0), 0.1 ** torch.arange(0, 1, 0.25))
        self.register_buffer("cos", torch.cat([angles, angles], -1).cos())
        self.register_buffer("sin", torch.cat([angles, angles], -1).sin())

    def _rotated(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return x * self.cos + torch.cat([-x[..., half:], x[..., :half]], -1) * self.sin

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = _heads(self.q(x), 4), _heads(self.k(x), 2), _heads(self.v(x), 2)
        q, k = self._rotated(q), self._rotated(k)
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        return self.out(_joined(_attend(q, k, v)))


class Windowed(nn.Module):
    """Attention inside windows of 2 x 2 of a 4 x 4 image, with a table of biases for relative positions."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.table = nn.Parameter(torch.randn(9, HEADS))
        places = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        distance = places[:, :, None] - places[:, None, :] + 1
        self.register_buffer("index", distance[0] * 3 + distance[1])

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        x = x.view(batch, 2, 2, 2, 2, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, WIDTH)
        q, k, v = self.attention_qkv(x).reshape(-1, 4, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(4, 4, HEADS).permute(2, 0, 1)
        x = self.proj(_joined(_attend(q, k, v, bias.unsqueeze(0))))
        return x.view(batch, 2, 2, 2, 2, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(batch, 16, WIDTH)


class Multihead(nn.Module):
    """torch's own layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Transformer(nn.Module):
    """Patches or tokens, positions, blocks of attention and of two layers with GELU, and a mean at the end."""

    def __init__(self, attention: type[nn.Module], length: int = 16) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 2, stride=2)
        self.positions = nn.Parameter(torch.randn(1, length, WIDTH))
        self.attentions = nn.ModuleList(attention() for _ in range(2))
        self.hidden = nn.ModuleList(nn.Linear(WIDTH, 40) for _ in range(2))
        self.back = nn.ModuleList(nn.Linear(40, WIDTH) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(5))
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.positions
        for i, attention in enumerate(self.attentions):
            x = x + attention(self.norms[2 * i](x))
            x = x + self.back[i](F.gelu(self.hidden[i](self.norms[2 * i + 1](x))))
        return self.head(self.norms[4](x).mean(1))


def encoder_layer() -> nn.Module:
    """torch's own encoder on a sequence with a learned first token, which is what the head reads."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(6, WIDTH)
            self.first = nn.Parameter(torch.randn(1, 1, WIDTH))
            layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 40, batch_first=True, activation="gelu")
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(WIDTH, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([self.first.expand(x.shape[0], -1, -1), self.embed(x)], 1)
            return self.head(self.encoder(x)[:, 0])

    return Encoder()


def translator() -> nn.Module:
    """An encoder and a decoder that attends to it: two inputs of tokens."""

    def forward(m: Forward, source: Tensor, target: Tensor) -> Tensor:
        memory = m.words(source)
        memory = m.norm1(memory + m.look(memory))
        x = m.words(target)
        x = m.norm2(x + m.cross(x, memory))
        return m.head(F.relu(m.inner(x)))

    return Forward(
        forward,
        words=nn.Embedding(20, WIDTH),
        look=Separate(),
        cross=Separate(),
        norm1=nn.LayerNorm(WIDTH),
        norm2=nn.LayerNorm(WIDTH),
        inner=nn.Linear(WIDTH, 40),
        head=nn.Linear(40, 20),
    )


class Gpt(nn.Module):
    """A language model: tokens, positions, causal attention with a mask, and a head that is the embedding."""

    def __init__(self, is_tied: bool) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(30, WIDTH), nn.Embedding(8, WIDTH)
        self.attention, self.norm1, self.norm2 = Separate(), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.inner, self.back = nn.Linear(WIDTH, 48), nn.Linear(48, WIDTH)
        self.masked = FusedChunk(is_causal=True)
        self.last = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 30, bias=False)
        self.register_buffer("mask", torch.triu(torch.ones(8, 8, dtype=torch.bool), 1))
        if is_tied:
            self.head.weight = self.words.weight

    def _causal(self, x: Tensor) -> Tensor:
        layer, length = self.attention, x.shape[1]
        q, k, v = _heads(layer.q(x)), _heads(layer.k(x)), _heads(layer.v(x))
        scores = (q @ k.transpose(-2, -1)).mul(q.shape[-1] ** -0.5)
        scores = scores.masked_fill(self.mask[:length, :length], float("-inf"))
        return layer.out(_joined(scores.softmax(-1) @ v))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        x = x + self._causal(self.norm1(x))
        x = x + self.masked(self.norm2(x))
        x = x + self.back(F.gelu(self.inner(x), approximate="tanh"))
        return self.head(self.last(x))


class RmsNorm(nn.Module):
    """The root mean square is divided out, written with pow, mean and rsqrt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def llama() -> nn.Module:
    """Grouped attention with rotations, RMSNorm, and a gated layer of two weights."""

    def forward(m: Forward, tokens: Tensor) -> Tensor:
        x = m.words(tokens)
        x = x + m.attention(m.norm1(x))
        y = m.norm2(x)
        x = x + m.down(F.silu(m.gate(y)) * m.up(y))
        return m.head(m.norm3(x)[:, -1, :])

    return Forward(
        forward,
        words=nn.Embedding(30, WIDTH),
        attention=Grouped(),
        norm1=RmsNorm(WIDTH),
        norm2=RmsNorm(WIDTH),
        gate=nn.Linear(WIDTH, 40, bias=False),
        up=nn.Linear(WIDTH, 40, bias=False),
        down=nn.Linear(40, WIDTH, bias=False),
        norm3=nn.RMSNorm(WIDTH),
        head=nn.Linear(WIDTH, 30),
    )


def gated_linear() -> nn.Module:
    """One layer makes a value and its gate; put apart by chunk, and by torch's own function."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        value, gate = m.first(x).chunk(2, dim=-1)
        x = x + m.back(value * F.silu(gate))
        return m.head(F.glu(m.second(m.norm(x)), dim=-1))

    return Forward(
        forward,
        first=nn.Linear(12, 40),
        back=nn.Linear(20, 12),
        norm=nn.LayerNorm(12),
        second=nn.Linear(12, 28),
        head=nn.Linear(14, 3),
    )


class Mixer(nn.Module):
    """MLP-Mixer: layers over the patches and over the channels by turns."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 2, stride=2)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(5))
        self.tokens = nn.ModuleList(nn.Sequential(nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 16)) for _ in range(2))
        self.mixed = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 40), nn.GELU(), nn.Linear(40, WIDTH)) for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        for i in range(2):
            x = x + self.tokens[i](self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
            x = x + self.mixed[i](self.norms[2 * i + 1](x))
        return self.head(self.norms[4](x).mean(dim=1))


def linear_attention() -> nn.Module:
    """Attention without softmax, contracted by einsum, and values normalised to length one."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        q, k, v = F.normalize(m.q(x), dim=-1), F.elu(m.k(x)) + 1, m.v(x)
        context = torch.einsum("bnd,bne->bde", k, v)
        return m.head((x + m.out(torch.einsum("bnd,bde->bne", q, context)))[:, 0])

    layers = {name: nn.Linear(WIDTH, WIDTH) for name in ("q", "k", "v", "out")}
    return Forward(forward, **layers, head=nn.Linear(WIDTH, 4))


def _attention(
    name: str, build: Callable[[], nn.Module], *inputs: tuple[int, ...] | Tokens, is_quick: bool = False
) -> MatrixRow:
    return MatrixRow(name, "attention", build, inputs, is_quick)


IMAGE = (3, 8, 8)
SENTENCE = Tokens((6,), 20)

ATTENTION: tuple[MatrixRow, ...] = (
    _attention("attention_fused_unbind", lambda: Transformer(FusedUnbind), IMAGE, is_quick=True),
    _attention("attention_fused_chunk", lambda: Transformer(FusedChunk), IMAGE),
    _attention("attention_separate", lambda: Transformer(Separate), IMAGE),
    _attention("attention_windowed", lambda: Transformer(Windowed), IMAGE),
    _attention("multihead_attention", lambda: Transformer(Multihead), IMAGE, is_quick=True),
    _attention("transformer_encoder_layer", encoder_layer, (5, 6)),
    _attention("linear_attention", linear_attention, (6, WIDTH)),
    _attention("translator", translator, SENTENCE, Tokens((4,), 20)),
    _attention("gpt", lambda: Gpt(is_tied=False), SENTENCE, is_quick=True),
    _attention("gpt_tied", lambda: Gpt(is_tied=True), SENTENCE),
    _attention("llama", llama, SENTENCE),
    _attention("gated_linear", gated_linear, (5, 12)),
    _attention("mlp_mixer", Mixer, IMAGE),
)
