"""Weights that are computed from parameters alone become parameters."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from zerobit.graph.capture import FloatProgram, capture
from zerobit.graph.constants import fold_constants
from zerobit.graph.describe import describe
from zerobit.graph.folding import fold
from zerobit.graph.ir import Kind

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")


class Standardised(nn.Conv2d):
    """Weight standardisation as BiT writes it."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        normed = F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, normed.reshape_as(self.weight), self.bias)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = parametrizations.weight_norm(nn.Conv2d(3, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x).relu())


class Fused(nn.Module):
    """Three layers in one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x * 2, x * 3)[0]


class FixedNorm(nn.Module):
    """BatchNorm written out with fixed statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        return self.conv(x) * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


class Blur(nn.Module):
    """A fixed kernel, repeated for every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.tensor([[[1.0, 2.0, 1.0]]]) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.kernel.repeat(3, 1, 1), groups=3)


IMAGE = (3, 5, 5)
# Model, shape of a sample, names after folding.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "weight_norm": (lambda: weight_norm(nn.Conv2d(3, 4, 3)), IMAGE, ["bias", "weight"]),
    "parametrised weight_norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
        IMAGE,
        ["0.bias", "0.weight"],
    ),
    "spectral_norm": (lambda: spectral_norm(nn.Linear(3, 4)), (3,), ["bias", "weight"]),
    "parametrised spectral_norm": (
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.ConvTranspose2d(3, 4, 3))),
        IMAGE,
        ["0.bias", "0.weight"],
    ),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(3, 4)), (3,), ["bias", "weight"]),
    "standardised": (
        lambda: nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4)),
        IMAGE,
        ["0.bias", "0.weight"],
    ),
    "called twice": (Twice, IMAGE, ["conv.bias", "conv.weight"]),
    "fused": (
        Fused,
        (3, 8),
        [f"attention.in_proj_{kind}{'_' * i}" for kind in ("bias", "weight") for i in range(3)]
        + ["attention.out_proj.bias", "attention.out_proj.weight"],
    ),
    "fixed norm": (FixedNorm, IMAGE, ["conv.bias", "conv.weight", "norm.bias", "norm.weight"]),
    "buffer": (Blur, (3, 8), ["kernel"]),
}

every_model = pytest.mark.parametrize("name", MODELS)


def _captured(name: str) -> tuple[nn.Module, FloatProgram, Tensor]:
    torch.manual_seed(0)
    build, shape, _ = MODELS[name]
    model = build().double().eval()
    x = torch.randn(2, *shape, dtype=torch.float64)
    model(x)  # hooks leave what they computed in the module
    for buffer in model.buffers():
        if buffer.is_floating_point() and name != "buffer":
            buffer.add_(torch.rand_like(buffer))
    return model, capture(model, x), torch.randn(5, *shape, dtype=torch.float64)


@every_model
def test_capture_computes_the_weight_as_the_model_does(name: str) -> None:
    model, program, x = _captured(name)
    assert torch.equal(program(x), model(x))
    assert sorted(program.state_dict()) == sorted(model.state_dict())


@every_model
def test_a_computed_weight_becomes_one_tensor(name: str) -> None:
    model, program, x = _captured(name)
    expected = model(x)
    assert fold(program) is program
    assert (program(x) - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert sorted(program.tensors()) == MODELS[name][2]
    assert all(not _computes_weights(node) for node in program.code.nodes)


def _computes_weights(node: object) -> bool:
    sources = node.all_input_nodes  # type: ignore[attr-defined]
    return node.op == "call_function" and all(n.op == "get_attr" for n in sources)  # type: ignore[attr-defined]


@every_model
def test_the_layers_of_computed_weights_are_searched(name: str) -> None:
    _, program, _ = _captured(name)
    graph = describe(fold(program))
    layers = [op for op in graph.ops if op.target.startswith(("aten.conv", "aten.linear"))]
    assert layers
    assert all(op.weight in program.tensors() and op.kind is not Kind.BARRIER for op in layers)


def test_what_is_trained_stays_trained_and_what_is_not_does_not() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), parametrizations.weight_norm(nn.Linear(4, 2)))
    model[0].requires_grad_(False)
    program = fold(capture(model, torch.randn(2, 3)))
    assert {n: p.requires_grad for n, p in program.named_parameters()} == {
        "0.bias": False,
        "0.weight": False,
        "1.bias": True,
        "1.weight": True,
    }
    program(torch.randn(2, 3)).sum().backward()
    blur = fold(_captured("buffer")[1])
    assert [n for n, _ in blur.named_parameters()] == []


def test_one_weight_for_two_calls() -> None:
    _, program, _ = _captured("called twice")
    fold(program)
    assert len([n for n in program.code.nodes if n.op == "get_attr" and n.target == "conv.weight"]) == 1


def test_a_weight_that_is_also_read_as_it_is_stays_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.code = nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.code(x), self.code.weight.t())

    model = Tied()
    program = fold_constants(capture(model, torch.randn(2, 5)))
    x = torch.randn(3, 5)
    assert torch.equal(program(x), model(x))
    assert list(program.state_dict()) == list(model.state_dict())


def test_a_table_that_would_grow_stays_as_it_is() -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(3, 2))
            self.register_buffer("index", torch.randint(0, 3, (16,)))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table[self.index]

    model = Biased()
    program = fold_constants(capture(model, torch.randn(2, 16, 2)))
    assert {n: tuple(p.shape) for n, p in program.tensors().items()} == {"table": (3, 2), "index": (16,)}


def test_random_weights_stay_random() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight + torch.randn(3, 3))

    program = fold_constants(capture(Noisy(), torch.randn(2, 3)))
    x = torch.randn(2, 3)
    assert not torch.equal(program(x), program(x))


def test_a_name_that_is_taken_gets_an_underscore() -> None:
    class Clash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.direction = nn.Parameter(torch.randn(4, 3))
            self.length = nn.Parameter(torch.randn(4, 1))
            self.weight = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.weight(F.linear(x, self.direction * self.length))

    model = Clash()
    program = fold(capture(model, torch.randn(2, 3)))
    x = torch.randn(4, 3)
    assert torch.equal(program(x), model(x))
    assert sorted(program.tensors()) == ["weight.bias", "weight.weight", "weight_"]
