"""The zoo networks: published sizes, shapes and look-up."""

import pytest
import torch
from torch import Tensor, nn

from zerobit.zoo.blocks import IdentityBlock, StridedBlock
from zerobit.zoo.larger import MobileNetV2
from zerobit.zoo.models import MODELS, ZooModel, digits_net, dscnn, mobilenet_v2, model, resnet8, resnet18, vgg7


def _num_weights(net: nn.Module) -> int:
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return sum(layer.weight.numel() for layer in layers)


def _num_macs(net: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Count with hooks: every output element of a layer costs one filter of multiplications."""
    macs: list[int] = []

    def count(layer: nn.Module, _: object, out: Tensor) -> None:
        assert isinstance(layer.weight, Tensor)
        macs.append(out.numel() * layer.weight[0].numel())

    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        net.eval()(torch.zeros(1, *input_shape))
    return sum(macs)


@pytest.mark.parametrize(
    ("net", "input_shape", "weights", "macs"),
    [
        (resnet8(), (3, 32, 32), 77_360, 12_501_632),
        (dscnn(), (1, 49, 10), 22_016, 2_656_768),
        (digits_net(), (1, 8, 8), 19_408, 533_824),
        (vgg7(), (3, 32, 32), 12_973_440, 615_917_568),
        (resnet18(), (3, 32, 32), 11_164_352, 555_422_720),
        (mobilenet_v2(), (3, 224, 224), 3_469_760, 300_774_272),
    ],
    ids=["resnet8", "dscnn", "digits", "vgg7", "resnet18", "mobilenet_v2"],
)
def test_sizes_are_the_published_ones(
    net: nn.Module, input_shape: tuple[int, int, int], weights: int, macs: int
) -> None:
    assert _num_weights(net) == weights
    assert _num_macs(net, input_shape) == macs


@pytest.mark.parametrize(("net", "parameters"), [(resnet18(), 11_173_962), (mobilenet_v2(), 3_504_872)])
def test_parameter_counts_are_those_of_the_common_implementations(net: nn.Module, parameters: int) -> None:
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize(
    ("width", "mega_macs", "kilo_parameters"), [(1.4, 582, 6109), (0.75, 209, 2636), (0.35, 59, 1677)]
)
def test_mobilenet_v2_of_other_widths(width: float, mega_macs: int, kilo_parameters: int) -> None:
    """The multiplications are those listed beside the checkpoints of the authors."""
    net = mobilenet_v2(width=width)
    assert round(_num_macs(net, (3, 224, 224)) / 1e6) == mega_macs
    assert round(sum(p.numel() for p in net.parameters()) / 1e3) == kilo_parameters


@pytest.mark.parametrize(("image_size", "last"), [(224, 7), (64, 2), (63, 8), (32, 4)])
def test_mobilenet_v2_keeps_small_images_larger(image_size: int, last: int) -> None:
    net = MobileNetV2(4, 0.35, image_size).eval()
    features = net.blocks(net.stem(torch.zeros(1, 3, image_size, image_size)))
    assert features.shape == (1, 112, last, last)


def test_mobilenet_v2_adds_the_input_where_sizes_agree() -> None:
    residual = [block.is_residual for block in mobilenet_v2().blocks]
    assert [i for i, yes in enumerate(residual) if yes] == [2, 4, 5, 7, 8, 9, 11, 12, 14, 15]


def test_resnet18_halves_at_the_start_of_three_stages() -> None:
    net = resnet18()
    stages = [net.stage1, net.stage2, net.stage3, net.stage4]
    assert [type(stage[0]) for stage in stages] == [IdentityBlock, StridedBlock, StridedBlock, StridedBlock]
    assert [len(stage) for stage in stages] == [2, 2, 2, 2]


@pytest.mark.parametrize("entry", MODELS.values(), ids=MODELS)
def test_entry_builds_network_of_its_shape(entry: ZooModel) -> None:
    out = entry.build(7).eval()(torch.zeros(2, *entry.input_shape))
    assert out.shape == (2, 7)


@pytest.mark.parametrize("entry", MODELS.values(), ids=MODELS)
def test_convolutions_have_no_bias_and_a_batch_norm_each(entry: ZooModel) -> None:
    net = entry.build(10)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(conv.bias is None for conv in convs)
    assert [norm.num_features for norm in norms] == [conv.out_channels for conv in convs]


def test_identity_block_adds_its_input() -> None:
    block = resnet8().block1.eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 16, 8, 8)
    torch.testing.assert_close(block(x), x)


def test_dscnn_drops_out_only_in_training() -> None:
    rates = [m.p for m in dscnn().modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.2, 0.4]


def test_model_looks_up_by_name() -> None:
    assert model("dscnn") is MODELS["dscnn"]


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("resnet9", "did you mean 'resnet8'"),
        ("DSCNN", "resnet8, dscnn, digits, vgg7, resnet18, mobilenet_v2"),
        ("", "check the spelling"),
    ],
)
def test_unknown_model_is_told_the_names(wrong: str, hint: str) -> None:
    with pytest.raises(ValueError, match=r"`model` is") as caught:
        model(wrong)
    assert hint in str(caught.value)
