"""Variational-information-bottleneck gates: a noisy factor per unit, and units that are mostly noise go.

Dai, Zhu, Guo, Wipf, "Compressing Neural Networks using the Variational Information Bottleneck", ICML 2018 (VIBNet);
Wang, Lu, Blankevoort, "Differentiable Joint Pruning and Quantization for Hardware Efficiency", ECCV 2020 (DJPQ).
"""

import math

import torch
from torch import Tensor, nn

from zerobit.search.choice import AbstractGroupChoice, Sample, UnitRule, ranks

#: Start of VIBNet: mean ~ N(1, 0.01), log of the variance ~ N(-9, 0.01).
START_MEAN, START_LOG_VARIANCE, START_DEVIATION = 1.0, -9.0, 0.01
#: Noise of a unit is at most this many times its mean: more would say nothing more.
_MOST_NOISE = 100.0
_TINY = 1e-8
#: The logarithm of the variance is this times its parameter. A choice is given a rate at which a logit of ordinary size
#: changes sign within a search; from the start to a threshold of 1e-3, this logarithm has 16 to go.
UNIT = 4.0
#: Half the distance between the first and the last start of a group's log variances.
_SPREAD = 3.0


class BottleneckGate(AbstractGroupChoice):
    """z = mean + deviation * noise multiplies what a unit computes; noise is drawn for each sample of the batch.

    The ratio alpha = mean^2 / variance falls as the penalty asks for less information. A unit stays while alpha is at
    least a threshold.

    Args:
        units: number of units.
        threshold: of alpha.
        sharpness: of the soft choice that a cost sees: sigmoid(log(alpha / threshold) / sharpness).
        rule: how many units may stay.
    """

    #: Of a unit at the start, 1/2 log(1 + alpha) with alpha = mean^2 / variance.
    START_DIVERGENCE = 0.5 * math.log1p(START_MEAN**2 / math.exp(START_LOG_VARIANCE))

    scales = True
    is_noisy = True

    def __init__(self, units: int, threshold: float, sharpness: float, rule: UnitRule) -> None:
        super().__init__("softmax")
        self.mean = nn.Parameter(START_MEAN + START_DEVIATION * torch.randn(units))
        self.noise = nn.Parameter((START_LOG_VARIANCE + START_DEVIATION * torch.randn(units)) / UNIT)
        self.log_threshold, self.sharpness, self.rule = math.log(threshold), sharpness, rule

    def log_alpha(self) -> Tensor:
        """[units], logarithm of mean^2 / variance."""
        return (self.mean.square() + _TINY).log() - UNIT * self.noise

    @torch.no_grad()
    def order(self, importance: Tensor) -> None:
        """Start with less noise on important units, in place; the mean stays that of VIBNet.

        Args:
            importance: [units], larger is more important.
        """
        if len(importance) > 1:
            rank = ranks(importance).to(self.noise)
            self.noise -= _SPREAD / UNIT * (2 * rank / (len(rank) - 1) - 1)

    def probability(self, *, noise: bool = False) -> Tensor:
        """[units], the differentiable share that stays."""
        del noise
        return torch.sigmoid((self.log_alpha() - self.log_threshold) / self.sharpness)

    def hard(self) -> Tensor:
        """[units], bool: alpha at or above the threshold, as many as the rule allows."""
        log_alpha = self.log_alpha().detach()
        return self.rule.apply(log_alpha >= self.log_threshold, log_alpha)

    def log_odds(self) -> Tensor:
        """[units], of the soft choice; 0 at the threshold."""
        return (self.log_alpha().detach().double() - self.log_threshold) / self.sharpness

    def factor(self) -> Tensor:
        """[units], the mean."""
        return self.mean.detach()

    def divergence(self) -> Tensor:
        """[units], 1/2 log(1 + alpha): what the gate costs in information, in nats (VIBNet)."""
        return 0.5 * nn.functional.softplus(self.log_alpha())

    def forward(self) -> Sample:
        """Means, and in training the noise relative to them; in evaluation 0 for units that go."""
        if not self.training:
            return Sample(self.mean * self.hard().to(self.mean))
        # relative: the mean is in the weights, so that noise on what they compute is deviation / mean
        noise = (-0.5 * self.log_alpha()).clamp_max(math.log(_MOST_NOISE)).exp()
        return Sample(self.mean, noise=noise)

    def extra_repr(self) -> str:
        """Number of units and threshold."""
        return f"units={len(self.mean)}, threshold={math.exp(self.log_threshold):g}"
