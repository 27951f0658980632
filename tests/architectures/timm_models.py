"""Networks of the timm library, in small: an image to class scores or features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from architectures.architecture import Built, Sizes, architecture
from architectures.presets import CONVOLUTIONS, WINDOWS, patches
from architectures.spatial import CHANNELS, spatial
from architectures.truth import AttentionRule

BOTH = ("sdpa", "eager")
CLASSES = 11


def library() -> Any:
    """Imported when the first of its models is built: the list itself needs no timm."""
    from timm_import import timm

    return timm


@contextmanager
def fused(implementation: str) -> Iterator[None]:
    """timm's modules ask, when they are made, whether to call the fused attention function."""
    library().layers.set_fused_attn(implementation == "sdpa")
    try:
        yield
    finally:
        library().layers.set_fused_attn(True)


def timm_model(name: str, implementation: str, **arguments: Any) -> torch.nn.Module:
    with fused(implementation):
        model: torch.nn.Module = library().create_model(name, pretrained=False, num_classes=CLASSES, **arguments)
    return model


@architecture("davit", "timm", WINDOWS, BOTH)
def davit(sizes: Sizes, implementation: str) -> Built:
    """Attention among the tokens of a window, then among the channels of a group."""
    width = (sizes.attention_width, 2 * sizes.attention_width)
    with fused(implementation):
        model = library().models.davit.DaVit(
            in_chans=CHANNELS, depths=(1, 1), embed_dims=width, num_heads=(sizes.heads, 2 * sizes.heads),
            window_size=sizes.window, mlp_ratio=2, num_classes=CLASSES, drop_path_rate=0.0,
        )  # fmt: skip
    attention = tuple(
        AttentionRule(rf"stages\.{stage}\.blocks\.0\.{place}\.attn", sizes.heads * 2**stage, sizes.head_dim, kind=kind)
        for stage in range(2)
        for place, kind in ((0, "window"), (1, "channel"))
    )
    mlp = tuple(2 * channels for channels in width)
    return spatial(model, sizes, width, 4, stride=4, attention=attention, mlp=mlp, is_free=False, field=None)


@architecture("caformer", "timm", CONVOLUTIONS, BOTH)
def caformer(sizes: Sizes, implementation: str) -> Built:
    """A stage of separable convolutions, then one of attention, both with squared ReLUs and scaled residuals."""
    metaformer = library().models.metaformer
    # The library fixes 32 channels to a head.
    width = (sizes.width, 64)
    with fused(implementation):
        model = metaformer.MetaFormer(
            in_chans=CHANNELS, num_classes=CLASSES, depths=(1, 2), dims=width,
            token_mixers=[metaformer.SepConv, metaformer.Attention],
            norm_layers=[metaformer.LayerNorm2dNoBias, metaformer.LayerNormNoBias],
            res_scale_init_values=(None, 1.0),
        )  # fmt: skip
    attention = (AttentionRule(r"stages\.1\.blocks\.\d+\.token_mixer", 2, 32),)
    mlp = tuple(4 * channels for channels in width)
    return spatial(model, sizes, width, 3, stride=4, attention=attention, mlp=mlp, field=None)


HALF_OF_STRIDE = 16
"""Pixels to a position, where all stages together have 32: an image that ends as one row is another program to
torch.export than taller ones."""


@architecture("efficientnet", "timm", CONVOLUTIONS)
def efficientnet(sizes: Sizes, implementation: str) -> Built:
    """Inverted residuals with a gate per channel from the mean of the image."""
    model = timm_model("test_efficientnet", implementation)
    return spatial(model, sizes, (), 0, stride=HALF_OF_STRIDE, field=None)


@architecture("mobilenetv3", "timm", CONVOLUTIONS)
def mobilenetv3(sizes: Sizes, implementation: str) -> Built:
    """As EfficientNet, with hard sigmoids and hard swishes."""
    model = timm_model("mobilenetv3_small_050", implementation)
    return spatial(model, sizes, (), 0, stride=HALF_OF_STRIDE, field=None)


@architecture("xcit", "timm", patches(prefix=0), BOTH)
def xcit(sizes: Sizes, implementation: str) -> Built:
    """Attention among channels over normalised queries and keys, then a class token that attends to all."""
    with fused(implementation):
        model = library().models.xcit.Xcit(
            img_size=max(sizes.grid) * 8, patch_size=8, in_chans=CHANNELS, num_classes=CLASSES,
            embed_dim=sizes.attention_width, depth=sizes.layers, num_heads=sizes.heads, mlp_ratio=2.0,
            cls_attn_layers=1, eta=1.0, tokens_norm=True,
        )  # fmt: skip
    return spatial(
        model, sizes, (sizes.attention_width,), sizes.layers + 1, stride=8, mlp=(2 * sizes.attention_width,),
        attention=(
            AttentionRule(r"^model\.blocks\.\d+\.attn", sizes.heads, sizes.head_dim, kind="channel"),
            AttentionRule(r"cls_attn_blocks\.\d+\.attn", sizes.heads, sizes.head_dim, kind="cross"),
        ), field=None, is_free=False,
    )  # fmt: skip


@architecture("maxvit", "timm", WINDOWS, ("eager", "sdpa"))
def maxvit(sizes: Sizes, implementation: str) -> Built:
    """Convolutions, attention within windows, then attention across windows by a dilated grid."""
    maxxvit = library().models.maxxvit
    width = (sizes.attention_width, 2 * sizes.attention_width)
    config = maxxvit.MaxxVitCfg(
        embed_dim=width, depths=(1, 1), block_type=("M", "M"), stem_width=10,
        transformer_cfg=maxxvit.MaxxVitTransformerCfg(
            dim_head=sizes.head_dim, expand_ratio=2.0, window_size=(sizes.window, sizes.window)
        ),
    )  # fmt: skip
    side = 4 * sizes.grid[0]
    with fused(implementation):
        model = maxxvit.MaxxVit(config, img_size=side, in_chans=CHANNELS, num_classes=CLASSES)
    attention = tuple(
        AttentionRule(
            rf"stages\.{stage}\.blocks\.0\.attn_{part}\.attn", sizes.heads * 2**stage, sizes.head_dim, kind="window",
            mask=("bias",),
        )
        for stage in range(2)
        for part in ("block", "grid")
    )  # fmt: skip
    mlp = tuple(2 * channels for channels in width)
    return spatial(model, sizes, width, 4, stride=4, attention=attention, mlp=mlp, is_free=False, field=None)


@architecture("ecaresnet", "timm", CONVOLUTIONS)
def ecaresnet(sizes: Sizes, implementation: str) -> Built:
    """A gate from a convolution that slides over the channels, whose order therefore matters."""
    width = tuple(sizes.width + 2 * place for place in range(4))
    model = library().models.resnet.ResNet(
        library().models.resnet.Bottleneck, layers=(1, 1, 1, 1), channels=width, num_classes=CLASSES, stem_width=6,
        stem_type="deep_tiered", avg_down=True, block_args={"attn_layer": "eca"},
    )  # fmt: skip
    widths = tuple(4 * channels for channels in width)
    return spatial(model, sizes, widths, 4, stride=HALF_OF_STRIDE, field=None)
