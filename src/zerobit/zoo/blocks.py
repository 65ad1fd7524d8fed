"""Blocks that several networks of the zoo are made of.

Shape letters: B batch, C channels, H height, W width.
"""

from torch import Tensor, nn


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the image size, but for the stride.

    It has no bias: a BatchNorm follows every convolution and has its own.
    """
    return nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)


class IdentityBlock(nn.Module):
    """Two 3x3 convolutions whose result is added to the block's own input."""

    def __init__(self, channels: int) -> None:
        """Build the block; it keeps `channels` and the image size."""
        super().__init__()
        self.conv1 = conv(channels, channels, 3)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = conv(channels, channels, 3)
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
        self.conv1 = conv(in_channels, out_channels, 3, stride=2)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = conv(out_channels, out_channels, 3)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut_conv = conv(in_channels, out_channels, 1, stride=2)
        self.shortcut_bn = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, H, W] to [B, out_channels, ceil(H/2), ceil(W/2)]."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(self.shortcut_bn(self.shortcut_conv(x)) + y)
