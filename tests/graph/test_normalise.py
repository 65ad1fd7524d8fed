"""Every way to split, stack and transpose is captured as slice, select, cat, unsqueeze and permute."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zerobit.graph.capture import FloatProgram, capture

PLAIN = {f"aten.{name}" for name in ("slice.Tensor", "select.int", "cat.default", "unsqueeze.default")} | {
    f"aten.{name}" for name in ("permute.default", "squeeze.dims", "reshape.default")
}


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def _calls(program: FloatProgram) -> set[str]:
    return {str(n.target) for n in program.code.nodes if n.op == "call_function"}


def _compare(program: FloatProgram, function: Callable[[Tensor], Any], shape: tuple[int, ...]) -> None:
    for batch in (2, 1, 5):
        x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch))
        expected, actual = function(x), program(x)
        if isinstance(expected, Tensor):
            expected, actual = [expected], [actual]
        assert [tuple(t.shape) for t in actual] == [tuple(t.shape) for t in expected]
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


VIEWS: dict[str, Callable[[Tensor], Any]] = {
    "split": lambda x: x.split(3, 1),
    "split, last shorter": lambda x: x.split(4, 1)[-1],
    "split by sizes": lambda x: x.split([1, 2, 3], dim=-3),
    "split_with_sizes": lambda x: torch.split_with_sizes(x, [4, 2], 1),
    "chunk": lambda x: x.chunk(2, 1),
    "chunk, last shorter": lambda x: x.chunk(4, -3),
    "chunk of fewer": lambda x: x.chunk(7, 2),
    "unsafe_chunk": lambda x: torch.unsafe_chunk(x, 3, 1),
    "tensor_split": lambda x: x.tensor_split(4, 1),
    "tensor_split at": lambda x: x.tensor_split([1, 5, 4, 9], 1),
    "unbind": lambda x: x.unbind(2),
    "unbind, last": lambda x: x.unbind(-1)[1],
    "stack": lambda x: torch.stack([x, x * 2, x], 1),
    "stack at the end": lambda x: torch.stack([x, -x], -1),
    "hstack": lambda x: torch.hstack([x, x * 2]),
    "column_stack": lambda x: torch.column_stack([x, x * 2]),
    "vstack": lambda x: torch.vstack([x, x * 2]),
    "dstack": lambda x: torch.dstack([x, x * 2]),
    "concat": lambda x: torch.concat([x, x * 2], -1),
    "concatenate": lambda x: torch.concatenate([x, x * 2], axis=1),
    "narrow": lambda x: x.narrow(1, 2, 3),
    "narrow from the end": lambda x: x.narrow(-1, -2, 2),
    "narrow the batch": lambda x: x.narrow(0, 0, 1),
    "transpose": lambda x: x.transpose(1, 2),
    "transpose from the end": lambda x: x.transpose(-1, 1),
    "swapaxes": lambda x: x.swapaxes(1, 3),
    "swapdims": lambda x: x.swapdims(3, 2),
    "movedim": lambda x: x.movedim(1, -1),
    "movedim of several": lambda x: x.movedim((1, 2), (3, 1)),
    "moveaxis": lambda x: torch.moveaxis(x, 3, 1),
    "mT": lambda x: x.mT,
    "t": lambda x: x.flatten(1)[0:1].t(),
    "T": lambda x: x.flatten(1)[0:1].T,
    "unflatten": lambda x: x.unflatten(1, (3, 2)),
    "unflatten with a free size": lambda x: x.unflatten(-3, (-1, 3)),
    "view with a computed size": lambda x: x.view(x.shape[0] * 2, 3, 4, 2),
    "reshape with the batch": lambda x: x.reshape(x.shape[0], 2, 3, -1),
    "squeeze": lambda x: x[:, :1, :, :1].squeeze(1).squeeze(-1),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_keeps_its_values_and_takes_the_plain_form(name: str) -> None:
    program = capture(Function(VIEWS[name]), torch.randn(2, 6, 4, 2))
    _compare(program, VIEWS[name], (6, 4, 2))
    arithmetic = {"aten.mul.Tensor", "aten.neg.default", "aten.flatten.using_ints", "aten.squeeze.dim"}
    assert _calls(program) - arithmetic <= PLAIN


def test_a_squeeze_of_everything_keeps_the_batch() -> None:
    program = capture(Function(lambda x: x[:, :1, :, :1].squeeze()), torch.randn(2, 6, 4, 2))
    assert "aten.squeeze.default" not in _calls(program)
    assert program(torch.randn(1, 6, 4, 2)).shape == (1, 4)
    assert program(torch.randn(3, 6, 4, 2)).shape == (3, 4)


def test_pieces_of_pieces_and_pieces_joined_again() -> None:
    def blocks(x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        rows = torch.stack(first.unbind(1), -1)
        return torch.cat([rows.transpose(1, 3).movedim(1, -1).flatten(1), second.flatten(1)], 1)

    program = capture(Function(blocks), torch.randn(2, 6, 4, 2))
    _compare(program, blocks, (6, 4, 2))
    assert _calls(program) <= PLAIN | {"aten.flatten.using_ints"}


def test_sizes_that_depend_on_the_batch_are_left_alone() -> None:
    def halves(x: Tensor) -> Tensor:
        return torch.cat([x, -x]).tensor_split(2, 0)[1] * 2

    program = capture(Function(halves), torch.randn(2, 3))
    assert "aten.tensor_split.sections" in _calls(program)
    _compare(program, halves, (3,))


def test_a_result_that_lists_the_pieces() -> None:
    def pieces(x: Tensor) -> dict[str, Any]:
        return {"all": x.chunk(3, 1), "one": x.chunk(3, 1)[0]}

    program = capture(Function(pieces), torch.randn(2, 6))
    x = torch.randn(4, 6)
    result = program(x)
    assert all(torch.equal(a, b) for a, b in zip(result["all"], x.chunk(3, 1), strict=True))
    assert torch.equal(result["one"], x[:, :2])
    assert _calls(program) == {"aten.slice.Tensor"}


def test_transposed_parameters() -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 2))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.t().mT

    model = Transposed()
    program = capture(model, torch.randn(2, 3))
    x = torch.randn(5, 3)
    assert torch.equal(program(x), model(x))
    assert _calls(program) == {"aten.permute.default", "aten.matmul.default"}


def test_no_size_is_kept_with_the_code() -> None:
    program = capture(Function(lambda x: x.chunk(2, 1)[0]), torch.randn(2, 6))
    assert {key for node in program.code.nodes for key in node.meta} <= {"nn_module_stack"}


@pytest.mark.parametrize(
    ("pool", "shape", "calls"),
    [
        (lambda x: nn.functional.adaptive_max_pool2d(x, (3, 2)), (4, 6, 8), {"aten.max_pool2d.default"}),
        (lambda x: nn.functional.adaptive_max_pool1d(x, 1), (4, 6), {"aten.max_pool1d.default"}),
        (lambda x: nn.functional.adaptive_max_pool3d(x, 2), (4, 2, 4, 6), {"aten.max_pool3d.default"}),
        (lambda x: nn.functional.adaptive_max_pool2d(x, 4), (4, 6, 8), {"aten.adaptive_max_pool2d.default"}),
        (
            lambda x: nn.functional.adaptive_max_pool2d(x, 2, return_indices=True),
            (4, 6, 8),
            {"aten.adaptive_max_pool2d.default"},
        ),
        (lambda x: x.max(1, keepdim=True)[0], (4, 6), {"aten.amax.default"}),
        (lambda x: x.min(-1).values, (4, 6), {"aten.amin.default"}),
        (lambda x: x.max(1), (4, 6), {"aten.max.dim"}),
    ],
)
def test_the_largest_of_windows_and_dimensions_has_one_spelling(
    pool: Callable[[Tensor], Any], shape: tuple[int, ...], calls: set[str]
) -> None:
    """Where windows are unequal, or the positions are asked for, it stays."""
    program = capture(Function(pool), (torch.randn(2, *shape),))
    assert {call for call in _calls(program) if "max" in call or "min" in call} == calls
    _compare(program, pool, shape)
