"""Time and peak memory of one search step over one float training step with BatchNorm: ResNet-8, batch 128.

Three nets, steps interleaved in one process: the float network; the search with the fused mixture; the search with a
straightforward mixture, which keeps a stack of quantised copies and composes its straight-through estimators from
autograd ops. Memory is the growth of the resident set over the first steps, each net in a process of its own.

    python benchmarks/search_step.py [--threads N] [--rounds N] [--batch N]
"""

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerobit.cost import Size
from zerobit.cost.price import Budget
from zerobit.quant.slot import AbstractWeightGrid, ActivationSlot
from zerobit.search.attach import SearchNet, attach
from zerobit.search.methods.softmax import ChannelSoftmax
from zerobit.zoo.models import resnet8

_KINDS = ("float", "fused", "stack")


def stacked_mix(grid: AbstractWeightGrid, flat: Tensor, choice: Tensor) -> Tensor:
    """Build every quantised copy of a weight, stack them and sum."""
    steps = grid.steps(flat)
    copies = []
    for p in range(choice.shape[1]):
        scaled = torch.clamp(flat / steps[:, p, None], grid.low[p], grid.high[p])
        copies.append(steps[:, p, None] * (scaled + (scaled.round() - scaled).detach()))
    return (torch.stack(copies, 1) * choice[:, :, None]).sum(1)


def composed_quantize(slot: ActivationSlot, x: Tensor) -> Tensor:
    """Fake quantisation composed of autograd ops."""
    step, levels = slot.log_step.exp()[0], slot.formats[0]
    scaled = torch.clamp(x / step, levels.low, levels.high)
    return step * (scaled + (scaled.round() - scaled).detach())


def make_step(kind: str, batch: int) -> Callable[[], None]:
    """One training step of a kind, as a function."""
    torch.manual_seed(0)
    x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (batch,))
    model = resnet8().to(memory_format=torch.channels_last)
    if kind == "float":
        optimizer = torch.optim.Adam(model.train().parameters(), lr=1e-3)
        return lambda: _float_step(model, optimizer, x, y)
    net = attach(model.eval(), x[:32], ChannelSoftmax(start_bits=4)).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(net.param_groups(1e-3))
    if kind == "stack":
        _replace(net)
    price = Budget(Size(), "25%")
    return lambda: _search_step(net, price, optimizer, x, y)


def _replace(net: SearchNet) -> None:
    """Give a net's slots the straightforward arithmetic."""
    for module in net.modules():
        if isinstance(module, AbstractWeightGrid):
            module.mix = partial(stacked_mix, module)  # type: ignore[method-assign]
        elif isinstance(module, ActivationSlot):
            module.forward = partial(composed_quantize, module)  # type: ignore[method-assign]


def _float_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def _search_step(net: SearchNet, price: Budget, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    (F.cross_entropy(net(x), y) + price(net)).backward()
    optimizer.step()
    price.update(net)


def measure_time(rounds: int, batch: int) -> dict[str, float]:
    """Median seconds of a step of each kind, interleaved."""
    steps = {kind: make_step(kind, batch) for kind in _KINDS}
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {kind: [] for kind in steps}
    for _ in range(rounds):
        for kind, step in steps.items():
            start = time.perf_counter()
            step()
            times[kind].append(time.perf_counter() - start)
    return {kind: statistics.median(t) for kind, t in times.items()}


def measure_memory(kind: str, batch: int, threads: int) -> int:
    """Growth of the peak resident set over three steps, in kB, in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", kind, "--batch", str(batch), "--threads", str(threads)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--memory-of", choices=_KINDS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        step = make_step(args.memory_of, args.batch)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(3):
            step()
        sys.stdout.write(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before}\n")
        return
    memory = {kind: measure_memory(kind, args.batch, args.threads) for kind in _KINDS}
    times = measure_time(args.rounds, args.batch)
    sys.stdout.write(
        f"ResNet-8, batch {args.batch}, {args.threads} threads, median of {args.rounds} interleaved steps; "
        f"torch {torch.__version__}, {platform.machine()}\n"
    )
    sys.stdout.write(f"{'step':8}{'ms':>10}{'x float':>10}{'peak MB':>10}{'x float':>10}\n")
    for kind in _KINDS:
        sys.stdout.write(
            f"{kind:8}{1e3 * times[kind]:10.1f}{times[kind] / times['float']:10.2f}"
            f"{memory[kind] / 1024:10.1f}{memory[kind] / memory['float']:10.2f}\n"
        )


if __name__ == "__main__":
    main()
