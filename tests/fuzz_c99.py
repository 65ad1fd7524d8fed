"""Random networks through lowering and C, many in one program, under the sanitizers; every tensor against the twin.

    python tests/fuzz_c99.py --networks 500 --seed 0

Networks are drawn as tests/laws/test_random_networks.py draws them, get random bits and pruned channels, and count when
no op of them needs float. Exits with 1 at the first finding, and says how to get it again.
"""

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from rich.progress import track

from cases import randomised
from searches import scramble
from strategies import Recipe, RecipeNet, recipes
from zerobit.cut.apply import apply
from zerobit.cut.decide import decide
from zerobit.errors import CaptureError, ExportError, ZerobitError
from zerobit.export.c99.library import Library
from zerobit.export.c99.toolchain import HostProgram
from zerobit.integer.ir import IntegerGraph
from zerobit.integer.lower import lower
from zerobit.integer.twins.fixed31 import run_fixed31
from zerobit.search.attach import attach
from zerobit.search.methods.softmax import ChannelSoftmax

_TOGETHER = 25  # networks in one translation unit
_WIDTHS = ((0, 2, 4, 8), (0, 2, 3, 8), (2, 4, 8), (8,))
_ACTIVATIONS = ((8,), (4, 8), (2, 4, 8))


def drawn(count: int, first_seed: int) -> list[Recipe]:
    """Different recipes."""
    found: dict[str, Recipe] = {}

    @seed(first_seed)
    @settings(max_examples=count, phases=[Phase.generate], database=None, deadline=None, derandomize=False,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(recipes())
    def collect(recipe: Recipe) -> None:
        found[repr(recipe)] = recipe

    collect()
    return list(found.values())


#: Why networks are left out, each of which is said before anything is written; all other errors are findings.
_REFUSALS = ("spatial dimensions", "ratio of two scales", "of the kernel that makes")
#: Share of networks without float that may be refused.
_MOST_REFUSED = 0.1


def lowered(recipe: Recipe, number: int) -> IntegerGraph | None:
    """A random plan for it as integers; None where its values are not finite, or it has nothing to compress."""
    torch.manual_seed(number)
    model = randomised(RecipeNet(recipe)).eval()
    x = torch.randn(4, *recipe.size)
    with torch.no_grad():
        if not model(x).isfinite().all():
            return None
    method = ChannelSoftmax(
        weight_bits=_WIDTHS[number % len(_WIDTHS)], activation_bits=_ACTIVATIONS[number % len(_ACTIVATIONS)]
    )
    try:
        net = scramble(attach(model, x, method), number)
        return lower(apply(net, decide(net)).eval())
    except CaptureError:
        return None
    except ZerobitError as error:
        if "sizes must be 1 or more" not in str(error):
            raise
        return None  # one number per sample: integer tensors have a dimension beside the batch


def libraries(count: int, first_seed: int) -> Iterator[Library]:
    """Networks without float, as C.

    Raises:
        AssertionError: more networks are refused than should be.
    """
    made, refused, round_ = 0, Counter[str](), 0
    while made < count:
        for recipe in drawn(4 * count, first_seed + round_):
            graph = lowered(recipe, first_seed + made)
            if graph is None or graph.islands:
                continue
            library = Library(graph, f"net{made}", {"recipe": repr(recipe)})
            if reason := refusal(library):
                refused[reason] += 1
                assert refused.total() <= max(5, _MOST_REFUSED * (made + refused.total())), refused
                continue
            yield library
            made += 1
            if made == count:
                return
        round_ += 1


def refusal(library: Library) -> str:
    """Why C does not take a network; "" if it does."""
    try:
        _ = library.program
    except ExportError as error:
        reasons = [reason for reason in _REFUSALS if reason in str(error)]
        if not reasons:
            raise
        return reasons[0]
    return ""


def check(batch: list[Library]) -> int:
    """Compare a program's networks with their twins; tensors compared.

    Raises:
        AssertionError: a tensor differs; names network and tensor.
        ExportError: a sanitizer stopped the program, or the compiler refused the code.
    """
    tensors = 0
    with HostProgram(batch, sanitize=True) as program:
        for library in batch:
            rng = np.random.default_rng(0)
            x = {name: rng.normal(0, 3, (8, *shape)).astype(np.float32) for name, shape in library.graph.inputs.items()}
            found, wanted = program.run(library, x), run_fixed31(library.graph, x, keep=True)
            for name, values in found.items():
                assert np.array_equal(values, wanted[name]), f"{name} of {library.metadata['recipe']}"
            tensors += len(found)
    return tensors


def main() -> int:
    """Draw, build, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    tensors, kernels, batch = 0, Counter[str](), list[Library]()
    drawing = track(libraries(args.networks, args.seed), "networks", total=args.networks)
    try:
        for number, library in enumerate(drawing, 1):
            batch.append(library)
            kernels.update(step.kernel for step in library.program.steps)
            if len(batch) == _TOGETHER or number == args.networks:
                tensors += check(batch)
                batch = []
    except (AssertionError, ZerobitError) as error:
        print(f"FINDING with --seed {args.seed} --networks {args.networks}: {type(error).__name__}: {error}")
        return 1
    print(f"{args.networks} networks, {tensors} tensors: no finding")
    print(", ".join(f"{kernel} {count}" for kernel, count in kernels.most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
