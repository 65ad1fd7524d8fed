"""Every runtime of this machine computes what its twin computes, on the networks of the zoo with random plans."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from cases import randomised
from fuzz_c99 import check, libraries
from searches import scramble
from zerobit.cut.apply import apply
from zerobit.cut.decide import decide
from zerobit.deployment import runtimes
from zerobit.export.runtimes.base import AbstractRuntime, Exported
from zerobit.export.runtimes.c_library import EmulatedC, HostC
from zerobit.integer.ir import IntegerGraph
from zerobit.integer.lower import lower
from zerobit.search.attach import attach
from zerobit.search.methods.softmax import ChannelSoftmax
from zerobit.zoo.models import model as zoo_model

#: Network -> whether it is in every run.
NETWORKS = {"digits": True, "resnet8": True, "dscnn": True, "vgg7": False, "resnet18": False, "mobilenet_v2": False}
#: Microcontrollers beside the M4 get the small ones.
SMALL = ("digits", "dscnn")
ALL = {runtime.title: runtime for runtime in runtimes()}


@cache
def lowered(name: str, activation_bits: tuple[int, ...] = (8,)) -> IntegerGraph:
    """The network with widths and pruned channels by chance."""
    definition = zoo_model(name)
    torch.manual_seed(0)
    model = randomised(definition.build(10)).eval()
    method = ChannelSoftmax(activation_bits=activation_bits)
    net = scramble(attach(model, torch.randn(4, *definition.input_shape), method), 1)
    return lower(apply(net, decide(net)).eval(), [0.1] * definition.input_shape[0], [0.9] * definition.input_shape[0])


def exported(name: str, folder: Path, count: int, activation_bits: tuple[int, ...] = (8,)) -> Exported:
    graph = lowered(name, activation_bits)
    (shape,) = graph.inputs.values()
    x = np.random.default_rng(0).normal(0, 1, (count, *shape)).astype(np.float32)
    return Exported(graph, folder, dict.fromkeys(graph.inputs, x))


def assert_equal(runtime: AbstractRuntime, network: Exported) -> None:
    if reason := runtime.missing(network):
        pytest.skip(reason)
    rows = runtime.rows(network)
    assert [row for row in rows if row.differences] == []
    made = {tensor.name for tensor in network.graph.tensors}
    assert len({row.layer for row in rows} & made) > len(made) / 2
    assert all(row.values for row in rows)


def _cases() -> list[object]:
    cases = []
    for name, quick in NETWORKS.items():
        for title, runtime in ALL.items():
            # Flash and RAM of the boards that QEMU knows hold the small networks.
            if isinstance(runtime, EmulatedC) and not (name in SMALL or (quick and runtime.target == "cortex-m4")):
                continue
            marks = [pytest.mark.xdist_group(name), *([] if quick else [pytest.mark.matrix])]
            cases.append(pytest.param(name, title, id=f"{name}-{title}", marks=marks))
    return cases


@pytest.mark.parametrize(("name", "title"), _cases())
def test_a_zoo_network_equals_its_twin(name: str, title: str, tmp_path: Path) -> None:
    assert_equal(ALL[title], exported(name, tmp_path, 8 if NETWORKS[name] else 2))


@pytest.mark.parametrize("title", ["ONNX Runtime", HostC.title, "TFLite Micro"])
def test_narrow_activations_equal_their_twins(title: str, tmp_path: Path) -> None:
    assert_equal(ALL[title], exported("dscnn", tmp_path, 8, (2, 4, 8)))


def test_no_zoo_network_needs_float() -> None:
    for name, quick in NETWORKS.items():
        if quick:
            assert not lowered(name).islands
            assert not HostC().missing(Exported(lowered(name), Path("nowhere"), {}))


def test_random_networks_equal_the_twin() -> None:
    """A few of what `make fuzz` draws."""
    assert check(list(libraries(6, 7))) > 6
