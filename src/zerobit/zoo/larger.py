"""Three published networks, larger than what runs on a microcontroller.

`mobilenet_v2` is Table 2 of Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
arXiv 1801.04381; `resnet18` is the network of He et al., "Deep Residual Learning for Image Recognition", CVPR 2016,
arXiv 1512.03385, with a stem for images of 32 pixels; `vgg7` is that of Li et al., "Ternary Weight Networks",
arXiv 1605.04711.

Shape letters: B batch, C channels, H height, W width, K classes.
"""

from torch import Tensor, nn

from zerobit.zoo.blocks import IdentityBlock, StridedBlock, conv

#: Of each stage of MobileNetV2: expansion, channels, blocks, stride of the first block.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class Vgg7(nn.Module):
    """Six 3x3 convolutions in pairs, a max pool after each pair, and two linear layers."""

    def __init__(self, num_classes: int = 10) -> None:
        """Build the network with `num_classes` outputs."""
        super().__init__()
        self.features = nn.Sequential(*(self._pair(i, o) for i, o in ((3, 128), (128, 256), (256, 512))))
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(512 * 4 * 4, 1024, bias=False)
        self.hidden_bn = nn.BatchNorm1d(1024)
        self.relu = nn.ReLU()
        self.classifier = nn.Linear(1024, num_classes)

    @staticmethod
    def _pair(in_channels: int, out_channels: int) -> nn.Sequential:
        """Two convolutions, each with BatchNorm and ReLU, and a pool."""
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers += [conv(channels, out_channels, 3), nn.BatchNorm2d(out_channels), nn.ReLU()]
        return nn.Sequential(*layers, nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, 3, 32, 32] to logits [B, K]."""
        x = self.flatten(self.features(x))
        return self.classifier(self.relu(self.hidden_bn(self.hidden(x))))


class ResNet18(nn.Module):
    """Four stages of two residual blocks, 64-128-256-512 channels, with a 3x3 stem and no pool behind it."""

    def __init__(self, num_classes: int = 10) -> None:
        """Build the network with `num_classes` outputs."""
        super().__init__()
        self.conv = conv(3, 64, 3)
        self.bn = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.stage1 = nn.Sequential(IdentityBlock(64), IdentityBlock(64))
        self.stage2 = nn.Sequential(StridedBlock(64, 128), IdentityBlock(128))
        self.stage3 = nn.Sequential(StridedBlock(128, 256), IdentityBlock(256))
        self.stage4 = nn.Sequential(StridedBlock(256, 512), IdentityBlock(512))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, 3, 32, 32] to logits [B, K]."""
        x = self.relu(self.bn(self.conv(x)))
        x = self.stage4(self.stage3(self.stage2(self.stage1(x))))
        return self.classifier(self.flatten(self.pool(x)))


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3 and 1x1 projection without activation; added to the input where sizes agree."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        """Build the block; the depthwise convolution has `expansion * in_channels` channels and the stride."""
        super().__init__()
        inner = expansion * in_channels
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [conv(in_channels, inner, 1), nn.BatchNorm2d(inner), nn.ReLU6()]
        layers += [
            nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            conv(inner, out_channels, 1),
            nn.BatchNorm2d(out_channels),
        ]
        self.layers = nn.Sequential(*layers)
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, H, W] to [B, out_channels, ceil(H/stride), ceil(W/stride)]."""
        return x + self.layers(x) if self.is_residual else self.layers(x)


class MobileNetV2(nn.Module):
    """Seventeen inverted residuals between a stem and a 1x1 convolution to 1280 channels."""

    def __init__(self, num_classes: int = 1000, width: float = 1.0, image_size: int = 224) -> None:
        """Build the network; see `mobilenet_v2`."""
        super().__init__()
        # A picture of 32 pixels, halved five times, would end as one value per channel.
        skipped = 2 if image_size < 64 else 0
        channels, last = _rounded(32 * width), _rounded(1280 * max(1.0, width))
        self.stem = nn.Sequential(
            conv(3, channels, 3, stride=1 if skipped else 2), nn.BatchNorm2d(channels), nn.ReLU6()
        )
        blocks: list[nn.Module] = []
        for stage, (expansion, base, repeats, first_stride) in enumerate(_STAGES):
            out_channels = _rounded(base * width)
            stride = 1 if stage < skipped else first_stride
            for repeat in range(repeats):
                blocks.append(InvertedResidual(channels, out_channels, 1 if repeat else stride, expansion))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(conv(channels, last, 1), nn.BatchNorm2d(last), nn.ReLU6())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to logits [B, K]."""
        x = self.last(self.blocks(self.stem(x)))
        return self.classifier(self.dropout(self.flatten(self.pool(x))))


def _rounded(channels: float) -> int:
    """The nearest multiple of 8 that is at least 8 and not more than a tenth below."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def vgg7(num_classes: int = 10) -> Vgg7:
    """Return a fresh VGG-7: 12,973,440 weights, 615,917,568 MACs at 10 classes.

    Args:
        num_classes: number of logits K.

    Returns:
        A network from images [B, 3, 32, 32] to logits [B, K].
    """
    return Vgg7(num_classes)


def resnet18(num_classes: int = 10) -> ResNet18:
    """Return a fresh ResNet-18 for images of 32 pixels: 11,173,962 parameters, 555,422,720 MACs at 10 classes.

    Args:
        num_classes: number of logits K.

    Returns:
        A network from images [B, 3, 32, 32] to logits [B, K].
    """
    return ResNet18(num_classes)


def mobilenet_v2(num_classes: int = 1000, width: float = 1.0, image_size: int = 224) -> MobileNetV2:
    """Return a fresh MobileNetV2: 3,504,872 parameters and 300,774,272 MACs at 1000 classes, width 1 and 224 pixels.

    Args:
        num_classes: number of logits K.
        width: factor of the channels of every layer, rounded to multiples of 8; the last convolution never has
            fewer than 1280.
        image_size: height and width of the images the network is meant for, in pixels. Any size from 32 on will
            run; for sizes below 64 the first two halvings are left out.

    Returns:
        A network from images [B, 3, H, W] to logits [B, K].
    """
    return MobileNetV2(num_classes, width, image_size)
