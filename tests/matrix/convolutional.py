"""Small classifiers of images, one for each pattern that they are made of, and those of the zoo."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import Forward
from matrix.row import MatrixRow
from zerobit.zoo.larger import mobilenet_v2
from zerobit.zoo.models import dscnn, resnet8, resnet18, vgg7


def unit(i: int, o: int, kernel: int = 3, *, stride: int = 1, groups: int = 1, relu: bool = True) -> nn.Sequential:
    """Convolution, BatchNorm and, if asked for, ReLU."""
    conv = nn.Conv2d(i, o, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(o), *([nn.ReLU()] if relu else []))


def residual() -> nn.Module:
    return Forward(
        lambda m, x: m.fc(torch.relu((y := m.stem(x)) + m.block(y)).mean((2, 3))),
        stem=unit(3, 12),
        block=nn.Sequential(unit(12, 20), unit(20, 12, relu=False)),
        fc=nn.Linear(12, 4),
    )


def depthwise() -> nn.Module:
    """Depthwise with one and with two outputs per channel."""
    return nn.Sequential(
        unit(3, 8),
        unit(8, 8, groups=8),
        unit(8, 12, 1),
        unit(12, 24, groups=12, stride=2),
        unit(24, 10, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 4),
    )


def concat() -> nn.Module:
    """Branches side by side, one of them the block's own input."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        x = m.stem(x)
        y = torch.cat([m.one(x), m.three(x), F.max_pool2d(x, 3, 1, 1)], 1)
        return m.fc(m.last(y).mean((2, 3)))

    return Forward(
        forward, stem=unit(3, 8), one=unit(8, 6, 1), three=unit(8, 10), last=unit(24, 12), fc=nn.Linear(12, 4)
    )


def flatten_by_view() -> nn.Module:
    def forward(m: Forward, x: Tensor) -> Tensor:
        x = F.max_pool2d(m.features(x), 2)
        return m.fc2(F.relu(m.fc1(x.view(x.size(0), -1))))

    return Forward(forward, features=unit(3, 10), fc1=nn.Linear(160, 24), fc2=nn.Linear(24, 4))


def grouped_shuffle() -> nn.Module:
    """Grouped convolutions with a channel shuffle between them, as in the first ShuffleNet."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        x = m.stem(x)
        y = m.reduce(x)
        batch, channels, height, width = y.shape
        y = y.view(batch, 3, channels // 3, height, width).transpose(1, 2).reshape(batch, -1, height, width)
        return m.fc(F.relu(x + m.expand(m.spatial(y))).mean((2, 3)))

    return Forward(
        forward,
        stem=unit(3, 24),
        reduce=unit(24, 12, 1, groups=3),
        spatial=unit(12, 12, groups=12, relu=False),
        expand=unit(12, 24, 1, groups=3, relu=False),
        fc=nn.Linear(24, 4),
    )


class ShuffleBlock(nn.Module):
    """A block of ShuffleNet v2: half of the channels pass, and the halves are then mixed."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        half, self.stride = o // 2, stride
        inner = i if stride > 1 else i // 2
        self.right = nn.Sequential(
            unit(inner, half, 1), unit(half, half, stride=stride, groups=half, relu=False), unit(half, half, 1)
        )
        down = nn.Sequential(unit(i, i, stride=stride, groups=i, relu=False), unit(i, half, 1))
        self.left = down if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        left, right = (x, x) if self.stride > 1 else x.chunk(2, dim=1)
        y = torch.cat([self.left(left), self.right(right)], 1)
        batch, channels, height, width = y.shape
        y = y.view(batch, 2, channels // 2, height, width)
        return torch.transpose(y, 1, 2).contiguous().view(batch, -1, height, width)


def shufflenet_v2() -> nn.Module:
    blocks = [ShuffleBlock(8, 16, 2), ShuffleBlock(16, 16, 1), ShuffleBlock(16, 24, 2), ShuffleBlock(24, 24, 1)]
    return Forward(
        lambda m, x: m.fc(m.last(m.blocks(m.stem(x))).mean([2, 3])),
        stem=unit(3, 8),
        blocks=nn.Sequential(*blocks),
        last=unit(24, 32, 1),
        fc=nn.Linear(32, 4),
    )


def functional() -> nn.Module:
    """No module but those with weights: the mean and the activations are functions and methods."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        x = torch.relu(m.conv1(x))
        x = m.conv2(x).relu_().mean(-1).mean(-1)
        return m.fc(x)

    return Forward(forward, conv1=nn.Conv2d(3, 10, 3), conv2=nn.Conv2d(10, 12, 3), fc=nn.Linear(12, 4))


def densenet() -> nn.Module:
    """BatchNorm and ReLU come before the convolution, so that they read a concatenation and cannot be folded."""

    class Layer(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 12, 1, bias=False)
            self.norm2, self.conv2 = nn.BatchNorm2d(12), nn.Conv2d(12, 4, 3, padding=1, bias=False)

        def forward(self, features: list[Tensor]) -> Tensor:
            x = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
            return self.conv2(F.relu(self.norm2(x)))

    class DenseNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
            self.block1 = nn.ModuleList(Layer(8 + 4 * i) for i in range(3))
            self.between = nn.Sequential(
                nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1, bias=False), nn.AvgPool2d(2)
            )
            self.block2 = nn.ModuleList(Layer(10 + 4 * i) for i in range(2))
            self.norm = nn.BatchNorm2d(18)
            self.classifier = nn.Linear(18, 4)

        def forward(self, x: Tensor) -> Tensor:
            features = [self.stem(x)]
            for layer in self.block1:
                features.append(layer(features))
            features = [self.between(torch.cat(features, 1))]
            for layer in self.block2:
                features.append(layer(features))
            x = F.relu(self.norm(torch.cat(features, 1)), inplace=True)
            return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))

    return DenseNet()


def squeeze_excite() -> nn.Module:
    """Channels weighted by a sigmoid of two linear layers on their means."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        x = m.stem(x)
        gate = torch.sigmoid(m.excite(F.relu(m.squeeze(x.mean((2, 3))))))
        x = F.relu(x * gate[:, :, None, None] + x)
        return m.fc(m.last(x).mean((2, 3)))

    return Forward(
        forward,
        stem=unit(3, 12),
        squeeze=nn.Linear(12, 6),
        excite=nn.Linear(6, 12),
        last=unit(12, 10),
        fc=nn.Linear(10, 4),
    )


class MobileNetV3Block(nn.Module):
    """Expansion, depthwise convolution, squeeze and excite, and projection, with hard activations."""

    def __init__(self, i: int, inner: int, o: int, stride: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.expand = nn.Sequential(*unit(i, inner, 1, relu=False), activation())
        self.depthwise = nn.Sequential(*unit(inner, inner, 5, stride=stride, groups=inner, relu=False), activation())
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(inner, 8, 1), nn.ReLU(), nn.Conv2d(8, inner, 1), nn.Hardsigmoid()
        )
        self.project = unit(inner, o, 1, relu=False)
        self.is_residual = stride == 1 and i == o

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        y = self.project(self.squeeze(y) * y)
        return x + y if self.is_residual else y


def mobilenet_v3() -> nn.Module:
    return nn.Sequential(
        *unit(3, 8, stride=2, relu=False),
        nn.Hardswish(inplace=True),
        MobileNetV3Block(8, 16, 8, 1, nn.ReLU),
        MobileNetV3Block(8, 20, 12, 2, nn.Hardswish),
        MobileNetV3Block(12, 24, 12, 1, nn.Hardswish),
        *unit(12, 24, 1, relu=False),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 32),
        nn.Hardswish(),
        nn.Dropout(0.2),
        nn.Linear(32, 4),
    )


def spatial_gate() -> nn.Module:
    """Attention over places from the mean and the largest value of the channels, and over channels by both."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        x = m.stem(x)
        ends = (x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True))
        x = x * torch.sigmoid(sum(m.channels(e) for e in ends))
        places = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return m.fc((x * torch.sigmoid(m.places(places))).mean((2, 3)))

    return Forward(
        forward,
        stem=unit(3, 12),
        channels=nn.Sequential(nn.Conv2d(12, 6, 1), nn.ReLU(), nn.Conv2d(6, 12, 1)),
        places=nn.Conv2d(2, 1, 5, padding=2),
        fc=nn.Linear(12, 4),
    )


def multi_scale() -> nn.Module:
    """Res2Net: the channels in parts, each passed on to the next part's convolution."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        x = m.stem(x)
        parts = torch.split(x, 4, dim=1)
        second = m.conv2(parts[1])
        third = m.conv3(parts[2] + second)
        return m.fc(torch.relu(x + m.last(torch.cat([parts[0], second, third], 1))).mean((2, 3)))

    return Forward(
        forward,
        stem=unit(3, 12),
        conv2=unit(4, 4),
        conv3=unit(4, 4),
        last=unit(12, 12, 1, relu=False),
        fc=nn.Linear(12, 4),
    )


def conv_row(name: str, build: Callable[[], nn.Module], *inputs: tuple[int, ...], is_quick: bool = False) -> MatrixRow:
    """A row of the family."""
    return MatrixRow(name, "conv", build, inputs, is_quick)


IMAGE = (3, 8, 8)

CONVOLUTIONAL: tuple[MatrixRow, ...] = (
    conv_row("residual", residual, IMAGE, is_quick=True),
    conv_row("depthwise", depthwise, IMAGE, is_quick=True),
    conv_row("concat", concat, IMAGE),
    conv_row("flatten_by_view", flatten_by_view, IMAGE),
    conv_row("grouped_shuffle", grouped_shuffle, IMAGE, is_quick=True),
    conv_row("shufflenet_v2", shufflenet_v2, IMAGE),
    conv_row("functional", functional, IMAGE),
    conv_row("densenet", densenet, IMAGE, is_quick=True),
    conv_row("squeeze_excite", squeeze_excite, IMAGE, is_quick=True),
    conv_row("mobilenet_v3", mobilenet_v3, (3, 16, 16)),
    conv_row("spatial_gate", spatial_gate, IMAGE),
    conv_row("multi_scale", multi_scale, IMAGE),
    conv_row("resnet8", resnet8, (3, 16, 16)),
    conv_row("dscnn", dscnn, (1, 24, 10)),
    conv_row("mobilenet_v2", lambda: mobilenet_v2(10, 0.35, 32), (3, 32, 32)),
    conv_row("vgg7", vgg7, (3, 32, 32)),
    conv_row("resnet18", resnet18, (3, 32, 32)),
)
