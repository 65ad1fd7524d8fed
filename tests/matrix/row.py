"""What a row of the model matrix is, and how its network and inputs are made."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Tokens:
    """An input of integers.

    Attributes:
        shape: of one sample.
        vocabulary: they are in 0..vocabulary-1.
    """

    shape: tuple[int, ...]
    vocabulary: int


@dataclass(frozen=True)
class MatrixRow:
    """One network.

    Attributes:
        name: of the row.
        family: "conv", "attention", "recurrent" or "mixed".
        build: makes a fresh network.
        inputs: one for each input: the shape of one sample, without the batch, or `Tokens`.
        is_quick: whether the row is also in the quick tier.
        origin: the package that defines the network; "" for the definitions here.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    inputs: tuple[tuple[int, ...] | Tokens, ...]
    is_quick: bool = False
    origin: str = ""

    def sample(self, batch: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        """Normally distributed inputs, and tokens by chance; the same values in every dtype."""
        random = torch.Generator().manual_seed(seed)
        return tuple(_draw(spec, batch, random, dtype) for spec in self.inputs)

    def model(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The network with random statistics and biases, in evaluation mode; the same at every call."""
        return _network(self, dtype)


def _draw(spec: tuple[int, ...] | Tokens, batch: int, random: torch.Generator, dtype: torch.dtype) -> Tensor:
    if isinstance(spec, Tokens):
        return torch.randint(0, spec.vocabulary, (batch, *spec.shape), generator=random)
    return torch.randn(batch, *spec, generator=random, dtype=torch.float64).to(dtype)


def _network(row: MatrixRow, dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = row.build().to(torch.float64).eval()
        randomise(model)
        fit_statistics(model, row.sample(8, seed=99, dtype=torch.float64))
    # To and fro: some keep what they have computed, in float64, until they are trained again.
    return model.train().eval().to(dtype)


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> None:
    """Give biases, scales and tokens random values in place: fresh ones are zero, one or tiny."""
    draw = _drawer(seed)
    for parameter in dict.fromkeys(model.parameters()):
        first = parameter.flatten()[0].item()
        if parameter.dim() <= 1 or bool((parameter == first).all()):
            # Where every value is the same: a scale, or something that starts at zero.
            start = 1.0 if abs(first - 1) < 0.5 and parameter.std(unbiased=False) < 0.5 else 0.0
            parameter.copy_(start + 0.2 * draw(parameter.shape))
        elif parameter[0].numel() > 1:
            # Some start so small that a network returns little more than its last bias.
            reach = parameter.std(unbiased=False) * parameter[0].numel() ** 0.5
            parameter.mul_(max(1.0, 1 / reach.item()))


def _drawer(seed: int) -> Callable[..., Tensor]:
    return functools.partial(torch.randn, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def fit_statistics(model: nn.Module, inputs: tuple[Tensor, ...], seed: int = 1) -> None:
    """Give every BatchNorm the statistics of what it reads, and some chance, in place.

    With those of a fresh network, what a deep one returns would hardly depend on its inputs.
    """
    draw = _drawer(seed)

    def fit(norm: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        values = arguments[0].transpose(0, 1).flatten(1)
        spread = values.std(1).clamp_min(0.01)
        norm.running_mean.copy_(values.mean(1) + 0.3 * spread * draw(spread.shape))
        norm.running_var.copy_(spread.square() * (0.3 * draw(spread.shape)).exp())

    norms = [m for m in model.modules() if isinstance(m, _NORMS) and m.running_mean is not None]
    hooks = [norm.register_forward_pre_hook(fit) for norm in norms]
    model(*inputs)
    for hook in hooks:
        hook.remove()
