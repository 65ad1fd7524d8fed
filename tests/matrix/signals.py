"""Small networks of convolutions from images to images, or on other signals; each norm, activation and pool."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import Forward
from matrix.convolutional import conv_row, unit
from matrix.row import MatrixRow


def transposed() -> nn.Module:
    """Transposed convolutions: plain, with output padding, and grouped."""
    return nn.Sequential(
        unit(3, 8, stride=2),
        nn.ConvTranspose2d(8, 12, 2, stride=2),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.ConvTranspose2d(12, 8, 3, stride=2, padding=1, output_padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 12, 3, padding=1, groups=4),
        nn.ReLU(),
        nn.Conv2d(12, 2, 1),
    )


class UNet(nn.Module):
    """Down twice and up twice, with the features of each size concatenated on the way up."""

    def __init__(self, is_transposed: bool) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = self._double(3, 8), self._double(8, 12), self._double(12, 16)
        self.enlarge2 = nn.ConvTranspose2d(16, 12, 2, stride=2) if is_transposed else nn.Conv2d(16, 12, 1)
        self.enlarge1 = nn.ConvTranspose2d(12, 8, 2, stride=2) if is_transposed else nn.Conv2d(12, 8, 1)
        self.up2, self.up1 = self._double(24, 12), self._double(16, 8)
        self.head = nn.Conv2d(8, 2, 1)
        self.is_transposed = is_transposed

    @staticmethod
    def _double(i: int, o: int) -> nn.Sequential:
        return nn.Sequential(unit(i, o), unit(o, o))

    def _enlarged(self, layer: nn.Module, x: Tensor, like: Tensor) -> Tensor:
        if self.is_transposed:
            return layer(x)
        return layer(F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False))

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        bottom = self.bottom(F.max_pool2d(two, 2))
        two = self.up2(torch.cat([two, self._enlarged(self.enlarge2, bottom, two)], 1))
        one = self.up1(torch.cat([self._enlarged(self.enlarge1, two, one), one], 1))
        return self.head(one)


def upsampling_pyramid() -> nn.Module:
    """A feature pyramid: nearest neighbours added to lateral features, with a result at each scale."""

    def forward(m: Forward, x: Tensor) -> list[Tensor]:
        fine = m.fine(x)
        coarse = m.coarse(fine)
        top = m.top(coarse)
        bottom = m.lateral(fine) + F.interpolate(top, scale_factor=2, mode="nearest")
        return [m.head(m.smooth(bottom)), m.head(top)]

    return Forward(
        forward,
        fine=unit(3, 8, stride=2),
        coarse=unit(8, 12, stride=2),
        top=nn.Conv2d(12, 10, 1),
        lateral=nn.Conv2d(8, 10, 1),
        smooth=nn.Conv2d(10, 10, 3, padding=1),
        head=nn.Conv2d(10, 3, 1),
    )


class TemporalBlock(nn.Module):
    """Causal dilated convolutions with weight norm; what the padding adds at the end is cut off."""

    def __init__(self, i: int, o: int, dilation: int, is_old: bool) -> None:
        super().__init__()
        norm = nn.utils.weight_norm if is_old else nn.utils.parametrizations.weight_norm
        self.surplus = 2 * dilation
        self.conv1 = norm(nn.Conv1d(i, o, 3, padding=2 * dilation, dilation=dilation))
        self.conv2 = norm(nn.Conv1d(o, o, 3, padding=2 * dilation, dilation=dilation))
        self.shortcut = nn.Conv1d(i, o, 1) if i != o else nn.Identity()
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(F.relu(self.conv1(x)[:, :, : -self.surplus].contiguous()))
        y = self.dropout(F.relu(self.conv2(y)[:, :, : -self.surplus].contiguous()))
        return F.relu(y + self.shortcut(x))


def tcn() -> nn.Module:
    return Forward(
        lambda m, x: m.fc(m.blocks(x)[:, :, -1]),
        blocks=nn.Sequential(
            TemporalBlock(4, 12, 1, False), TemporalBlock(12, 12, 2, False), TemporalBlock(12, 10, 4, False)
        ),
        fc=nn.Linear(10, 4),
    )


def volumes() -> nn.Module:
    """Three spatial dimensions."""
    return nn.Sequential(
        nn.Conv3d(2, 8, 3, padding=1, bias=False),
        nn.BatchNorm3d(8),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(8, 12, 3, padding=1, groups=2),
        nn.BatchNorm3d(12),
        nn.ReLU(),
        nn.AvgPool3d(2),
        nn.ConvTranspose3d(12, 6, 2, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


def autoencoder() -> nn.Module:
    """Linear layers down to a code and back up, to an image of the same size."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        code = m.encoder(x.flatten(1))
        return torch.sigmoid(m.decoder(code)).unflatten(1, (1, 6, 6))

    layers = [nn.Linear(36, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 8), nn.Tanh()]
    return Forward(
        forward,
        encoder=nn.Sequential(*layers),
        decoder=nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 36)),
    )


def convolutional_autoencoder() -> nn.Module:
    return Forward(
        lambda m, x: m.decoder(m.encoder(x)),
        encoder=nn.Sequential(unit(1, 8, stride=2), unit(8, 16, stride=2), nn.Conv2d(16, 6, 1)),
        decoder=nn.Sequential(
            nn.ConvTranspose2d(6, 16, 3, stride=2, padding=1, output_padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(16, 1, 3, padding=1),
            nn.Sigmoid(),
        ),
    )


def super_resolution() -> nn.Module:
    """Pixel shuffle to twice the size, added to the input enlarged, and pixel unshuffle at the start of a branch."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        y = m.prelu(m.head(x))
        y = (
            y
            + m.body(y)
            + m.coarse(F.pixel_unshuffle(F.pad(x, (0, 0, 0, 0)), 2)).repeat_interleave(2, 2).repeat_interleave(2, 3)
        )
        y = F.pixel_shuffle(m.expand(y), 2)
        return m.tail(F.relu(y)) + F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)

    return Forward(
        forward,
        head=nn.Conv2d(1, 10, 3, padding=1),
        prelu=nn.PReLU(10),
        body=nn.Sequential(nn.Conv2d(10, 10, 3, padding=1), nn.ReLU(), nn.Conv2d(10, 10, 3, padding=1)),
        coarse=nn.Conv2d(4, 10, 1),
        expand=nn.Conv2d(10, 24, 3, padding=1),
        tail=nn.Conv2d(6, 1, 3, padding=1),
    )


def group_norm() -> nn.Module:
    """GroupNorm in place of BatchNorm, and InstanceNorm with and without parameters."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        x = F.relu(m.norm1(m.conv1(x)))
        x = x + F.relu(m.norm2(m.conv2(x)))
        return m.fc(F.relu(m.norm3(m.conv3(x))).mean((2, 3)))

    return Forward(
        forward,
        conv1=nn.Conv2d(3, 12, 3, padding=1),
        norm1=nn.GroupNorm(4, 12),
        conv2=nn.Conv2d(12, 12, 3, padding=1),
        norm2=nn.GroupNorm(12, 12),
        conv3=nn.Conv2d(12, 8, 3, padding=1),
        norm3=nn.GroupNorm(1, 8),
        fc=nn.Linear(8, 4),
    )


def instance_norm() -> nn.Module:
    """Style transfer: reflecting borders and InstanceNorm, with parameters and without."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        x = F.relu(m.norm1(m.conv1(F.pad(x, (1, 1, 1, 1), mode="reflect"))))
        x = F.relu(m.norm2(m.conv2(x)))
        return torch.tanh(m.conv3(F.pad(x, (1, 1, 1, 1), mode="replicate")))

    return Forward(
        forward,
        conv1=nn.Conv2d(3, 10, 3),
        norm1=nn.InstanceNorm2d(10, affine=True),
        conv2=nn.Conv2d(10, 8, 3, padding=1, padding_mode="circular"),
        norm2=nn.InstanceNorm2d(8),
        conv3=nn.Conv2d(8, 3, 3),
    )


def activations() -> nn.Module:
    """One of each activation between layers, each of which is also passed by, so that no signal fades."""

    class Step(nn.Module):
        def __init__(self, function: nn.Module) -> None:
            super().__init__()
            self.conv, self.function = nn.Conv2d(8, 8, 1), function

        def forward(self, x: Tensor) -> Tensor:
            return self.function(self.conv(x)) + x

    functions = (
        nn.PReLU(8), nn.PReLU(), nn.LeakyReLU(0.1), nn.ELU(), nn.GELU(), nn.SiLU(), nn.Hardswish(), nn.Hardsigmoid(),
        nn.Sigmoid(), nn.Tanh(), nn.ReLU6(), nn.Softplus(), nn.Mish(), nn.SELU(), nn.CELU(), nn.Hardtanh(-0.5, 2.0),
        nn.Softsign(), nn.LogSigmoid(), nn.Softshrink(0.1), nn.GELU("tanh"),
    )  # fmt: skip
    layers = [part for f in functions for part in (nn.Conv2d(8, 8, 1), f)]
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        *(Step(f) for f in functions),
        *layers[:14],
        nn.Conv2d(8, 6, 3),
        nn.Threshold(0.1, 0.0),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
        nn.LogSoftmax(1),
    )


def pools() -> nn.Module:
    """Every pool, with rounding up, without counting the border, of several sizes, and of values with their places."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        x = F.relu(m.conv1(x))
        x = F.avg_pool2d(x, 3, 2, padding=1, ceil_mode=True, count_include_pad=False)
        x = F.relu(m.conv2(x))
        x = F.max_pool2d(x, 3, 2, padding=1, ceil_mode=True) + F.adaptive_max_pool2d(x, (3, 3))
        x = F.relu(m.conv3(x))
        pyramid = [F.adaptive_avg_pool2d(x, (s, s)).flatten(1) for s in (1, 2, 3)]
        return m.fc(torch.cat([*pyramid, x.amax((2, 3))], 1))

    return Forward(
        forward,
        conv1=nn.Conv2d(3, 8, 3, padding=1),
        conv2=nn.Conv2d(8, 10, 3, padding=1),
        conv3=nn.Conv2d(10, 6, 1),
        fc=nn.Linear(6 * 15, 4),
    )


def audio_front_end() -> nn.Module:
    """Strided convolutions on a waveform, then depthwise separable ones over time."""
    return nn.Sequential(
        nn.Conv1d(1, 12, 10, stride=5, bias=False),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(12, 12, 5, padding=2, groups=12, bias=False),
        nn.Conv1d(12, 16, 1),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.AvgPool1d(2),
        nn.ConvTranspose1d(16, 8, 4, stride=2, padding=1),
        nn.LeakyReLU(0.1),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def siamese() -> nn.Module:
    """One network called on each of two inputs, and the distance between the results."""

    def forward(m: Forward, left: Tensor, right: Tensor) -> Tensor:
        one, two = m.branch(left), m.branch(right)
        return m.head(torch.cat([torch.abs(one - two), one * two], 1))

    branch = nn.Sequential(
        unit(1, 8), nn.MaxPool2d(2), unit(8, 12), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)
    )
    return Forward(forward, branch=branch, head=nn.Linear(20, 2))


def detector() -> nn.Module:
    """Results in a dict, a tuple inside: classes and boxes at two scales."""

    def forward(m: Forward, x: Tensor) -> dict[str, object]:
        fine = m.fine(x)
        coarse = m.coarse(fine)
        boxes = tuple(m.boxes(f).permute(0, 2, 3, 1).flatten(1, 2) for f in (m.lateral(fine), coarse))
        scores = torch.cat([m.classes(f).flatten(2) for f in (m.lateral(fine), coarse)], -1)
        return {"scores": scores.transpose(1, 2).softmax(-1), "boxes": boxes}

    return Forward(
        forward,
        fine=unit(3, 8, stride=2),
        lateral=unit(8, 12, 1),
        coarse=unit(8, 12, stride=2),
        boxes=nn.Conv2d(12, 4, 3, padding=1),
        classes=nn.Conv2d(12, 3, 3, padding=1),
    )


IMAGE = (3, 8, 8)

SIGNALS: tuple[MatrixRow, ...] = (
    conv_row("transposed_convolution", transposed, IMAGE, is_quick=True),
    conv_row("unet", lambda: UNet(is_transposed=True), IMAGE, is_quick=True),
    conv_row("unet_interpolated", lambda: UNet(is_transposed=False), IMAGE),
    conv_row("feature_pyramid", upsampling_pyramid, IMAGE),
    conv_row("tcn", tcn, (4, 16), is_quick=True),
    conv_row("volumes", volumes, (2, 8, 8, 8)),
    conv_row("autoencoder", autoencoder, (1, 6, 6)),
    conv_row("convolutional_autoencoder", convolutional_autoencoder, (1, 8, 8)),
    conv_row("super_resolution", super_resolution, (1, 8, 8)),
    conv_row("group_norm", group_norm, IMAGE),
    conv_row("instance_norm", instance_norm, IMAGE),
    conv_row("activations", activations, (3, 4, 4)),
    conv_row("pools", pools, (3, 9, 9)),
    conv_row("audio_front_end", audio_front_end, (1, 200)),
    conv_row("siamese", siamese, (1, 8, 8), (1, 8, 8)),
    conv_row("detector", detector, (3, 8, 8)),
)
