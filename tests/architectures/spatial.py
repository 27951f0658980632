"""Networks over a grid of pixels: convolutions, poolings, and hybrids with attention; an image to features.

Rows and columns are dynamic where the architecture computes them from its input.
"""

from __future__ import annotations

import torch
import transformers

from architectures.architecture import Built, Sizes, architecture
from architectures.inputs import FREE_IMAGE_AXES, IMAGE_AXES, image
from architectures.presets import CONVOLUTIONS, WINDOWS
from architectures.truth import AttentionRule
from architectures.wrappers import Image

CHANNELS = 3


def spatial(
    model: torch.nn.Module,
    sizes: Sizes,
    width: tuple[int, ...],
    layers: int,
    stride: int,
    attention: tuple[AttentionRule, ...] = (),
    mlp: tuple[int, ...] = (),
    is_free: bool = True,
    field: str | None = "last_hidden_state",
) -> Built:
    """`stride` pixels make one position of the first stage."""
    rows, columns = (stride * size for size in sizes.grid)
    free = {"rows": (rows, rows + 4 * stride), "columns": (columns, columns + 8 * stride)}
    fixed = {"rows": (rows,), "columns": (columns,)}
    return Built(
        module=Image(model, field),
        draw=image(CHANNELS),
        dims={"batch": sizes.batch, **(free if is_free and sizes.is_dynamic else fixed)},
        axes={"pixel_values": FREE_IMAGE_AXES if is_free else IMAGE_AXES},
        attention=attention,
        width=width,
        mlp=mlp,
        layers=layers,
    )


@architecture("convnext", "spatial", CONVOLUTIONS)
def convnext(sizes: Sizes, implementation: str) -> Built:
    """Depthwise convolutions, norms over channels last, an MLP four times as wide, a scale per channel."""
    width = (sizes.width, 2 * sizes.width)
    config = transformers.ConvNextConfig(
        num_channels=CHANNELS, patch_size=4, num_stages=2, hidden_sizes=list(width), depths=[2, 2]
    )
    mlp = tuple(4 * channels for channels in width)
    return spatial(transformers.ConvNextModel(config), sizes, width, 4, stride=4, mlp=mlp)


@architecture("resnet", "spatial", CONVOLUTIONS)
def resnet(sizes: Sizes, implementation: str) -> Built:
    width = (sizes.width, 2 * sizes.width)
    config = transformers.ResNetConfig(
        num_channels=CHANNELS, embedding_size=sizes.width, hidden_sizes=list(width), depths=[1, 2], layer_type="basic"
    )
    return spatial(transformers.ResNetModel(config), sizes, width, 3, stride=4)


@architecture("poolformer", "spatial", CONVOLUTIONS)
def poolformer(sizes: Sizes, implementation: str) -> Built:
    """Average pooling minus its input in the place of attention."""
    width = (sizes.width, 2 * sizes.width)
    config = transformers.PoolFormerConfig(
        num_channels=CHANNELS, num_encoder_blocks=2, hidden_sizes=list(width), depths=[2, 2], mlp_ratio=2.0,
        patch_sizes=[7, 3], strides=[4, 2], padding=[2, 1], layer_scale_init_value=0.5,
    )  # fmt: skip
    mlp = tuple(2 * channels for channels in width)
    return spatial(transformers.PoolFormerModel(config), sizes, width, 4, stride=4, mlp=mlp)


@architecture("mobilevit", "spatial", WINDOWS)
def mobilevit(sizes: Sizes, implementation: str) -> Built:
    """Inverted residuals, and attention among the pixels that have the same place in their patch."""
    channels = sizes.attention_width
    config = transformers.MobileViTConfig(
        num_channels=CHANNELS, image_size=64, patch_size=2, hidden_sizes=[channels] * 3, mlp_ratio=2.0,
        neck_hidden_sizes=[6, 8, 10, 12, 14, 18, 22], num_attention_heads=sizes.heads, output_stride=8,
    )  # fmt: skip
    attention = (AttentionRule(r"attention\.attention", sizes.heads, sizes.head_dim),)
    return spatial(
        transformers.MobileViTModel(config), sizes, (channels,), 9, stride=8, attention=attention,
        mlp=(2 * channels,), is_free=False,
    )  # fmt: skip


@architecture("segformer", "spatial", WINDOWS, ("sdpa", "eager"))
def segformer(sizes: Sizes, implementation: str) -> Built:
    """Keys and values from a grid shrunk by a strided convolution; a depthwise convolution inside the MLP."""
    width = (sizes.attention_width, 2 * sizes.attention_width)
    config = transformers.SegformerConfig(
        num_channels=CHANNELS, num_encoder_blocks=2, depths=[2, 2], sr_ratios=[2, 1], hidden_sizes=list(width),
        patch_sizes=[7, 3], strides=[4, 2], num_attention_heads=[sizes.heads, 2 * sizes.heads], mlp_ratios=[2, 2],
        attn_implementation=implementation,
    )  # fmt: skip
    attention = tuple(
        AttentionRule(rf"stages\.{stage}\.blocks\.\d+\.attention", sizes.heads * 2**stage, sizes.head_dim)
        for stage in range(2)
    )
    mlp = tuple(2 * channels for channels in width)
    return spatial(transformers.SegformerModel(config), sizes, width, 4, stride=4, attention=attention, mlp=mlp)
