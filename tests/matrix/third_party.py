"""Networks that others wrote: architectures of the `transformers` package at small size, from their configs.

The package is imported when a network is built, so that a list of the rows needs no package.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from matrix.row import MatrixRow


def _build(package: str, model: str, config: str, **settings: Any) -> nn.Module:
    module = importlib.import_module(f"transformers.models.{package}")
    # Written-out attention is what an export of these networks for small devices has.
    settings.setdefault("attn_implementation", "eager")
    return getattr(module, model)(getattr(module, config)(num_labels=5, **settings))


def _sdpa(package: str, model: str, config: str, **settings: Any) -> nn.Module:
    return _build(package, model, config, **settings, attn_implementation="sdpa")


def _part(of: Callable[[], nn.Module], path: str) -> nn.Module:
    return of().get_submodule(path)


def _dpt() -> nn.Module:
    return _build(
        "dpt",
        "DPTForSemanticSegmentation",
        "DPTConfig",
        **{**_VIT, "num_hidden_layers": 4},
        backbone_out_indices=(0, 1, 2, 3),
        neck_hidden_sizes=(8, 12, 16, 20),
        fusion_hidden_size=12,
        is_hybrid=False,
    )


def _upernet() -> nn.Module:
    convnext = importlib.import_module("transformers.models.convnext")
    backbone = convnext.ConvNextConfig(**_CONVNEXT, out_features=["stage1", "stage2", "stage3", "stage4"])
    return _build(
        "upernet",
        "UperNetForSemanticSegmentation",
        "UperNetConfig",
        backbone_config=backbone,
        hidden_size=12,
        pool_scales=(1, 2),
        auxiliary_in_channels=24,
        auxiliary_channels=8,
    )


def _segformer_decoder() -> nn.Module:
    model, config = "SegformerForSemanticSegmentation", "SegformerConfig"
    return _build("segformer", model, config, **_PYRAMID, decoder_hidden_size=12)


_VIT = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 32,
    "patch_size": 8,
}
_CONVNEXT = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1], "image_size": 64}
_STAGES = {"embedding_size": 8, "hidden_sizes": [12, 16, 24], "depths": [1, 2, 1]}
_PYRAMID = {
    "hidden_sizes": [8, 16, 20, 32],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 2, 4],
    "mlp_ratios": [2, 2, 2, 2],
}
_SPEECH = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "conv_dim": (12, 16, 16),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 12,
    "apply_spec_augment": False,
}
_WHISPER = {
    "num_mel_bins": 10,
    "encoder_layers": 2,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 40,
    "d_model": 24,
    "max_source_positions": 16,
    "classifier_proj_size": 12,
    "decoder_layers": 1,
    "decoder_attention_heads": 3,
    "vocab_size": 50,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def _row(name: str, family: str, size: tuple[int, ...], model: str, config: str, **settings: Any) -> MatrixRow:
    build = partial(_build, name, model, config, **settings)
    return MatrixRow(f"transformers/{name}", family, build, (size,), origin="transformers")


def _image(family: str, name: str, prefix: str, size: int, **settings: Any) -> MatrixRow:
    return _row(name, family, (3, size, size), f"{prefix}ForImageClassification", f"{prefix}Config", **settings)


THIRD_PARTY: tuple[MatrixRow, ...] = (
    _image("conv", "resnet", "ResNet", 32, **_STAGES, layer_type="bottleneck"),
    _image("conv", "regnet", "RegNet", 32, **_STAGES, groups_width=4),
    _image("conv", "mobilenet_v1", "MobileNetV1", 32, depth_multiplier=0.125),
    _image("conv", "mobilenet_v2", "MobileNetV2", 32, depth_multiplier=0.25, finegrained_output=False),
    _image(
        "conv",
        "efficientnet",
        "EfficientNet",
        32,
        in_channels=[32, 32, 48],
        out_channels=[32, 48, 64],
        kernel_sizes=[3, 5, 3],
        strides=[1, 2, 1],
        num_block_repeats=[1, 2, 1],
        expand_ratios=[1, 4, 4],
        width_coefficient=0.25,
        depth_coefficient=1.0,
        hidden_dim=320,
    ),
    _image("conv", "convnext", "ConvNext", 64, **_CONVNEXT),
    _image("conv", "convnextv2", "ConvNextV2", 64, **_CONVNEXT),
    _image("conv", "bit", "Bit", 32, **_STAGES, num_groups=4),
    _image(
        "conv",
        "hgnet_v2",
        "HGNetV2",
        64,
        embedding_size=8,
        hidden_sizes=[16, 16],
        depths=[1, 1],
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 16],
        stage_mid_channels=[8, 8],
        stage_out_channels=[16, 16],
        stage_num_blocks=[1, 2],
        stage_downsample=[False, True],
        stage_light_block=[False, True],
        stage_kernel_size=[3, 5],
        stage_numb_of_layers=[2, 3],
        use_learnable_affine_block=True,
    ),
    _image(
        "conv",
        "textnet",
        "TextNet",
        32,
        stem_out_channels=8,
        hidden_sizes=[8, 8, 12, 16, 16],
        conv_layer_kernel_sizes=[[[3, 3], [3, 1]], [[3, 3]], [[1, 3]], [[3, 3]]],
        conv_layer_strides=[[1, 2], [2], [2], [1]],
    ),
    _image("conv", "poolformer", "PoolFormer", 64, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1]),
    _image(
        "conv",
        "focalnet",
        "FocalNet",
        64,
        embed_dim=8,
        depths=[1, 1, 1],
        focal_levels=[2, 2, 2],
        focal_windows=[3, 3, 3],
        hidden_sizes=[8, 16, 32],
        image_size=64,
    ),
    _image("attention", "vit", "ViT", 32, **_VIT),
    _image("attention", "deit", "DeiT", 32, **_VIT),
    _image(
        "attention",
        "dinov2",
        "Dinov2",
        32,
        **{k: v for k, v in _VIT.items() if k != "intermediate_size"},
        use_swiglu_ffn=True,
    ),
    _image(
        "attention",
        "swin",
        "Swin",
        32,
        image_size=32,
        patch_size=2,
        embed_dim=8,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
    ),
    _image("attention", "segformer", "Segformer", 64, **_PYRAMID),
    MatrixRow("transformers/segformer_decoder", "attention", _segformer_decoder, ((3, 64, 64),), origin="transformers"),
    _image("attention", "pvt", "Pvt", 64, image_size=64, **_PYRAMID),
    _image(
        "attention",
        "hiera",
        "Hiera",
        32,
        embed_dim=8,
        image_size=[32, 32],
        patch_size=[3, 3],
        patch_stride=[2, 2],
        patch_padding=[1, 1],
        depths=[1, 2, 1],
        num_heads=[1, 2, 4],
        num_query_pool=2,
        masked_unit_size=[4, 4],
        masked_unit_attention=[True, True, False],
    ),
    _image(
        "mixed",
        "mobilevit",
        "MobileViT",
        64,
        image_size=64,
        hidden_sizes=[12, 16, 20],
        neck_hidden_sizes=[8, 8, 12, 16, 16, 20, 32],
        num_attention_heads=2,
    ),
    _image(
        "mixed",
        "levit",
        "Levit",
        64,
        image_size=64,
        hidden_sizes=[16, 24, 32],
        num_attention_heads=[2, 3, 4],
        depths=[1, 1, 1],
        key_dim=[4, 4, 4],
    ),
    _image("mixed", "cvt", "Cvt", 32, embed_dim=[8, 16, 24], num_heads=[1, 2, 3], depth=[1, 2, 3]),
    _image(
        "mixed",
        "swiftformer",
        "SwiftFormer",
        64,
        image_size=64,
        depths=[1, 1, 1, 1],
        embed_dims=[8, 12, 16, 20],
        mlp_ratio=2,
    ),
    MatrixRow("transformers/dpt", "mixed", _dpt, ((3, 32, 32),), origin="transformers"),
    MatrixRow("transformers/upernet", "conv", _upernet, ((3, 64, 64),), origin="transformers"),
    _row("wav2vec2", "mixed", (400,), "Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", **_SPEECH),
    _row(
        "audio_spectrogram_transformer",
        "attention",
        (40, 16),
        "ASTForAudioClassification",
        "ASTConfig",
        **{k: v for k, v in _VIT.items() if k != "image_size"},
        max_length=40,
        num_mel_bins=16,
        frequency_stride=6,
        time_stride=6,
    ),
    _row("whisper", "attention", (10, 32), "WhisperForAudioClassification", "WhisperConfig", **_WHISPER),
)
