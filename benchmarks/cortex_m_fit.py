"""Fits the cost `cortex_m` to counts of QEMU: writes docs/cortex_m.md, with the constants that cost/devices has.

Random layers are exported as C, several to an image, and counted on a Cortex-M4. Constants are those >= 0 of least
squared relative error on two thirds of the images. Errors are those on the other images, and on whole networks, none of
which was fitted; only the bytes of code are those of networks, as an image of layers has other kernels in it.

    PYTHONPATH=src:tests python benchmarks/cortex_m_fit.py
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
from cortex_m_counts import LAYERS, TARGET, Counted, CountedImage, CountedNetwork, count_layers, count_network
from results_common import made
from scipy.optimize import nnls
from scipy.stats import spearmanr

from zerobit.cost.base import Usage
from zerobit.cost.devices.cortex_m import Constants, Flash, Instructions
from zerobit.formats import GRID
from zerobit.report import write_text

FILE = Path(__file__).parents[1] / "docs" / "cortex_m.md"
#: SysTick advances every 40 instructions, so that what is shorter than this is known to 1 % at best.
_SHORTEST = 4_000
_NETWORKS = ("digits", "resnet8", "dscnn")  # the bytes of code are those of the first
_PLANS = 4  # random ones for each


# ---------------------------------------------------------------------------------------------- fitting


def fit(layers: Sequence[Counted]) -> Constants:
    """Constants >= 0 of least squared relative error, with four digits."""
    names = [field.name for field in fields(Constants)]
    units = [Instructions(Constants(**{name: 1})) for name in names]
    design = np.array([[float(unit(x.use)) / x.instructions for unit in units] for x in layers])
    length = np.linalg.norm(design, axis=0)
    found = nnls(design / length, np.ones(len(layers)))[0] / length
    return Constants(**{name: float(f"{value:.4g}") for name, value in zip(names, found, strict=True)})


def errors(layers: Sequence[Counted], constants: Constants) -> np.ndarray:
    """[N], predicted over counted, less 1."""
    cost = Instructions(constants)
    return np.array([float(cost(layer.use)) / layer.instructions - 1 for layer in layers])


def fit_code(networks: Sequence[CountedNetwork], call: int) -> int:
    """Bytes that are left of networks of mixed widths, on average."""
    cost = Flash(call=call, code=0)
    return round(float(np.mean([n.flash - float(cost(n.use)) for n in networks if n.seed is not None])))


def fit_call(images: Sequence[CountedImage]) -> int:
    """Bytes for each call of a kernel: what is left of images after weights and channels, by least squares."""
    rest = [image.flash - _stored(image.use) for image in images]
    calls = [[float(_calls(image.use)), 1.0] for image in images]
    return round(float(np.linalg.lstsq(np.array(calls), np.array(rest), rcond=None)[0][0]))


def _stored(use: Usage) -> float:
    """Bytes of rows, each of whole bytes, and of what channels need: 9 for each, 2 more where widths are mixed."""
    result = 0.0
    for weight in use.weights:
        channels = float(weight.counts.sum())
        widths = [b for b, n in zip(GRID, weight.counts.tolist(), strict=True) if n]
        result += channels * (9 + 2 * (len(widths) > 1))
        for bits, number in zip(GRID, weight.counts.tolist(), strict=True):
            result += number * math.ceil(float(weight.fan_in) * bits / 8)
    return result


def _calls(use: Usage) -> int:
    return sum(1 if layer.depthwise else layer.groups for layer in use.layers)


# ---------------------------------------------------------------------------------------------- the page


def layer_table(layers: Sequence[Counted], constants: Constants) -> str:
    """Errors by kind of layer."""
    lines = ["| layers | number | median error | 95 % below | mean | rank correlation |", "|---|---|---|---|---|---|"]
    forms = sorted({layer.kinds[0] for layer in layers})
    others = sorted({kind for layer in layers for kind in layer.kinds[1:]})
    for kind in (*forms, "all", *(f"all, {kind}" for kind in others)):
        chosen = [layer for layer in layers if kind == "all" or kind.removeprefix("all, ") in layer.kinds]
        error = errors(chosen, constants)
        counted = [layer.instructions for layer in chosen]
        rank = spearmanr(counted, counted * (error + 1)).statistic
        size = np.abs(error)
        lines.append(
            f"| {kind} | {len(chosen)} | {np.median(size):.2%} | {np.quantile(size, 0.95):.1%} | {error.mean():+.2%} "
            f"| {rank:.4f} |"
        )
    return "\n".join(lines)


def network_table(networks: Sequence[CountedNetwork], cost: Instructions, flash: Flash) -> str:
    """Whole images against both costs."""
    lines = [
        "| network | instructions | predicted | error in layers | ops that are no layers | error in all | flash, B "
        "| predicted | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for n in networks:
        plan = "8 bit" if n.seed is None else f"random {n.seed}"
        found, size = float(cost(n.use)), float(flash(n.use))
        lines.append(
            f"| {n.name}, {plan} | {n.instructions:,} | {found:,.0f} | {found / n.in_layers - 1:+.2%} "
            f"| {1 - n.in_layers / n.instructions:.2%} | {found / n.instructions - 1:+.2%} | {n.flash:,} | {size:,.0f} "
            f"| {size / n.flash - 1:+.2%} |"
        )
    return "\n".join(lines)


def page(images: Sequence[CountedImage], networks: Sequence[CountedNetwork], seed: int) -> str:
    """The text of docs/cortex_m.md."""
    ours = [image for i, image in enumerate(images) if i % 3]
    theirs = [layer for i, image in enumerate(images) if i % 3 == 0 for layer in image.layers]
    mine = [layer for image in ours for layer in image.layers]
    constants, call = fit(_long(mine)), fit_call(ours)
    flash = Flash(call=call, code=fit_code([n for n in networks if n.name == _NETWORKS[0]], call))
    rows = "\n".join(f"| `{f.name}` | {getattr(constants, f.name):g} |" for f in fields(Constants))
    return f"""# What the cost of a Cortex-M is fitted to

`cortex_m` counts instructions of the C that `zerobit export` writes, `cortex_m.flash` its bytes. Counted by QEMU
({TARGET}, -O2): {len(images)} images of {LAYERS} random layers each. Constants are those of least squared relative
error on {len(_long(mine))} layers of two thirds of the images. Layers of less than {_SHORTEST:,} instructions are left
out: the clock advances every 40.

| constant | instructions |
|---|---|
{rows}

Bytes of flash: packed weights, 11 for each channel, {flash.call} (`call`) for each group of a layer, {flash.code}
(`code`) once. The former is fitted to the same images, the latter is the mean over "{_NETWORKS[0]}" at random widths.

## Layers that were not fitted

Error: predicted instructions against counted ones.

{layer_table(_long(theirs), constants)}

Not in the cost: results take more instructions where they are shifted by less than 33, as they are in layers with few
weights of 2 bits per channel; and fewer where a layer has several widths, as the places of its channels are in a table.

## Whole networks

All weights at 8 bits, or random widths with random channels removed. Ops that are no layers (sums, pools, the input's
copy) are not in the cost. The cost of flash charges 2 B per channel for a table of places, which networks of one width
do not have.

{network_table(networks, Instructions(constants), flash)}

Made by `PYTHONPATH=src:tests python benchmarks/cortex_m_fit.py --images {len(images)} --seed {seed}`.

{made(seed)}
"""


def _long(layers: Sequence[Counted]) -> list[Counted]:
    return [layer for layer in layers if layer.instructions >= _SHORTEST]


def main() -> None:
    """Count, fit, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=180)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    images = list(count_layers(arguments.images, arguments.seed))
    networks = [count_network(name, seed) for name in _NETWORKS for seed in (None, *range(1, _PLANS + 1))]
    write_text(FILE, page(images, networks, arguments.seed))


if __name__ == "__main__":
    main()
