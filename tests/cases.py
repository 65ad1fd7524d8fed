"""The networks that every law is tested on. A new kind of network is one row in `CASES`.

Spatial sizes and channel counts are small, and means are over a power of two of values where the network allows
it, so that with dyadic values (see `dyadic`) every sum is exact and a law can be tested bit for bit.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zerobit.graph.capture import FloatProgram, capture
from zerobit.graph.ir import Graph
from zerobit.zoo.models import digits_net, dscnn, resnet8

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class ModelCase:
    """One network.

    Attributes:
        name: of the row.
        build: makes a fresh network.
        input_shape: of one sample, without the batch; one for each input if there are several.
        is_dyadic: whether exact values stay exact all the way (no sigmoid, no mean over three values).
    """

    name: str
    build: Callable[[], nn.Module]
    input_shape: tuple[Any, ...]
    is_dyadic: bool = True

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each input."""
        return self.input_shape if isinstance(self.input_shape[0], tuple) else (self.input_shape,)

    def inputs(self, batch: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        """Normally distributed inputs."""
        random = torch.Generator().manual_seed(seed)
        return tuple(
            torch.randn(batch, *shape, generator=random, dtype=torch.float64).to(dtype) for shape in self.input_shapes
        )

    def dyadic_inputs(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Small multiples of 1/8 in float64."""
        random = torch.Generator().manual_seed(seed)
        return tuple(
            torch.randint(-8, 9, (batch, *shape), generator=random).double() / 8 for shape in self.input_shapes
        )


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give BatchNorms and biases random values in place: fresh ones are zero and one, and hide mistakes."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BATCH_NORMS):
                module.running_mean.normal_(0, 0.5, generator=random)
                module.running_var.uniform_(0.5, 2, generator=random)
                module.weight.normal_(1, 0.3, generator=random)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.5, generator=random)
    return model.eval()


def dyadic(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 with few-digit binary values in place, so that sums are exact in any order.

    Weights are -1, 0 or 1 (half of them 0), biases multiples of 1/4; the scale of a BatchNorm is a power of two.
    """
    random = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BATCH_NORMS):
                module.eps = 0.0
                module.running_mean.copy_(_integers(-2, 2, module.running_mean, random) / 4)
                module.running_var.copy_(4.0 ** _integers(0, 2, module.running_var, random))
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                signs = _integers(-1, 1, parameter, random) * _integers(0, 1, parameter, random)
                parameter.copy_(signs)
            elif name.endswith("weight"):
                parameter.copy_(2.0 ** _integers(-1, 1, parameter, random))
            else:
                parameter.copy_(_integers(-4, 4, parameter, random) / 4)
    return model


def _integers(low: int, high: int, like: Tensor, random: torch.Generator) -> Tensor:
    return torch.randint(low, high + 1, like.shape, generator=random).double()


@cache
def _dyadic(case: ModelCase) -> FloatProgram:
    torch.manual_seed(0)
    return capture(dyadic(case.build()), case.dyadic_inputs(batch=3))


def captured_dyadic(case: ModelCase) -> FloatProgram:
    """The capture of a model in float64 whose values are so short that sums are exact (see `dyadic`)."""
    return copy.deepcopy(_dyadic(case))


@cache
def _captured(case: ModelCase, dtype: torch.dtype) -> tuple[nn.Module, FloatProgram]:
    torch.manual_seed(0)
    model = randomised(case.build()).to(dtype)
    return model, capture(model, case.inputs(batch=3, dtype=dtype))


def captured(case: ModelCase, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, FloatProgram]:
    """A randomised model and its capture; copies, so that a test may do with them what it likes."""
    return copy.deepcopy(_captured(case, dtype))


def leaves(value: Any) -> list[Any]:
    """What nested results hold, in order."""
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in leaves(part)]
    if isinstance(value, (tuple, list)):
        return [leaf for part in value for leaf in leaves(part)]
    return [value]


def as_data(graph: Graph) -> dict[str, Any]:
    """A graph as plain values, to compare two of them."""
    return {
        "inputs": graph.inputs,
        "outputs": graph.outputs,
        "ops": graph.ops,
        "shapes": dict(graph.shapes),
        "parameters": dict(graph.parameters),
        "groups": [
            (g.name, g.units, g.masked, g.frozen, [(m.tensor, m.dim, m.index.tolist()) for m in g.members])
            for g in graph.groups
        ],
    }


class Forward(nn.Module):
    """A model in one expression: named layers, and a function of them and the inputs."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def mlp() -> nn.Module:
    return Forward(
        lambda m, x: m.fc3(torch.relu(m.fc2(F.relu(m.fc1(x.view(x.size(0), -1)))))),
        fc1=nn.Linear(16, 12),
        fc2=nn.Linear(12, 8, bias=False),
        fc3=nn.Linear(8, 3),
    )


def linear_batch_norm() -> nn.Module:
    """BatchNorm1d behind a linear layer, where it folds, and over positions, where it can't."""
    return Forward(
        lambda m, x: m.fc2(F.relu(m.bn1(m.fc1(m.bn0(x).flatten(1))))),
        bn0=nn.BatchNorm1d(4),
        fc1=nn.Linear(16, 8),
        bn1=nn.BatchNorm1d(8),
        fc2=nn.Linear(8, 3),
    )


def inverted_residual() -> nn.Module:
    """Two blocks of MobileNetV2; the second adds its input."""

    def block(m: nn.Module, x: Tensor, i: int) -> Tensor:
        y = F.relu6(m.get_submodule(f"bn{i}a")(m.get_submodule(f"expand{i}")(x)))
        y = F.relu6(m.get_submodule(f"bn{i}b")(m.get_submodule(f"depthwise{i}")(y)))
        return m.get_submodule(f"bn{i}c")(m.get_submodule(f"project{i}")(y))

    def forward(m: Any, x: Tensor) -> Tensor:
        x = block(m, x, 1)
        x = x + block(m, x, 2)
        return m.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    layers: dict[str, nn.Module] = {"fc": nn.Linear(6, 3)}
    for i, channels in ((1, 3), (2, 6)):
        layers[f"expand{i}"] = nn.Conv2d(channels, 8, 1, bias=False)
        layers[f"bn{i}a"] = nn.BatchNorm2d(8)
        layers[f"depthwise{i}"] = nn.Conv2d(8, 8, 3, padding=1, stride=i, groups=8, bias=False)
        layers[f"bn{i}b"] = nn.BatchNorm2d(8)
        layers[f"project{i}"] = nn.Conv2d(8, 6, 1, bias=False)
        layers[f"bn{i}c"] = nn.BatchNorm2d(6)
    layers["depthwise2"] = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
    return Forward(forward, **layers)


def concat_branches() -> nn.Module:
    return Forward(
        lambda m, x: m.fc(m.conv(torch.cat([F.relu(m.left(x)), m.right(x)], 1)).mean((2, 3))),
        left=nn.Conv2d(2, 4, 1),
        right=nn.Conv2d(2, 6, 3, padding=1),
        conv=nn.Conv2d(10, 5, 3, padding=1),
        fc=nn.Linear(5, 3),
    )


def concat_identity() -> nn.Module:
    """A branch of the concatenation is the input itself, at a negative dimension."""
    return Forward(
        lambda m, x: m.conv(F.relu(torch.cat([x, m.left(x), x], -3))).mean([-1, -2]),
        left=nn.Conv2d(2, 4, 3, padding=1),
        conv=nn.Conv2d(8, 5, 3),
    )


def concat_add() -> nn.Module:
    """A concatenation is added to one layer: half of its channels go with those of one other, half of another."""
    return Forward(
        lambda m, x: m.last(torch.cat([m.a(x), m.b(x)], 1) + m.c(x)),
        a=nn.Conv2d(2, 3, 1),
        b=nn.Conv2d(2, 3, 1),
        c=nn.Conv2d(2, 6, 1),
        last=nn.Conv2d(6, 2, 1),
    )


def concat_batch_norm() -> nn.Module:
    """A BatchNorm over two groups, flattened."""
    return Forward(
        lambda m, x: m.fc(F.relu(m.bn(torch.cat([m.a(x), m.b(x)], 1))).flatten(1)),
        a=nn.Conv2d(2, 3, 1),
        b=nn.Conv2d(2, 5, 1, bias=False),
        bn=nn.BatchNorm2d(8),
        fc=nn.Linear(8 * 16, 3),
    )


def tcn() -> nn.Module:
    """Dilated causal convolutions over time with a residual."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.conv1(F.pad(x, (2, 0))))
        y = F.relu(m.bn(m.conv2(F.pad(x, (4, 0)))))
        x = F.max_pool1d(y + x, 2)
        return m.fc(F.avg_pool1d(x, 4).squeeze(2))

    return Forward(
        forward,
        conv1=nn.Conv1d(2, 6, 3),
        conv2=nn.Conv1d(6, 6, 3, dilation=2, bias=False),
        bn=nn.BatchNorm1d(6),
        fc=nn.Linear(6, 3),
    )


def rows() -> nn.Module:
    """A linear layer over the positions of a convolution: channels pass beside its own."""
    return Forward(
        lambda m, x: m.fc(m.conv2(F.relu(m.rows(m.conv1(x)))).flatten(1)),
        conv1=nn.Conv1d(2, 6, 1),
        rows=nn.Linear(8, 4),
        conv2=nn.Conv1d(6, 5, 1),
        fc=nn.Linear(20, 3),
    )


def rows_mean() -> nn.Module:
    """A BatchNorm and a mean over channels; those of the linear layer lie on another dimension and stay."""
    return Forward(
        lambda m, x: m.fc(F.relu(m.bn(m.rows(m.conv(x)))).mean(1)),
        conv=nn.Conv1d(2, 4, 1),
        rows=nn.Linear(8, 5),
        bn=nn.BatchNorm1d(4),
        fc=nn.Linear(5, 3),
    )


def grouped() -> nn.Module:
    """Grouped convolution, depthwise with two filters per channel, depthwise on the input."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.conv2(F.relu(m.conv1(m.image(x)))))
        return m.fc(F.avg_pool2d(F.relu(m.double_(x)), 4).reshape(x.shape[0], -1))

    return Forward(
        forward,
        image=nn.Conv2d(2, 4, 3, padding=1, groups=2),
        conv1=nn.Conv2d(4, 8, 3, padding=1, groups=2),
        conv2=nn.Conv2d(8, 6, 1),
        double_=nn.Conv2d(6, 12, 3, padding=1, groups=6, bias=False),
        fc=nn.Linear(12, 3),
    )


def pre_activation() -> nn.Module:
    """The BatchNorm comes first; what it reads is also added, so that it can't be folded."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        y = m.conv1(F.relu(m.bn1(x)))
        x = x + m.conv2(F.relu(m.bn2(y)))
        return m.fc(F.relu(m.bn3(x)).mean((2, 3)))

    return Forward(
        forward,
        stem=nn.Conv2d(2, 6, 3, padding=1),
        bn1=nn.BatchNorm2d(6),
        conv1=nn.Conv2d(6, 4, 3, padding=1, bias=False),
        bn2=nn.BatchNorm2d(4),
        conv2=nn.Conv2d(4, 6, 3, padding=1),
        bn3=nn.BatchNorm2d(6),
        fc=nn.Linear(6, 3),
    )


def in_place() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.conv1(x).relu_()
        y = m.conv2(x)
        y += x
        y = F.relu6(y, inplace=True)
        F.relu(x, inplace=True)
        y.add_(x)
        return m.fc(m.dropout(torch.flatten(F.max_pool2d(y, 2), 1)))

    return Forward(
        forward,
        conv1=nn.Conv2d(2, 4, 3, padding=1),
        conv2=nn.Conv2d(4, 4, 3, padding=1),
        dropout=nn.Dropout(0.5, inplace=True),
        fc=nn.Linear(16, 3),
    )


def in_place_view() -> nn.Module:
    """Writes through views: a slice is cleared, a flat view rectified; readers of the whole see it."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.bn(m.conv1(x))
        y[:, :2] = 0
        y.view(y.shape[0], -1).relu_()
        return m.fc(m.conv2(y).reshape(y.shape[0], -1)) + m.skip(x.reshape(x.shape[0], -1))

    return Forward(
        forward,
        conv1=nn.Conv2d(2, 6, 1),
        bn=nn.BatchNorm2d(6),
        conv2=nn.Conv2d(6, 4, 1),
        fc=nn.Linear(64, 3),
        skip=nn.Linear(32, 3),
    )


def dropouts() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(m.conv1(x)), 0.5, m.training)
        x = m.alpha(m.whole(m.conv2(x)))
        return m.fc(m.plain(x.flatten(1)))

    return Forward(
        forward,
        conv1=nn.Conv2d(2, 4, 1),
        conv2=nn.Conv2d(4, 4, 1),
        whole=nn.Dropout2d(0.5),
        alpha=nn.AlphaDropout(0.5),
        plain=nn.Dropout(0.5),
        fc=nn.Linear(64, 3),
    )


def pools() -> nn.Module:
    """All pools; the first pads, where a mean must not see what is absent."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.avg_pool2d(m.conv1(x), 4, 2, padding=1)
        x = F.max_pool2d(m.conv2(x), 3, 1, padding=1)
        return m.fc(F.adaptive_avg_pool2d(x, (2, 1)).flatten(start_dim=1))

    return Forward(forward, conv1=nn.Conv2d(2, 5, 1), conv2=nn.Conv2d(5, 6, 1), fc=nn.Linear(12, 3))


def padded() -> nn.Module:
    """Asymmetric padding with zero, and with one, which is masked where channels are gone."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.conv1(F.pad(x, (0, 1, 1, 0)))
        x = m.conv2(F.pad(x, (1, 0, -1, 2)))
        return m.conv3(F.pad(m.conv2b(x), (1, 1), value=1.0)).mean((2, 3))

    return Forward(
        forward,
        conv1=nn.Conv2d(2, 4, 2),
        conv2=nn.Conv2d(4, 5, 2),
        conv2b=nn.Conv2d(5, 4, 1),
        conv3=nn.Conv2d(4, 3, (1, 3)),
    )


def shared() -> nn.Module:
    """A layer called twice, first on the input; then one between others, with a BatchNorm for each call."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.first(F.relu(m.first(x))))
        x = F.relu(m.stem(x))
        x = F.relu(m.bn2(m.twice(F.relu(m.bn1(m.twice(x))))))
        return m.fc(x.mean((2, 3)))

    return Forward(
        forward,
        first=nn.Conv2d(2, 2, 1),
        stem=nn.Conv2d(2, 5, 1),
        twice=nn.Conv2d(5, 5, 3, padding=1),
        bn1=nn.BatchNorm2d(5),
        bn2=nn.BatchNorm2d(5),
        fc=nn.Linear(5, 3),
    )


def same_padding() -> nn.Module:
    return Forward(
        lambda m, x: m.conv2(F.relu(m.conv1(x))).mean((2, 3)),
        conv1=nn.Conv2d(2, 6, 4, padding="same", dilation=2),
        conv2=nn.Conv2d(6, 3, 2, padding="valid"),
    )


def mean_over_space() -> nn.Module:
    return Forward(
        lambda m, x: m.fc(F.relu(m.conv(x)).mean(dim=(2, 3), keepdim=True).squeeze(-1).squeeze(-1)),
        conv=nn.Conv2d(2, 6, 3, padding=1),
        fc=nn.Linear(6, 3),
    )


def barrier() -> nn.Module:
    """An op that no rule knows stands in the middle."""
    return Forward(
        lambda m, x: m.fc(m.conv3(m.conv2(F.relu(m.conv1(x))).sort(1).values).flatten(1)),
        conv1=nn.Conv2d(2, 5, 1),
        conv2=nn.Conv2d(5, 4, 1),
        conv3=nn.Conv2d(4, 3, 1),
        fc=nn.Linear(48, 3),
    )


def gated() -> nn.Module:
    """Squeeze and excite, a sigmoid gate."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        gate = torch.sigmoid(m.excite(F.relu(m.squeeze(x.mean((2, 3), keepdim=True)))))
        return m.fc(m.conv(x * gate).flatten(1))

    return Forward(
        forward,
        stem=nn.Conv2d(2, 6, 1),
        squeeze=nn.Conv2d(6, 4, 1),
        excite=nn.Conv2d(4, 6, 1),
        conv=nn.Conv2d(6, 4, 1),
        fc=nn.Linear(64, 3),
    )


def tied() -> nn.Module:
    """Two layers with one weight, and a weight that an op without a rule reads too."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.left(x)) + F.relu(m.right(x))
        x = m.conv(x).flatten(1)
        return m.fc2(m.fc1(x)) * m.fc1.weight.sort(0).values.sum()

    model = Forward(
        forward,
        left=nn.Conv2d(2, 6, 1),
        right=nn.Conv2d(2, 6, 1),
        conv=nn.Conv2d(6, 2, 1),
        fc1=nn.Linear(32, 4),
        fc2=nn.Linear(4, 3),
    )
    model.get_submodule("right").weight = model.get_submodule("left").weight
    return model


def two_inputs() -> nn.Module:
    return Forward(
        lambda m, x, y: m.fc(torch.cat([F.relu(m.image(x)).flatten(1), F.relu(m.table(y))], 1)),
        image=nn.Conv2d(2, 4, 1),
        table=nn.Linear(3, 5),
        fc=nn.Linear(4 * 16 + 5, 3),
    )


def dict_output() -> nn.Module:
    def forward(m: Any, x: Tensor) -> dict[str, Any]:
        x = F.relu(m.stem(x))
        features = m.neck(x)
        return {"classes": m.head(F.relu(features).mean((2, 3))), "aux": (features, None), "x": [m.side(x)]}

    return Forward(
        forward,
        stem=nn.Conv2d(2, 6, 1),
        neck=nn.Conv2d(6, 4, 1),
        head=nn.Linear(4, 3),
        side=nn.Conv2d(6, 2, 1),
    )


def clashing_names() -> nn.Module:
    """Layers that bear names of our own attributes."""

    class Clash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.code = nn.Conv2d(2, 6, 1)
            self.structure = nn.BatchNorm2d(6)
            self.slots = nn.Sequential(nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Dropout(0.5))
            self.tensors = nn.ParameterList([nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))])
            self.device = nn.Parameter(torch.randn(1))
            self.graph = nn.Linear(3, 3)
            self.register_buffer("example", torch.ones(3))
            self.register_buffer("mean", torch.ones(3), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.slots(F.relu(self.structure(self.code(x)))).mean((2, 3))
            x = F.linear(x, self.tensors[0], self.tensors[1])
            return self.graph(x * self.device + self.example) * self.mean

    return Clash()


def root_parameters() -> nn.Module:
    """Weights that belong to no layer, and a constant made in the code."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(6, 2, 3, 3))
            self.x = nn.Parameter(torch.randn(3, 6))
            self.bn = nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.bn(F.conv2d(x, self.kernel, padding=1)))
            return F.linear(y.mean((2, 3)), self.x) * torch.tensor([1.0, 2.0, 4.0], dtype=x.dtype)

    return Root()


def recurrent() -> nn.Module:
    """An LSTM, one op that returns several tensors, between layers that have rules."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y, _ = m.lstm(F.relu(m.conv(x)).transpose(1, 2))
        return m.fc2(F.relu(m.fc1(y[:, -1])))

    return Forward(
        forward,
        conv=nn.Conv1d(2, 4, 1),
        lstm=nn.LSTM(4, 5, batch_first=True),
        fc1=nn.Linear(5, 6),
        fc2=nn.Linear(6, 3),
    )


def transposed() -> nn.Module:
    """Transposed convolutions: dense, grouped, depthwise with two filters for each channel."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.grouped(F.relu(m.dense(m.stem(x)))))
        return m.last(F.relu(m.depthwise(x))).mean((2, 3))

    return Forward(
        forward,
        stem=nn.Conv2d(2, 4, 1),
        dense=nn.ConvTranspose2d(4, 6, 2, stride=2),
        grouped=nn.ConvTranspose2d(6, 8, 3, padding=1, groups=2),
        depthwise=nn.ConvTranspose2d(8, 16, 1, groups=8, bias=False),
        last=nn.Conv2d(16, 3, 1),
    )


def mixer() -> nn.Module:
    """A residual stream under LayerNorm, mixed over positions and over channels."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        x = x + m.mix(m.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + m.down(F.relu(m.up(m.norm2(x))))
        return m.head(m.norm3(x).mean(1))

    return Forward(
        forward,
        stem=nn.Linear(3, 6),
        norm1=nn.LayerNorm(6),
        mix=nn.Linear(4, 4),
        norm2=nn.LayerNorm(6),
        up=nn.Linear(6, 8),
        down=nn.Linear(8, 6),
        norm3=nn.LayerNorm(6),
        head=nn.Linear(6, 3),
    )


def attention() -> nn.Module:
    """Two heads of four channels; queries, keys and values come from one layer."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        query, key, value = m.qkv(x).reshape(x.shape[0], x.shape[1], 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return m.head((x + m.out(y)).mean(1))

    return Forward(forward, stem=nn.Linear(3, 6), qkv=nn.Linear(6, 24), out=nn.Linear(8, 6), head=nn.Linear(6, 3))


def pixel_shuffle() -> nn.Module:
    """Channels to space, and back."""
    return Forward(
        lambda m, x: m.fc(F.pixel_unshuffle(m.last(F.relu(F.pixel_shuffle(m.conv(x), 2))), 4).flatten(1)),
        conv=nn.Conv2d(2, 16, 1),
        last=nn.Conv2d(4, 2, 1),
        fc=nn.Linear(128, 4, bias=False),
    )


def halves() -> nn.Module:
    """A range of channels gates another; the whole is read in overlapping ranges as well."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        one, other = x.chunk(2, 1)
        return torch.cat([m.left(F.relu(one) * other), m.right(x[:, 1:3])], 1).mean((2, 3))

    return Forward(forward, stem=nn.Conv2d(2, 8, 1), left=nn.Conv2d(4, 3, 1), right=nn.Conv2d(2, 2, 1))


def embedded() -> nn.Module:
    """Positions of the sign of a value pick rows of a table, which are added to a layer's output."""
    return Forward(
        lambda m, x: m.fc(F.relu(m.stem(x) + m.table((x[..., 0] > 0).to(torch.int64))).sum(1)),
        stem=nn.Linear(3, 6),
        table=nn.Embedding(2, 6),
        fc=nn.Linear(6, 3),
    )


def products() -> nn.Module:
    """Products and sums that broadcast: over positions, with itself, with numbers and a parameter."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.randn(6, 1, 1)), nn.Parameter(torch.randn(1, 6, 1, 1))
            self.conv, self.last = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x) * self.scale
            x = x + x + x.mean((2, 3), keepdim=True) * x
            return self.last(1 - (x + self.shift) / 2)

    return Scaled()


def class_token() -> nn.Module:
    """A token of its own in front of the patches, and an embedding of positions."""

    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.positions = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 5, 6))
            self.embed = nn.Conv2d(2, 6, 2, stride=2)
            self.up, self.down, self.head = nn.Linear(6, 4), nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            patches = self.embed(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], 1) + self.positions
            return self.head((x + self.down(F.relu(self.up(x))))[:, 0])

    return Token()


IMAGE = (2, 4, 4)

CASES: tuple[ModelCase, ...] = (
    ModelCase("resnet8", resnet8, (3, 8, 8)),
    ModelCase("dscnn", dscnn, (1, 14, 8)),
    ModelCase("digits", digits_net, (1, 8, 8)),
    ModelCase("mlp", mlp, (1, 4, 4)),
    ModelCase("linear_batch_norm", linear_batch_norm, (4, 4)),
    ModelCase("inverted_residual", inverted_residual, (3, 4, 4)),
    ModelCase("concat_branches", concat_branches, IMAGE),
    ModelCase("concat_identity", concat_identity, IMAGE),
    ModelCase("concat_add", concat_add, IMAGE),
    ModelCase("concat_batch_norm", concat_batch_norm, IMAGE),
    ModelCase("tcn", tcn, (2, 8)),
    ModelCase("rows", rows, (2, 8)),
    ModelCase("rows_mean", rows_mean, (2, 8)),
    ModelCase("grouped", grouped, IMAGE),
    ModelCase("pre_activation", pre_activation, IMAGE),
    ModelCase("in_place", in_place, IMAGE),
    ModelCase("in_place_view", in_place_view, IMAGE),
    ModelCase("dropouts", dropouts, IMAGE),
    ModelCase("pools", pools, (2, 8, 8)),
    ModelCase("padded", padded, IMAGE, is_dyadic=False),
    ModelCase("shared", shared, IMAGE),
    ModelCase("same_padding", same_padding, (2, 5, 5)),
    ModelCase("mean_over_space", mean_over_space, IMAGE),
    ModelCase("barrier", barrier, IMAGE),
    ModelCase("gated", gated, IMAGE, is_dyadic=False),
    ModelCase("tied", tied, IMAGE, is_dyadic=False),
    ModelCase("two_inputs", two_inputs, (IMAGE, (3,))),
    ModelCase("dict_output", dict_output, IMAGE),
    ModelCase("clashing_names", clashing_names, IMAGE),
    ModelCase("root_parameters", root_parameters, IMAGE),
    ModelCase("recurrent", recurrent, (2, 4), is_dyadic=False),
    ModelCase("transposed", transposed, IMAGE),
    ModelCase("mixer", mixer, (4, 3), is_dyadic=False),
    ModelCase("attention", attention, (4, 3), is_dyadic=False),
    ModelCase("pixel_shuffle", pixel_shuffle, IMAGE),
    ModelCase("halves", halves, IMAGE),
    ModelCase("embedded", embedded, (4, 3)),
    ModelCase("products", products, IMAGE),
    ModelCase("class_token", class_token, IMAGE),
)


def case(name: str) -> ModelCase:
    """The row of a name."""
    return next(c for c in CASES if c.name == name)
