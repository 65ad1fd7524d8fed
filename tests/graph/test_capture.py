"""What a capture takes beside plain networks: attention, dropouts, named inputs, free sizes, nested results."""

import copy
import pickle
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from zerobit.errors import CaptureError
from zerobit.graph.capture import FloatProgram, capture
from zerobit.graph.describe import describe


def _calls(program: FloatProgram) -> list[str]:
    return [str(n.target) for n in program.code.nodes if n.op == "call_function"]


# ---- inputs by name


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.fc(x) * kwargs["scale"] + kwargs["nested"]["shift"]


class OnlyNamed(nn.Module):
    def forward(self, **kwargs: Tensor) -> Tensor:
        return kwargs["x"] - kwargs["y"]


class OnlyPositional(nn.Module):
    def forward(self, *args: Tensor) -> Tensor:
        return args[0] - args[1]


@pytest.mark.parametrize("batch", [1, 3])
def test_arguments_that_the_signature_does_not_name_have_a_free_batch(batch: int) -> None:
    def named(size: int) -> dict[str, Any]:
        return {"scale": torch.randn(size, 4), "nested": {"shift": torch.randn(size, 4)}}

    def pair(size: int) -> tuple[Tensor, Tensor]:
        return torch.randn(size, 3), torch.randn(size, 3)

    model = Named()
    program = capture(model, torch.randn(batch, 3), named(batch))
    only_named = capture(OnlyNamed(), (), dict(zip("xy", pair(batch), strict=True)))
    only_positional = capture(OnlyPositional(), pair(batch))
    for size in (1, 2, 5):
        x, kwargs, (a, b) = torch.randn(size, 3), named(size), pair(size)
        assert torch.equal(program(x, **kwargs), model(x, **kwargs))
        assert torch.equal(program(x, **dict(reversed(kwargs.items()))), model(x, **kwargs))
        assert torch.equal(only_named(y=b, x=a), a - b)
        assert torch.equal(only_positional(a, b), a - b)


# ---- attention


class SelfAttention(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=dropout, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("build", [SelfAttention, lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)])
def test_attention_is_captured_op_by_op(build: Any, trained: bool) -> None:
    model = build().eval().requires_grad_(trained)
    with torch.no_grad():
        program = capture(model, torch.randn(2, 5, 8))
        assert "aten.scaled_dot_product_attention.default" in _calls(program)
        assert not [name for name in _calls(program) if "_native" in name or "_transformer" in name]
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            for size in (1, 2, 3):
                x = torch.randn(size, 5, 8)
                assert torch.equal(program(x), model(x))
        finally:
            torch.backends.mha.set_fastpath_enabled(True)


def test_the_fused_attention_is_off_while_a_model_is_captured() -> None:
    seen: list[bool] = []

    class Looking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.backends.mha.get_fastpath_enabled())
            return x + 1

    capture(Looking(), torch.randn(2, 3))
    assert seen
    assert not any(seen)
    assert torch.backends.mha.get_fastpath_enabled()


# ---- what only training drops


class DropPath(nn.Module):
    def __init__(self, drop_prob: float | None = None) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.drop_prob:
            return x
        return x * torch.bernoulli(torch.full((x.shape[0], 1), 1 - self.drop_prob))


class Attending(nn.Module):
    def __init__(self, attention_dropout: float) -> None:
        super().__init__()
        self.attention_dropout = attention_dropout

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=self.attention_dropout if self.training else 0.0)


def test_what_drops_values_in_training_only_is_listed() -> None:
    parts = {
        "a": nn.Dropout(0.5),
        "b": DropPath(0.1),
        "c": DropPath(0.0),
        "d": DropPath(),
        "e": nn.Dropout(0.0),
        "f": Attending(0.2),
        "g": Attending(0.0),
        "h": SelfAttention(0.3),
        "i": SelfAttention(),
    }
    model = nn.Sequential()
    for name, part in parts.items():
        model.add_module(name, part)
    program = capture(model, torch.randn(2, 4, 8))
    assert program.structure.dropped == (
        "b (DropPath)",
        "d (DropPath)",
        "f (Attending)",
        "h.attention (MultiheadAttention)",
    )
    assert copy.deepcopy(program).structure.dropped == program.structure.dropped


def test_dropout_beside_writes_into_views_is_listed() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.dropout(x) + 1
            x[:, 0] = x[:, 1] * 2
            return x

    with pytest.warns(UserWarning, match="its dropout is left out"):
        program = capture(Writing(), torch.randn(2, 3))
    assert program.structure.dropped == ("dropout (Dropout)",)


# ---- regions with other settings


def test_regions_without_gradients_are_trained_like_the_rest() -> None:
    class Region(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.inner(x).relu()
                with torch.enable_grad():
                    x = x * 2
            with torch.autocast("cpu", enabled=False):
                a, b = x.chunk(3, 1)[:2]
            return self.outer(x) + a + b

    model = Region()
    program = capture(model, torch.randn(2, 3))
    assert all(name.startswith("aten.") for name in _calls(program))
    x = torch.randn(4, 3)
    assert torch.equal(program(x), model(x))
    program(x).sum().backward()
    assert all(p.grad is not None for p in program.parameters())
    assert [op.module for op in describe(program).ops if op.target == "aten.linear.default"] == ["inner", "outer"]


def test_a_region_of_lower_precision_is_kept() -> None:
    class Region(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                y = self.fc(x)
            return y.float()

    model = Region()
    program = capture(model, torch.randn(2, 3))
    x = torch.randn(4, 3)
    assert torch.equal(program(x), model(x))
    assert describe(program).barriers


# ---- constants of the code


def test_what_depends_on_nothing_is_computed_once() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 3)
            self.constant_0 = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            index = torch.zeros(4, 4, dtype=torch.long)
            index[1:, 1:] = torch.arange(3).unsqueeze(0) - torch.arange(3).unsqueeze(1) + 2
            index[0, 0:] = 5
            index[0:, 0] = 6
            return x + self.table(index.view(-1)) * self.constant_0

    model = Positions()
    program = capture(model, torch.randn(2, 16, 3))
    assert _calls(program) == ["aten.embedding.default", "aten.mul.Tensor", "aten.add.Tensor"]
    assert list(program.state_dict()) == list(model.state_dict())
    x = torch.randn(5, 16, 3)
    for twin in (program, copy.deepcopy(program), pickle.loads(pickle.dumps(program))):
        assert torch.equal(twin(x), model(x))


def test_memory_that_inputs_are_written_into_is_no_constant() -> None:
    class Canvas(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            canvas = torch.zeros(4)
            before = canvas + x.mean()
            canvas[1:] += 1
            canvas[0] = x.sum()
            return x + canvas + before

    model = Canvas()
    program = capture(model, torch.randn(2, 4))
    for size in (3, 3, 5):
        x = torch.randn(size, 4)
        assert torch.equal(program(x), model(x))


def test_memory_that_only_inputs_are_written_into_is_no_constant() -> None:
    class Canvas(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            canvas = torch.zeros(4)
            canvas[0] = x.sum()
            return x + canvas

    program = capture(Canvas(), torch.randn(2, 4))
    x = torch.randn(3, 4)
    assert torch.equal(program(x), Canvas()(x))


def test_a_constant_that_is_read_before_it_changes_is_none() -> None:
    class Early(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            offsets = torch.arange(4.0)
            first = x + offsets
            offsets.mul_(2)
            return first * offsets

    program = capture(Early(), torch.randn(2, 4))
    for _ in range(2):
        x = torch.randn(3, 4)
        assert torch.equal(program(x), Early()(x))


def test_random_numbers_are_no_constants() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(4)

    program = capture(Noise(), torch.randn(2, 4))
    assert not torch.equal(program(torch.zeros(2, 4)), program(torch.zeros(2, 4)))


# ---- free sizes


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.top = nn.Conv2d(3, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        top = self.top(x).relu()
        return self.head(torch.cat([top, self.up(self.down(top).relu())], 1))


def _pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


def _flattened() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 64, 2))


@pytest.mark.parametrize("build", [UNet, _pooled])
def test_a_free_size_where_the_network_allows_it(build: Any) -> None:
    model = build().eval()
    program = capture(model, torch.randn(1, 3, 16, 16), free_size=True)
    for twin in (program, copy.deepcopy(program), pickle.loads(pickle.dumps(program))):
        assert twin.structure.free == (frozenset({0, 2, 3}),)
        for shape in ((1, 3, 16, 16), (3, 3, 24, 20), (2, 3, 32, 64)):
            x = torch.randn(shape)
            assert torch.equal(twin(x), model(x))
    assert describe(program).shapes[describe(program).inputs[0]] == (1, 3, 16, 16)
    with pytest.raises(CaptureError, match=r"captured for \('batch', 3, 'any', 'any'\)"):
        program(torch.randn(2, 4, 16, 16))


def test_a_size_that_the_network_does_not_take_is_refused() -> None:
    program = capture(UNet().eval(), torch.randn(2, 3, 8, 8), free_size=True)
    with pytest.raises(
        CaptureError, match=r"\(2, 3, 8, 9\).* only sizes with .*inputs\[0\]\.shape\[3\].*resize or pad"
    ):
        program(torch.randn(2, 3, 8, 9))


def test_sizes_that_must_agree() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    program = capture(Sum(), (torch.randn(2, 1, 6), torch.randn(2, 1, 6)), free_size=True)
    x, y = torch.randn(2, 3, 1, 9)
    assert torch.equal(program(x, y), x + y)
    with pytest.raises(CaptureError, match=r"inputs\[1\]\.shape\[2\] == inputs\[0\]\.shape\[2\]"):
        program(x, torch.randn(3, 1, 8))


def test_a_network_that_fixes_its_size_keeps_it() -> None:
    model = _flattened()
    program = capture(model, torch.randn(2, 3, 8, 8), free_size=True)
    assert program.structure.free == (frozenset({0}),)
    x = torch.randn(5, 3, 8, 8)
    assert torch.equal(program(x), model(x))
    with pytest.raises(CaptureError, match=r"captured for \('batch', 3, 8, 8\)"):
        program(torch.randn(5, 3, 16, 16))


def test_sizes_are_fixed_unless_asked_for() -> None:
    program = capture(UNet(), torch.randn(2, 3, 8, 8))
    assert program.structure.free == (frozenset({0}),)
    assert program.structure.limits == ()


# ---- nested results


class Pair(NamedTuple):
    first: Tensor
    rest: dict[str, Tensor]


@dataclass
class Record:
    value: Tensor
    pair: Pair
    none: None = None


pytree.register_dataclass(Record, serialized_type_name="tests.Record")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch's own, about what it pickles
def test_results_in_records_keep_their_types() -> None:
    class Nested(nn.Module):
        def forward(self, x: Tensor, pair: Pair) -> Record:
            return Record(x + 1, Pair(x * pair.first, {"b": -x, "a": pair.rest["z"]}))

    pair = Pair(torch.randn(2, 3), {"z": torch.randn(2, 3)})
    program = capture(Nested(), (torch.randn(2, 3), pair))
    x, pair = torch.randn(5, 3), Pair(torch.randn(5, 3), {"z": torch.randn(5, 3)})
    for twin in (program, copy.deepcopy(program), pickle.loads(pickle.dumps(program))):
        result = twin(x, pair)
        assert isinstance(result, Record)
        assert isinstance(result.pair, Pair)
        assert list(result.pair.rest) == ["b", "a"]
        assert torch.equal(result.value, x + 1)
        assert torch.equal(result.pair.first, x * pair.first)
        assert torch.equal(result.pair.rest["a"], pair.rest["z"])
        assert result.none is None


# ---- frozen parameters


def test_freezing_adds_up() -> None:
    program = capture(nn.Linear(3, 2), torch.randn(2, 3))
    before = copy.deepcopy(program)
    program.freeze(["weight"])
    program.freeze({"bias"})
    assert program.structure.frozen == {"weight", "bias"}
    assert before.structure.frozen == frozenset()
    assert copy.deepcopy(program).structure.frozen == {"weight", "bias"}
