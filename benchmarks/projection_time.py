"""Time of the discrete projection: from learnt preferences to widths and units within one limit or several.

Random preferences, the same every time; the median of several projections to each budget, in CPU seconds of the
process (`time.process_time`), which other work on the machine moves less than the clock. A budget is a share of the
network with all weights at 8 bit. "spent" is the share of the limits that the projection uses.

    python benchmarks/projection_time.py [--networks NAME ...] [--rounds N]

Exits with 1 if a median is over its target, or a limit is not kept.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Sequence

import torch

from zerobit.cost.parse import make_price, parse_budgets
from zerobit.cost.price import Limit
from zerobit.cost.usage import usage
from zerobit.cut.choices import Bools, Offer
from zerobit.cut.decide import read_offer
from zerobit.cut.project import project
from zerobit.graph.ir import Graph
from zerobit.search.attach import attach
from zerobit.search.methods.softmax import ChannelSoftmax
from zerobit.zoo.models import model

#: Seconds, by network.
TARGETS = {"mobilenet_v2": 2.0, "resnet8": 3.0}
BUDGETS = (
    ("size=25%",),
    ("bops=30%",),
    ("mpic=40%",),
    ("ne16=50%",),
    ("ram=60%",),
    ("size=40%", "ne16=50%"),
    ("size=40%", "ne16=50%", "ram=60%"),
)


def make_offer(name: str) -> tuple[Graph, Offer, Bools]:
    """A network of the zoo in search, with random preferences."""
    torch.manual_seed(0)
    entry = model(name)
    net = attach(entry.build(10).eval(), torch.zeros(1, *entry.input_shape), ChannelSoftmax())
    with torch.no_grad():
        for parameter_name, parameter in net.named_parameters():
            if parameter_name.endswith(("gate", "width")):
                parameter.add_(2 * torch.randn(parameter.shape))
    return net.graph, *read_offer(net)


def measure(
    graph: Graph, limits: Sequence[Limit], offer: Offer, keep: Bools, rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of each round, and the share of each limit that is used."""
    seconds: list[float] = []
    for _ in range(rounds):
        start = time.process_time()
        found = project(graph, limits, offer, keep)
        seconds.append(time.process_time() - start)
    use = usage(graph, found.net_bits())
    return seconds, [float(limit.cost(use)) / limit.amount for limit in limits]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sys.stdout.write(f"1 thread, {args.rounds} rounds; torch {torch.__version__}, {platform.machine()}\n")
    failed = False
    for name in args.networks:
        graph, offer, keep = make_offer(name)
        sys.stdout.write(f"\n{name}: {len(offer.keep_score):,} units, {len(offer.width_score):,} channels\n")
        sys.stdout.write(f"{'budget':32}{'median s':>10}{'largest s':>11}{'target s':>10}  spent\n")
        for budget in BUDGETS:
            limits = make_price(parse_budgets(budget), None, None).limits(graph)
            seconds, spent = measure(graph, limits, offer, keep, args.rounds)
            median = statistics.median(seconds)
            failed |= median > TARGETS[name] or max(spent) > 1
            shares = ", ".join(f"{share:.2%}" for share in spent)
            sys.stdout.write(
                f"{' '.join(budget):32}{median:10.2f}{max(seconds):11.2f}{TARGETS[name]:10.0f}  {shares}\n"
            )
            sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
