"""C libraries compute exactly what the fixed-point twin computes: on this machine under sanitizers, and under QEMU."""

import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cases import CASES, ModelCase
from integer_networks import NETWORKS, Builder, branches, crossed, residual, some_inputs, tokens
from searches import attached, scramble
from zerobit.cut.apply import apply
from zerobit.cut.decide import decide
from zerobit.errors import ExportError
from zerobit.export.c99.arena import plan_arena
from zerobit.export.c99.constants import pack_row
from zerobit.export.c99.folder import copy_sources, library_files
from zerobit.export.c99.layout import Layout, loops
from zerobit.export.c99.library import Library
from zerobit.export.c99.model_c import code
from zerobit.export.c99.model_h import header
from zerobit.export.c99.toolchain import TARGETS, HostProgram, compiler, missing_tools, run_image
from zerobit.integer.ir import Add, Conv, Feed, IntegerGraph, IntegerTensor, Island, Linear, Quantize, Reshape, Weights
from zerobit.integer.lower import lower
from zerobit.integer.twins.fixed31 import run_fixed31
from zerobit.integer.walk import quantized_input

SEEDS = range(4)


def assert_equals_twin(program: HostProgram, library: Library, seed: int) -> int:
    """Compare all tensors; how many there were."""
    x = some_inputs(library.graph, seed)
    found, wanted = program.run(library, x), run_fixed31(library.graph, x, keep=True)
    for name, values in found.items():
        assert values.dtype == wanted[name].dtype
        np.testing.assert_array_equal(values, wanted[name], err_msg=f"{library.name}: {name}")
    return len(found)


# ---------------------------------------------------------------------------------------------- all networks

HELD = [network for network in NETWORKS if network.__name__ != "volumes"]


@pytest.fixture(scope="module")
def random_networks():
    """All networks that C holds, in one program under sanitizers."""
    libraries = {
        (network.__name__, seed, every): Library(
            network(seed).graph(every=every), f"{network.__name__}_{seed}_{int(every)}", {}
        )
        for network in HELD
        for seed in SEEDS
        for every in (False, True)
    }
    with HostProgram([*libraries.values()], sanitize=True) as program:
        yield program, libraries


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("network", HELD)
def test_every_tensor_equals_the_twin(network, seed, every, random_networks):
    program, libraries = random_networks
    library = libraries[network.__name__, seed, every]
    shown = assert_equals_twin(program, library, seed)
    made = [name for name, tensor in library.graph.by_name.items() if not tensor.is_float]
    assert shown >= (len(made) - 1 if every else len(library.traced))


def _compressed(row: ModelCase, seed: int) -> IntegerGraph:
    net = scramble(attached(row.name), seed)
    return lower(apply(net, decide(net)).eval())


@pytest.fixture(scope="module")
def compressed_networks():
    """Every network of `cases` with a random plan that has no float in it."""
    torch.manual_seed(0)
    graphs = {row.name: _compressed(row, seed) for seed, row in enumerate(CASES)}
    libraries = {}
    for name, graph in graphs.items():
        if not graph.islands and all(len(shape) < 4 for shape in graph.inputs.values()):
            libraries[name] = Library(graph, f"net_{len(libraries)}", {})
    with HostProgram([*libraries.values()], sanitize=True) as program:
        yield program, libraries, graphs


@pytest.mark.parametrize("row", CASES, ids=lambda row: row.name)
def test_compressed_networks_equal_the_twin(row, compressed_networks):
    program, libraries, graphs = compressed_networks
    if row.name in libraries:
        assert assert_equals_twin(program, libraries[row.name], 0)
    else:
        with pytest.raises(ExportError, match="onnx can hold it"):
            _ = Library(graphs[row.name], "zb", {}).program


def test_most_networks_have_no_float(compressed_networks):
    _, libraries, graphs = compressed_networks
    assert {"digits", "resnet8", "dscnn", "inverted_residual", "concat_branches", "mlp"} <= set(libraries)
    assert len(libraries) > len(graphs) / 2


@pytest.mark.skipif(any(missing_tools(t) for t in TARGETS), reason="needs cross compilers and QEMU")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("network", [residual, branches, tokens])
def test_microcontrollers_equal_the_twin(network, target):
    library = Library(network(0).graph(every=False), "zb", {})
    image = run_image(library, some_inputs(library.graph, 0, count=2), target)
    assert not image.different
    assert image.tensors == 2 * len(library.traced)
    assert len(image.instructions) == 2
    assert all(0 < count < 10**9 for count in image.instructions)
    assert image.ram >= library.arena.size
    assert image.flash > sum(op.weights.packed_bits // 8 for op in library.graph.ops if isinstance(op, Conv | Linear))


@pytest.mark.skipif(bool(missing_tools("cortex-m4")), reason="needs a cross compiler and QEMU")
def test_a_difference_in_an_image_is_counted(monkeypatch):
    library = Library(residual(1).graph(every=False), "zb", {})
    x = some_inputs(library.graph, 0, count=1)
    monkeypatch.setattr("zerobit.export.c99.vectors_h.fnv1a", lambda data: 1)
    image = run_image(library, x, "cortex-m4")
    names = [*(name for _, name in library.traced), "logits"]
    assert image.different == dict.fromkeys(names, frozenset({0}))


# ---------------------------------------------------------------------------------------------- memory

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple)


@given(shape=shapes, data=st.data())
def test_layouts_are_permutations_and_keep_strides(shape, data):
    order = data.draw(st.permutations(range(len(shape))))
    layout = Layout.in_order(shape, order)
    assert sorted(layout.places) == list(range(math.prod(shape)))
    moved = np.arange(math.prod(shape)).reshape(shape)
    stored = layout.as_stored(moved[None])
    np.testing.assert_array_equal(stored.reshape([shape[d] for d in order]), moved.transpose(order))
    np.testing.assert_array_equal(layout.as_tensor(stored, shape)[0], moved)
    strides = layout.strides_for(shape)
    assert strides is not None
    np.testing.assert_array_equal(Layout(shape, strides).places, layout.places)
    counted = loops(*([v[d] for d in order] for v in (shape, strides, strides)))
    assert math.prod(loop.size for loop in counted) == math.prod(shape)
    assert len(counted) == 1


def test_a_flattened_image_is_not_regular():
    layout = Layout.channels_last((3, 2, 2))
    assert layout.strides_for((12,)) is None
    assert layout.strides_for((3, 4)) == (1, 3)
    assert not layout.same(Layout.row_major((12,)))
    assert Layout.channels_last((3, 1, 1)).same(Layout.row_major((3,)))


def assert_no_live_bytes_are_written(program, arena) -> None:
    """Every byte has an owner; a step reads bytes of the buffers that it names, and writes over nothing still read."""
    owner = np.full(arena.size, "", object)
    last = {name: index for index, step in enumerate(program.steps) for name in step.reads}
    last |= dict.fromkeys((place.buffer for place in program.outputs.values()), len(program.steps))
    size = program.buffers

    def bytes_of(name: str) -> np.ndarray:
        return owner[arena.offsets[name] : arena.offsets[name] + size[name]]

    for name in program.inputs:
        bytes_of(program.places[name].buffer)[:] = program.places[name].buffer
    for index, step in enumerate(program.steps):
        assert all((bytes_of(name) == name).all() for name in step.reads), index
        taken = []
        if step.writes in size:
            taken.append(bytes_of(step.writes))
        if arena.scratch[index] is not None:
            taken.append(owner[arena.scratch[index] : arena.scratch[index] + step.scratch])
        for part in taken:
            for name in {*part} - {"", "scratch", step.writes}:
                in_place = name in step.in_place and last.get(name) == index
                assert last.get(name, -1) < index or in_place, (index, step.writes, name)
        if step.writes in size:
            bytes_of(step.writes)[:] = step.writes
        if arena.scratch[index] is not None:
            taken[-1][:] = "scratch"
        assert step.writes not in size or (bytes_of(step.writes) == step.writes).all()
    for place in program.outputs.values():
        assert place.buffer not in size or (bytes_of(place.buffer) == place.buffer).all()


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("network", HELD)
def test_the_arena_holds_what_is_live_and_little_more(network, seed, every):
    program = Library(network(seed).graph(every=every), "zb", {}).program
    arena = plan_arena(program)
    assert arena.live <= arena.size <= 1.15 * arena.live
    assert_no_live_bytes_are_written(program, arena)


def test_a_sum_with_its_own_transpose_is_not_made_in_place():
    program = Library(crossed(0).graph(every=False), "zb", {}).program
    sums = [step for step in program.steps if step.kernel == "zb_add"]
    assert any(len({*step.reads}) == 1 and not step.in_place for step in sums)


def test_a_copy_is_shared_by_its_readers():
    net = Builder((3, 4, 4), 0)
    net._same(Reshape("image", "rows"), "image", (4, 12))
    for name in ("a", "b", "c"):
        net.linear("rows", name, 2, logits=True)
    program = Library(net.graph(every=False), "zb", {}).program
    assert [step.kernel for step in program.steps].count("zb_copy") == 1


def test_idle_rows_of_a_pass_add_up_to_nothing_undefined():
    """Two channels: the other two of a pass are summed and dropped, over many positions."""
    net = Builder((64, 48, 48), 0)
    net.conv("image", "two", 2, 3, widths=(8,), full=True)
    library = Library(net.graph(every=False), "zb", {})
    with HostProgram([library], sanitize=True) as program:
        x = {"x": np.full((1, 64, 48, 48), 1e9, np.float32)}
        np.testing.assert_array_equal(program.run(library, x)["two"], run_fixed31(library.graph, x)["two"])


@given(st.integers(1, 40), st.sampled_from([2, 4, 8]), st.integers(0, 2**32 - 1))
def test_rows_are_packed_low_bits_first(count, bits, seed):
    values = np.random.default_rng(seed).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), count).astype(np.int8)
    packed = pack_row(values, bits)
    assert len(packed) == -(-count * bits // 8)
    codes = [int(packed[i * bits // 8]) >> (i * bits % 8) & (2**bits - 1) for i in range(count)]
    offset = 2 ** (bits - 1)
    wanted = [int(v) % 256 for v in values] if bits == 8 else [int(v) + offset for v in values]
    assert codes == wanted


# ---------------------------------------------------------------------------------------------- the interface

_MISUSE = """
#include "model.h"
#include <stdlib.h>
int main(void)
{
    static int8_t input[ZB_INPUT_LENGTH];
    static int32_t output[ZB_OUTPUT_LENGTH];
    uint8_t *arena = malloc(ZB_ARENA_SIZE);
    const int codes[] = {
        zb_run(input, ZB_INPUT_LENGTH, output, ZB_OUTPUT_LENGTH) - ZB_ERROR_STATE,
        zb_init(NULL, ZB_ARENA_SIZE) - ZB_ERROR_ARENA,
        zb_init(arena, ZB_ARENA_SIZE - 1) - ZB_ERROR_ARENA,
        zb_run(input, ZB_INPUT_LENGTH, output, ZB_OUTPUT_LENGTH) - ZB_ERROR_STATE,
        zb_init(arena, ZB_ARENA_SIZE) - ZB_OK,
        zb_run(input, ZB_INPUT_LENGTH - 1, output, ZB_OUTPUT_LENGTH) - ZB_ERROR_INPUT,
        zb_run(NULL, ZB_INPUT_LENGTH, output, ZB_OUTPUT_LENGTH) - ZB_ERROR_INPUT,
        zb_run(input, ZB_INPUT_LENGTH, output, ZB_OUTPUT_LENGTH + 1) - ZB_ERROR_OUTPUT,
        zb_run(input, ZB_INPUT_LENGTH, NULL, ZB_OUTPUT_LENGTH) - ZB_ERROR_OUTPUT,
        zb_run((const int8_t *)arena + ZB_INPUT_OFFSET, ZB_INPUT_LENGTH, output, ZB_OUTPUT_LENGTH) - ZB_OK,
    };
    int wrong = 0;
    for (unsigned i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        wrong += codes[i] != 0;
    }
    free(arena);
    return wrong;
}
"""


def _built(folder: Path, library: Library, main: str, *flags: str) -> list[str]:
    copy_sources(folder)
    for name, text in (("model.h", header(library)), ("model.c", code(library)), ("main.c", main)):
        (folder / name).write_text(text, encoding="utf-8")
    cc = compiler()
    assert cc is not None
    own = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined,address", *flags]
    subprocess.run([cc, *own, "main.c", "model.c", "zb_kernels.c", "-o", "main"], cwd=folder, check=True)
    return [str(folder / "main")]


def test_misuse_is_an_error_code(tmp_path):
    library = Library(residual(0).graph(every=False), "zb", {})
    assert subprocess.run(_built(tmp_path, library, _MISUSE), check=False).returncode == 0


_QUANTIZE = """
#include "model.h"
#include <stdio.h>
int main(void)
{
    float x[3];
    while (fread(x, sizeof x, 1, stdin) == 1) {
        for (int c = 0; c < 3; c++) {
            putchar((uint8_t)zb_quantize(x[c], c));
        }
    }
    return 0;
}
"""


def test_the_header_quantises_as_the_twin_does(tmp_path):
    graph = residual(0).graph(every=False)
    library = Library(graph, "zb", {})
    (op,) = (op for op in graph.ops if isinstance(op, Quantize))
    target = graph.by_name[op.output]
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3, (4000, 3)).astype(np.float32)
    assert op.mean is not None
    assert op.std is not None
    halves = (np.arange(-300, 300)[:, None] + np.float32(0.5)) * target.step * op.std + op.mean
    x = np.concatenate([x, halves, [[0, np.inf, -np.inf]]]).astype(np.float32)
    done = subprocess.run(_built(tmp_path, library, _QUANTIZE), input=x.tobytes(), capture_output=True, check=True)
    found = np.frombuffer(done.stdout, np.int8).reshape(-1, 3)
    wanted = quantized_input(x[:, :, None, None], op, target)[:, :, 0, 0]
    np.testing.assert_array_equal(found, wanted)


def test_names_of_a_model_do_not_reach_the_code():
    hostile = 'x */ #include "/etc/passwd" \n\\ ?>'
    tensors = (IntegerTensor(hostile, (2,), 1.0), IntegerTensor("logits", (1,), None))
    ops = (Quantize(hostile, hostile), Linear(hostile, "logits", Weights([[1, -1]], [8], [1.0], [0])))
    graph = IntegerGraph(tensors, ops, ("logits",)).validate()
    files = library_files(Library(graph, "zb", {hostile: hostile}), np.zeros((1, 2), np.float32))
    for name in ("model.h", "model.c", "vectors.h"):
        assert "passwd" not in files[name] or "_etc_passwd_" in files[name]
        assert files[name].count("#include") == {"model.h": 3, "model.c": 1, "vectors.h": 0}[name]
        assert files[name].count("/*") == files[name].count("*/")


@pytest.mark.parametrize("name", ["", "9x", "Zb", "int", "a-b", "x" * 33, "a;b"])
def test_a_name_that_c_refuses_is_refused(name):
    with pytest.raises(ExportError, match="`name` is"):
        _ = Library(residual(0).graph(), name, {}).program


# ---------------------------------------------------------------------------------------------- what C can't hold


def test_what_needs_float_is_named():
    tensors = (IntegerTensor("raw", (2,), None), IntegerTensor("made", (2,), None))
    ops = (Feed("x", "raw", np.dtype(np.float32)), Island("island", ("raw",), ("made",), torch.nn.Identity(), (), ()))
    with pytest.raises(ExportError, match=r"Feed 'raw' .* choose `format` 'onnx'"):
        _ = Library(IntegerGraph(tensors, ops, ("made",)), "zb", {}).program


def test_three_dimensions_are_named():
    volumes = next(network for network in NETWORKS if network.__name__ == "volumes")
    with pytest.raises(ExportError, match="'stem' has 3 spatial dimensions"):
        _ = Library(volumes(0).graph(), "zb", {}).program


def test_sizes_beyond_16_bits_are_named():
    net = Builder((1, 70000), 0)
    net.conv("image", "long", 1, 1)
    with pytest.raises(ExportError, match="`in_w` of the kernel that makes 'long'"):
        _ = Library(net.graph(), "zb", {}).program


def test_scales_too_far_apart_are_named():
    tensors = (IntegerTensor("one", (2,), 1e9), IntegerTensor("sum", (2,), 1.0))
    graph = IntegerGraph(tensors, (Quantize("x", "one"), Add("one", "one", "sum")), ("sum",)).validate()
    with pytest.raises(ExportError, match=r"Add 'sum': the ratio of two scales .* onnx can hold it"):
        _ = Library(graph, "zb", {}).program


def test_a_flattened_output_comes_in_plain_order():
    net = Builder((3, 4, 4), 0)
    net._same(Reshape("image", "flat"), "image", (48,))
    library = Library(net.graph(every=False), "zb", {})
    assert [step.kernel for step in library.program.steps] == ["zb_copy"]
    with HostProgram([library], sanitize=True) as program:
        assert assert_equals_twin(program, library, 0) == 1
