"""Ranges of activations are those of all positions, however large the batch."""

import pytest
import torch
from torch import nn

from zerobit.search.attach import attach, calibrate
from zerobit.search.methods.softmax import ChannelSoftmax


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 1), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def _steps(x: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    net = calibrate(attach(_Net().eval(), x[:2], ChannelSoftmax()), [((x,), {})])
    return torch.stack([net.activation_slot(site.name).log_step.exp().detach().squeeze() for site in net.sites])


@pytest.mark.parametrize("shape", [(1024, 1, 16, 16), (512, 1, 32, 32), (300, 1, 24, 24)])
def test_every_column_counts(shape: tuple[int, ...]) -> None:
    """All values of an image in one column, whichever it is: ranges are alike, but for what a sample leaves out."""
    torch.manual_seed(0)
    x = torch.zeros(shape)
    x[..., 0] = torch.randn(shape[:-1])
    first, last = _steps(x), _steps(x.roll(-1, -1))
    assert (first / last).log2().abs().max() < 1
