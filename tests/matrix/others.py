"""Small recurrent networks, and those of more than one family."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import Forward
from matrix.row import MatrixRow, Tokens


def lstm() -> nn.Module:
    """Between convolutions over time and linear layers."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        x, _ = m.lstm(F.relu(m.conv2(F.relu(m.conv(x)))).transpose(1, 2))
        return m.fc2(F.relu(m.fc1(x[:, -1])))

    return Forward(
        forward,
        conv=nn.Conv1d(3, 8, 3, padding=1),
        conv2=nn.Conv1d(8, 6, 1),
        lstm=nn.LSTM(6, 10, batch_first=True),
        fc1=nn.Linear(10, 12),
        fc2=nn.Linear(12, 3),
    )


def deep_lstm() -> nn.Module:
    """Two layers in both directions on embedded words; the last states are what is read."""

    def forward(m: Forward, tokens: Tensor) -> Tensor:
        _, (hidden, _) = m.lstm(F.relu(m.widen(m.words(tokens))))
        return m.fc(torch.cat([hidden[-2], hidden[-1]], -1))

    return Forward(
        forward,
        words=nn.Embedding(20, 8),
        widen=nn.Linear(8, 12),
        lstm=nn.LSTM(12, 6, num_layers=2, bidirectional=True, batch_first=True),
        fc=nn.Linear(12, 3),
    )


def gru() -> nn.Module:
    def forward(m: Forward, x: Tensor) -> Tensor:
        x, last = m.gru(F.relu(m.inward(x)))
        return m.head(F.relu(m.outward(x)) + last.squeeze(0).unsqueeze(1))

    return Forward(
        forward,
        inward=nn.Linear(5, 12),
        gru=nn.GRU(12, 10, batch_first=True),
        outward=nn.Linear(10, 10),
        head=nn.Linear(10, 3),
    )


def cell_by_hand() -> nn.Module:
    """A gated cell of linear layers, called once for each of four steps."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], 10)
        for step in x.unbind(1):
            reset, update = torch.sigmoid(m.gates(torch.cat([step, state], -1))).chunk(2, -1)
            new = torch.tanh(m.new(torch.cat([step, reset * state], -1)))
            state = update * state + (1 - update) * new
        return m.head(state)

    return Forward(forward, gates=nn.Linear(14, 20), new=nn.Linear(14, 10), head=nn.Linear(10, 3))


def crnn() -> nn.Module:
    """Convolutions over an image whose columns are the steps of an LSTM."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        x = m.features(x)
        x, _ = m.lstm(x.flatten(1, 2).permute(0, 2, 1))
        return m.head(x).log_softmax(-1)

    features = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d((2, 1)),
        nn.Conv2d(8, 6, 3, padding=1),
        nn.ReLU(),
    )
    return Forward(forward, features=features, lstm=nn.LSTM(24, 8, batch_first=True), head=nn.Linear(8, 4))


def recurrent_cells() -> nn.Module:
    """torch's own cells, step by step."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        first, second = x.new_zeros(x.shape[0], 8), x.new_zeros(x.shape[0], 6)
        memory = second
        for i in range(3):
            first = m.gru(F.relu(m.inward(x[:, i])), first)
            second, memory = m.lstm(first, (second, memory))
        return m.head(second)

    return Forward(
        forward, inward=nn.Linear(4, 10), gru=nn.GRUCell(10, 8), lstm=nn.LSTMCell(8, 6), head=nn.Linear(6, 3)
    )


def two_inputs() -> nn.Module:
    """A picture and a table row, joined."""

    def forward(m: Forward, image: Tensor, table: Tensor) -> Tensor:
        x = m.image(image).mean((2, 3))
        y = F.relu(m.table(table))
        return m.head(F.relu(m.joined(torch.cat([x, y], -1))))

    image = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 10, 3))
    return Forward(forward, image=image, table=nn.Linear(5, 12), joined=nn.Linear(22, 16), head=nn.Linear(16, 3))


def modulated() -> nn.Module:
    """FiLM: words make a scale and a shift for each channel of an image's features."""

    def forward(m: Forward, image: Tensor, words: Tensor) -> Tensor:
        x = m.norm(m.conv(image))
        scale, shift = m.film(m.words(words).mean(1))[:, :, None, None].chunk(2, dim=1)
        return m.head(m.last(F.relu(x * (1 + scale) + shift)).mean((2, 3)))

    return Forward(
        forward,
        conv=nn.Conv2d(3, 8, 3, padding=1),
        norm=nn.BatchNorm2d(8, affine=False),
        words=nn.Embedding(10, 6),
        film=nn.Linear(6, 16),
        last=nn.Conv2d(8, 10, 1),
        head=nn.Linear(10, 3),
    )


def conformer() -> nn.Module:
    """Attention, and between linear layers a gated depthwise convolution over time."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        x = m.embed(x)
        x = x + 0.5 * m.back(F.silu(m.inner(m.norm1(x))))
        y = m.norm2(x)
        x = x + m.attention(y, y, y, need_weights=False)[0]
        y = F.glu(m.widen(m.norm3(x).transpose(1, 2)), dim=1)
        y = m.narrow(F.silu(m.batch_norm(m.depthwise(y))))
        return m.head((x + y.transpose(1, 2)).mean(1))

    return Forward(
        forward,
        embed=nn.Linear(6, 12),
        norm1=nn.LayerNorm(12),
        inner=nn.Linear(12, 24),
        back=nn.Linear(24, 12),
        norm2=nn.LayerNorm(12),
        attention=nn.MultiheadAttention(12, 2, batch_first=True),
        norm3=nn.LayerNorm(12),
        widen=nn.Conv1d(12, 32, 1),
        depthwise=nn.Conv1d(16, 16, 3, padding=1, groups=16),
        batch_norm=nn.BatchNorm1d(16),
        narrow=nn.Conv1d(16, 12, 1),
        head=nn.Linear(12, 3),
    )


class NonLocal(nn.Module):
    """Attention between the places of an image, made of 1x1 convolutions, with a learned factor for the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.theta, self.phi, self.g = nn.Conv2d(12, 8, 1), nn.Conv2d(12, 8, 1), nn.Conv2d(12, 8, 1)
        self.out, self.factor = nn.Conv2d(8, 12, 1), nn.Parameter(torch.tensor(0.5))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        batch, _, height, width = x.shape
        theta, phi, g = (layer(x).view(batch, 8, -1) for layer in (self.theta, self.phi, self.g))
        attention = torch.bmm(theta.permute(0, 2, 1), phi).softmax(-1)
        y = torch.bmm(attention, g.permute(0, 2, 1)).permute(0, 2, 1).reshape(batch, 8, height, width)
        return self.head((x + self.factor * self.out(y)).mean((2, 3)))


def mixture_of_experts() -> nn.Module:
    """Three networks, weighted by a softmax."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        weights = m.router(x).softmax(-1)
        experts = torch.stack([expert(x) for expert in m.experts], 1)
        return (weights.unsqueeze(-1) * experts).sum(1)

    experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 14), nn.ReLU(), nn.Linear(14, 3)) for _ in range(3))
    return Forward(forward, router=nn.Linear(6, 3), experts=experts)


def point_cloud() -> nn.Module:
    """PointNet: layers shared by points, and the largest value over them joined to each."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        x = m.local(x.transpose(1, 2))
        whole = x.max(dim=2, keepdim=True).values
        x = torch.cat([x, whole.expand_as(x)], 1)
        return m.head(m.joint(x)).transpose(2, 1)

    unit = nn.Sequential(nn.Conv1d(3, 12, 1), nn.BatchNorm1d(12), nn.ReLU())
    joint = nn.Sequential(nn.Conv1d(24, 14, 1), nn.BatchNorm1d(14), nn.ReLU())
    return Forward(forward, local=unit, joint=joint, head=nn.Conv1d(14, 4, 1))


def spectral_norm() -> nn.Module:
    """Weights divided by their largest singular value, and an old weight norm."""
    norm = nn.utils.parametrizations.spectral_norm
    return nn.Sequential(
        norm(nn.Conv2d(3, 10, 3, padding=1)),
        nn.LeakyReLU(0.2),
        norm(nn.Conv2d(10, 8, 4, stride=2, padding=1)),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        norm(nn.Linear(128, 12)),
        nn.ReLU(),
        nn.utils.parametrizations.weight_norm(nn.Linear(12, 1)),
    )


def _row(
    name: str, family: str, build: Callable[[], nn.Module], *inputs: tuple[int, ...] | Tokens, is_quick: bool = False
) -> MatrixRow:
    return MatrixRow(name, family, build, inputs, is_quick)


OTHERS: tuple[MatrixRow, ...] = (
    _row("lstm", "recurrent", lstm, (3, 6), is_quick=True),
    _row("deep_lstm", "recurrent", deep_lstm, Tokens((5,), 20)),
    _row("gru", "recurrent", gru, (6, 5)),
    _row("recurrent_cell", "recurrent", cell_by_hand, (4, 4)),
    _row("torch_cells", "recurrent", recurrent_cells, (3, 4)),
    _row("crnn", "mixed", crnn, (1, 8, 6)),
    _row("two_inputs", "mixed", two_inputs, (3, 8, 8), (5,), is_quick=True),
    _row("modulated", "mixed", modulated, (3, 8, 8), Tokens((4,), 10)),
    _row("conformer", "mixed", conformer, (8, 6)),
    _row("non_local", "mixed", NonLocal, (3, 6, 6)),
    _row("mixture_of_experts", "mixed", mixture_of_experts, (6,)),
    _row("point_cloud", "mixed", point_cloud, (10, 3)),
    _row("spectral_norm", "conv", spectral_norm, (3, 8, 8)),
)
