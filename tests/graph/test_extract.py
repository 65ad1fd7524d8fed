"""A part of a program computes what the program computes there."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zerobit.graph.capture import capture
from zerobit.graph.describe import describe
from zerobit.graph.edits import insert_slot
from zerobit.graph.extract import adaptive_max_pool, extract, reads_of
from zerobit.graph.ir import Rows
from zerobit.graph.program import slot_name
from zerobit.graph.rows import to_rows


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.LSTM(6, 4, batch_first=True)
        self.shift = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        y, _ = self.two(torch.sin(x))
        return y + self.shift + torch.zeros(x.shape[0], 1, 1) * x[..., :4]


def _values(program: Any, x: Tensor) -> dict[str, Any]:
    """Every activation, from a run node by node."""
    values: dict[str, Any] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: Any) -> Any:
            values[n.name] = super().run_node(n)
            return values[n.name]

    Recorder(program, graph=program.code).run(x, enable_io_processing=False)
    return values


@pytest.mark.parametrize("batch", [1, 5])
def test_part_computes_what_the_program_does(batch: int) -> None:
    program = capture(Net(), torch.randn(2, 3, 6))
    insert_slot(program, "sin", slot_name("activations", "sin"), nn.Identity())
    graph = describe(program)
    names = [op.name for op in graph.ops]
    first = names.index("linear") + 1
    inside, weight = names[first:], "two.weight_ih_l0"
    reads = reads_of(program, graph.shapes)
    outside = list(dict.fromkeys(t for name in inside for t in reads[name] if t not in inside))
    assert outside[0] == "linear"
    rows = Rows(0)
    part = extract(program, inside, outside, graph.outputs, {weight: (graph.parameters[weight], rows)})
    x = torch.randn(batch, 3, 6)
    with torch.no_grad():
        values = {**_values(program, x), "x": x}
        (found,) = part(*(values[name] for name in outside), to_rows(program.tensors()[weight], rows))
        assert torch.equal(found, program(x))
        (other,) = part(*(values[name] for name in outside), torch.zeros_like(program.tensors()[weight]))
    assert not torch.equal(found, other)  # the weight is an argument, not a copy
    stored = dict(part.named_buffers())
    assert all(tensor.shape != program.tensors()[weight].shape for tensor in stored.values())


def test_sizes_count_as_reads() -> None:
    program = capture(Net(), torch.randn(2, 3, 6))
    reads = reads_of(program, describe(program).shapes)
    (zeros,) = (name for name in reads if name.startswith("zeros") and len(describe(program).shapes.get(name, ())) == 3
                and describe(program).shapes[name][1:] == (1, 1))  # fmt: skip
    assert set(reads[zeros]) & {"x", "linear"}


@pytest.mark.parametrize("sizes", [(3, 2), (7, 4), (1, 5)])
def test_adaptive_max_pool_is_that_of_torch(sizes: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 7, 9)
    expected, _ = torch.ops.aten.adaptive_max_pool2d.default(x, sizes)
    assert torch.equal(adaptive_max_pool(x, sizes)[0], expected)
