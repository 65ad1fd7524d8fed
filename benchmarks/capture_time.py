"""Time from a model to its graph: MobileNetV2 of width 1 at 224 pixels, batch 1, in float32.

`capture` is torch.export and all passes after it; `describe` the whole graph, with the shapes that it records by a run
of the network; `groups` the channel groups in it, without the shapes. One forward of the model stands beside them.
Steps interleaved in one process; the first round, which also loads what torch loads when it is first used, is listed
on its own.

    python benchmarks/capture_time.py [--threads N] [--rounds N]

Exits with 1 if a median is over its target.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch

from zerobit.graph.capture import capture
from zerobit.graph.describe import describe
from zerobit.graph.groups import find_groups
from zerobit.zoo.models import mobilenet_v2

#: Seconds on two cores.
TARGETS = {"capture": 15.0, "groups": 1.0}


def make_steps() -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    torch.manual_seed(0)
    model, image = mobilenet_v2().eval(), torch.randn(1, 3, 224, 224)
    program = capture(model, image)
    graph = describe(program)
    return {
        "forward": torch.no_grad()(lambda: model(image)),
        "capture": lambda: capture(model, image),
        "describe": lambda: describe(program),
        "groups": lambda: find_groups(graph),
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    steps = make_steps()
    first = time.perf_counter() - start
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    sys.stdout.write(
        f"MobileNetV2 1.0, 224 pixels, {args.threads} threads, {args.rounds} interleaved rounds; "
        f"torch {torch.__version__}, {platform.machine()}\n"
        f"first capture and describe: {first:.2f} s\n"
        f"{'step':10}{'median s':>10}{'largest s':>11}{'target s':>10}\n"
    )
    for name, seconds in times.items():
        target = f"{TARGETS[name]:.0f}" if name in TARGETS else "-"
        sys.stdout.write(f"{name:10}{statistics.median(seconds):10.3f}{max(seconds):11.3f}{target:>10}\n")
    return int(any(statistics.median(times[name]) > target for name, target in TARGETS.items()))


if __name__ == "__main__":
    sys.exit(main())
