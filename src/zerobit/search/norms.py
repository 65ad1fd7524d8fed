"""How large the units of a channel group are; their first measure of importance."""

import torch
from torch import Tensor

from zerobit.graph.ir import ChannelGroup
from zerobit.graph.rows import to_rows
from zerobit.search.net import SearchNet


@torch.no_grad()
def unit_norms(net: SearchNet, group: ChannelGroup) -> Tensor:
    """[units], root of the summed squared weights that make each unit."""
    total = torch.zeros(group.units, dtype=torch.float64)
    for name, layout in net.graph.rows.items():
        unit = torch.as_tensor(net.graph.row_units(name).get(group.name, ()), dtype=torch.int64)
        if len(unit):
            squares = to_rows(net.tensor(name).double().cpu(), layout).square().sum(1)
            total.index_add_(0, unit[unit >= 0], squares[unit >= 0])
    return total.sqrt()
