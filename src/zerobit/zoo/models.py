"""Small networks for examples, tests and benchmarks, and the list of all networks of the zoo.

`resnet8` and `dscnn` follow the reference networks of MLPerf Tiny (Banbury et al.,
"MLPerf Tiny Benchmark", NeurIPS 2021, arXiv 2106.07597); `digits_net` is a network
of the same kind, small enough to train in seconds. `larger.py` has the others.

Shape letters: B batch, C channels, H height, W width, K classes.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from zerobit.zoo.blocks import IdentityBlock, StridedBlock, conv
from zerobit.zoo.larger import mobilenet_v2, resnet18, vgg7


class ResNet8(nn.Module):
    """MLPerf Tiny image classification network, 16-32-64 channels."""

    def __init__(self, num_classes: int = 10) -> None:
        """Build the network with `num_classes` outputs."""
        super().__init__()
        self.conv = conv(3, 16, 3)
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
        self.pointwise = conv(channels, channels, 1)
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
        self.conv = conv(1, 16, 3)
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
        ZooModel("vgg7", vgg7, (3, 32, 32)),
        ZooModel("resnet18", resnet18, (3, 32, 32)),
        ZooModel("mobilenet_v2", mobilenet_v2, (3, 224, 224)),
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
    msg = f"`model` is {name!r}, but the zoo has only the models {', '.join(MODELS)}; {hint}"
    raise ValueError(msg)
