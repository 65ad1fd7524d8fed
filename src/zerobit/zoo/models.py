"""Three small networks for examples, tests and benchmarks.

`resnet8` and `dscnn` follow the reference networks of MLPerf Tiny (Banbury et al.,
"MLPerf Tiny Benchmark", NeurIPS 2021, arXiv 2106.07597); `digits_net` is a network
of the same kind, small enough to train in seconds.

Shape letters: B batch, C channels, H height, W width, K classes.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    # No bias: a BatchNorm follows every convolution and has its own.
    return nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)


class IdentityBlock(nn.Module):
    """Two 3x3 convolutions whose result is added to the block's own input."""

    def __init__(self, channels: int) -> None:
        """Build the block; it keeps `channels` and the image size."""
        super().__init__()
        self.conv1 = _conv(channels, channels, 3)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C, H, W]."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(x + y)


class StridedBlock(nn.Module):
    """Two 3x3 convolutions, the first with stride 2, added to a 1x1 stride-2 shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        """Build the block; it halves the image size and changes the channels."""
        super().__init__()
        self.conv1 = _conv(in_channels, out_channels, 3, stride=2)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv(out_channels, out_channels, 3)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut_conv = _conv(in_channels, out_channels, 1, stride=2)
        self.shortcut_bn = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, H, W] to [B, out_channels, ceil(H/2), ceil(W/2)]."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(self.shortcut_bn(self.shortcut_conv(x)) + y)


class ResNet8(nn.Module):
    """MLPerf Tiny image classification network, 16-32-64 channels."""

    def __init__(self, num_classes: int = 10) -> None:
        """Build the network with `num_classes` outputs."""
        super().__init__()
        self.conv = _conv(3, 16, 3)
        self.bn = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.block1 = IdentityBlock(16)
        self.block2 = StridedBlock(16, 32)
        self.block3 = StridedBlock(32, 64)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, 3, 32, 32] to logits [B, K]."""
        x = self.relu(self.bn(self.conv(x)))
        x = self.block3(self.block2(self.block1(x)))
        return self.classifier(self.flatten(self.pool(x)))


class SeparableBlock(nn.Module):
    """Depthwise 3x3 then pointwise 1x1 convolution, each with BatchNorm and ReLU."""

    def __init__(self, channels: int) -> None:
        """Build the block; it keeps `channels` and the image size."""
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(channels)
        self.depthwise_relu = nn.ReLU()
        self.pointwise = _conv(channels, channels, 1)
        self.pointwise_bn = nn.BatchNorm2d(channels)
        self.pointwise_relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C, H, W]."""
        x = self.depthwise_relu(self.depthwise_bn(self.depthwise(x)))
        return self.pointwise_relu(self.pointwise_bn(self.pointwise(x)))


class DsCnn(nn.Module):
    """MLPerf Tiny keyword spotting network, 64 channels throughout."""

    def __init__(self, num_classes: int = 12) -> None:
        """Build the network with `num_classes` outputs."""
        super().__init__()
        self.conv = nn.Conv2d(1, 64, (10, 4), stride=2, padding=(5, 1), bias=False)
        self.bn = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.dropout1 = nn.Dropout(0.2)
        self.block1 = SeparableBlock(64)
        self.block2 = SeparableBlock(64)
        self.block3 = SeparableBlock(64)
        self.block4 = SeparableBlock(64)
        self.dropout2 = nn.Dropout(0.4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map MFCC features [B, 1, 49, 10] (time, coefficient) to logits [B, K]."""
        x = self.dropout1(self.relu(self.bn(self.conv(x))))
        x = self.block4(self.block3(self.block2(self.block1(x))))
        return self.classifier(self.flatten(self.pool(self.dropout2(x))))


class DigitsNet(nn.Module):
    """Residual network for 8x8 digits, 16-32 channels."""

    def __init__(self, num_classes: int = 10) -> None:
        """Build the network with `num_classes` outputs."""
        super().__init__()
        self.conv = _conv(1, 16, 3)
        self.bn = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.block1 = IdentityBlock(16)
        self.block2 = StridedBlock(16, 32)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, 1, 8, 8] to logits [B, K]."""
        x = self.relu(self.bn(self.conv(x)))
        x = self.block2(self.block1(x))
        return self.classifier(self.flatten(self.pool(x)))


def resnet8(num_classes: int = 10) -> ResNet8:
    """Return a fresh MLPerf Tiny ResNet-8: 77,360 weights, 12,501,632 MACs at 10 classes.

    Args:
        num_classes: number of logits K.

    Returns:
        A network from images [B, 3, 32, 32] to logits [B, K].
    """
    return ResNet8(num_classes)


def dscnn(num_classes: int = 12) -> DsCnn:
    """Return a fresh MLPerf Tiny DS-CNN: 22,016 weights, 2,656,768 MACs at 12 classes.

    Args:
        num_classes: number of logits K.

    Returns:
        A network from MFCC features [B, 1, 49, 10] to logits [B, K].
    """
    return DsCnn(num_classes)


def digits_net(num_classes: int = 10) -> DigitsNet:
    """Return a fresh residual network for 8x8 digits: 19,408 weights at 10 classes.

    Args:
        num_classes: number of logits K.

    Returns:
        A network from images [B, 1, 8, 8] to logits [B, K].
    """
    return DigitsNet(num_classes)


@dataclass(frozen=True)
class ZooModel:
    """One network of the zoo.

    Attributes:
        name: the name that `model` looks up.
        build: makes a fresh, untrained network from the number of classes.
        input_shape: shape of one input, (C, H, W).
    """

    name: str
    build: Callable[[int], nn.Module]
    input_shape: tuple[int, int, int]


MODELS: dict[str, ZooModel] = {
    entry.name: entry
    for entry in (
        ZooModel("resnet8", resnet8, (3, 32, 32)),
        ZooModel("dscnn", dscnn, (1, 49, 10)),
        ZooModel("digits", digits_net, (1, 8, 8)),
    )
}


def model(name: str) -> ZooModel:
    """Look a network of the zoo up by its name.

    Raises:
        ValueError: if there is no such network; the message lists the nearest names.
    """
    if name in MODELS:
        return MODELS[name]
    nearest = difflib.get_close_matches(name, MODELS, n=3)
    hint = f"did you mean {' or '.join(map(repr, nearest))}?" if nearest else "check the spelling."
    msg = f"`name` is {name!r}, but the zoo has only the models {', '.join(MODELS)}; {hint}"
    raise ValueError(msg)
