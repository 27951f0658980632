"""Vision transformers whose tokens are patches, in one list: an image to states [B, T, C] or class scores."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from architectures.architecture import Built, Sizes, architecture
from architectures.inputs import IMAGE_AXES, image
from architectures.presets import WINDOWS, patches, square_patches
from architectures.truth import AttentionRule, Mask
from architectures.wrappers import Image

BOTH = ("sdpa", "eager")
CHANNELS = 3


def vision(
    model: torch.nn.Module,
    sizes: Sizes,
    pattern: str,
    mask: tuple[Mask, ...] = (),
    mlp: int | None = None,
    field: str | None = "last_hidden_state",
    head: str | None = None,
) -> Built:
    return Built(
        module=Image(model, field),
        draw=image(CHANNELS, *sizes.image),
        dims={"batch": sizes.batch},
        axes={"pixel_values": IMAGE_AXES},
        attention=(AttentionRule(pattern, sizes.heads, sizes.head_dim, mask=mask),),
        width=(sizes.attention_width,),
        mlp=(sizes.mlp if mlp is None else mlp,),
        layers=sizes.layers,
        head=head,
    )


def vit_sizes(sizes: Sizes, implementation: str) -> dict[str, Any]:
    return {
        "hidden_size": sizes.attention_width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.mlp,
        "image_size": sizes.image,
        "patch_size": sizes.patch,
        "num_channels": CHANNELS,
        "attn_implementation": implementation,
    }


@architecture("vit", "vision", patches(prefix=1), BOTH)
def vit(sizes: Sizes, implementation: str) -> Built:
    config = transformers.ViTConfig(**vit_sizes(sizes, implementation))
    model = transformers.ViTModel(config, add_pooling_layer=False)
    return vision(model, sizes, r"layers?\.\d+\.attention")


@architecture("deit", "vision", patches(prefix=2))
def deit(sizes: Sizes, implementation: str) -> Built:
    """Two tokens before the patches."""
    config = transformers.DeiTConfig(**vit_sizes(sizes, implementation))
    model = transformers.DeiTModel(config, add_pooling_layer=False)
    return vision(model, sizes, r"layers?\.\d+\.attention")


@architecture("beit", "vision", patches(prefix=1), ("eager",))
def beit(sizes: Sizes, implementation: str) -> Built:
    """A bias by relative position on the grid, with rows of its own for the first token; keys have no bias."""
    config = transformers.BeitConfig(
        **vit_sizes(sizes, implementation), use_relative_position_bias=True, use_absolute_position_embeddings=False
    )
    model = transformers.BeitModel(config, add_pooling_layer=False)
    return vision(model, sizes, r"layers?\.\d+\.attention", mask=("bias",))


@architecture("dinov2", "vision", square_patches(prefix=1))
def dinov2(sizes: Sizes, implementation: str) -> Built:
    """Every branch is scaled per channel; the MLP is twice as wide."""
    settings = vit_sizes(sizes, implementation)
    del settings["intermediate_size"]
    config = transformers.Dinov2Config(**settings, mlp_ratio=2, use_mask_token=False)
    return vision(transformers.Dinov2Model(config), sizes, r"layers?\.\d+\.attention", mlp=2 * sizes.attention_width)


def _stages(sizes: Sizes, pattern: str, depth: int, is_shifted: tuple[bool, ...]) -> tuple[AttentionRule, ...]:
    """Two stages of `depth` layers, every other one with shifted windows where the grid is larger than a window."""
    rules = []
    for stage, shifts in enumerate(is_shifted):
        for place in range(depth):
            mask: tuple[Mask, ...] = ("bias", "window") if shifts and place % 2 else ("bias",)
            path = pattern.format(stage=stage, place=place)
            rules.append(AttentionRule(path, sizes.heads * 2**stage, sizes.head_dim, kind="window", mask=mask))
    return tuple(rules)


def _swin_sizes(sizes: Sizes, implementation: str) -> dict[str, Any]:
    return {
        "image_size": sizes.image,
        "patch_size": sizes.patch,
        "num_channels": CHANNELS,
        "embed_dim": sizes.attention_width,
        "depths": [2, 2],
        "num_heads": [sizes.heads, 2 * sizes.heads],
        "window_size": sizes.window,
        "mlp_ratio": float(sizes.mlp // sizes.attention_width),
        "attn_implementation": implementation,
    }


def _swin(model: torch.nn.Module, sizes: Sizes, pattern: str) -> Built:
    width = (sizes.attention_width, 2 * sizes.attention_width)
    ratio = sizes.mlp // sizes.attention_width
    is_shifted = tuple(sizes.grid[0] // 2**stage > sizes.window for stage in range(2))
    return Built(
        module=Image(model, "last_hidden_state"),
        draw=image(CHANNELS, *sizes.image),
        dims={"batch": sizes.batch},
        axes={"pixel_values": IMAGE_AXES},
        attention=_stages(sizes, pattern, 2, is_shifted),
        width=width,
        mlp=tuple(ratio * channels for channels in width),
        layers=4,
    )


@architecture("swin", "vision", WINDOWS, ("eager",))
def swin(sizes: Sizes, implementation: str) -> Built:
    """Windows, shifted in every other layer; tokens are merged four to one between the stages."""
    model = transformers.SwinModel(
        transformers.SwinConfig(**_swin_sizes(sizes, implementation)), add_pooling_layer=False
    )
    return _swin(model, sizes, r"layers\.{stage}\.blocks\.{place}\.attention")


@architecture("swinv2", "vision", WINDOWS, ("eager",))
def swinv2(sizes: Sizes, implementation: str) -> Built:
    """Cosine attention with a learned temperature; the bias comes from an MLP over coordinates."""
    model = transformers.Swinv2Model(
        transformers.Swinv2Config(**_swin_sizes(sizes, implementation)), add_pooling_layer=False
    )
    return _swin(model, sizes, r"layers\.{stage}\.blocks\.{place}\.attention\.self")


@architecture("sam_encoder", "vision", WINDOWS, BOTH)
def sam_encoder(sizes: Sizes, implementation: str) -> Built:
    """Windows with padding, then the whole grid; the bias is a product of queries with positions."""
    config = transformers.SamVisionConfig(
        hidden_size=sizes.attention_width, num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads,
        num_channels=CHANNELS, image_size=sizes.image[0], patch_size=sizes.patch, mlp_dim=sizes.mlp,
        window_size=sizes.window + 2, global_attn_indexes=[1], output_channels=10,
        attn_implementation=implementation,
    )  # fmt: skip
    heads, head_dim = sizes.heads, sizes.head_dim
    return Built(
        module=Image(transformers.SamVisionModel(config), "last_hidden_state"),
        draw=image(CHANNELS, *sizes.image),
        dims={"batch": sizes.batch},
        axes={"pixel_values": IMAGE_AXES},
        attention=(
            AttentionRule(r"layers\.0\.attn", heads, head_dim, kind="window", mask=("bias",)),
            AttentionRule(r"layers\.1\.attn", heads, head_dim, mask=("bias",)),
        ),
        width=(sizes.attention_width,),
        mlp=(sizes.mlp,),
        layers=sizes.layers,
    )
