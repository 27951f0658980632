"""Images with text or objects: contrastive towers, image tokens in a decoder, object queries."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import transformers
from transformers.vision_utils import get_vision_position_ids

from architectures.architecture import Binding, Built, Inputs, Sizes, architecture
from architectures.decoders import SPECIAL, causal, llama_sizes
from architectures.inputs import IMAGE_AXES, TEXT_AXES, image, joined, padding_mask, text, token_ids
from architectures.presets import TEXT, WINDOWS, square_patches
from architectures.truth import AttentionRule
from architectures.vision import CHANNELS, vision, vit_sizes
from architectures.wrappers import Image, ImageAndText, Text


def _square(sizes: Sizes, implementation: str) -> dict[str, Any]:
    """Towers that take the size of the image as one number."""
    return {**vit_sizes(sizes, implementation), "image_size": sizes.image[0]}


def _clip_text(sizes: Sizes) -> dict[str, Any]:
    return {
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.attention_width,
        "intermediate_size": sizes.mlp,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "max_position_embeddings": 40,
        **SPECIAL,
    }


@architecture("clip_text", "multimodal", TEXT)
def clip_text(sizes: Sizes, implementation: str) -> Built:
    """A causal mask, and the state of the last token projected."""
    config = transformers.CLIPTextConfig(
        **_clip_text(sizes), projection_dim=sizes.width - 2, attn_implementation=implementation
    )
    return Built(
        module=Text(transformers.CLIPTextModelWithProjection(config), "text_embeds"),
        draw=text(sizes.vocabulary),
        dims={"batch": sizes.batch, "length": sizes.length},
        axes={"input_ids": TEXT_AXES, "attention_mask": TEXT_AXES},
        attention=causal(sizes, rotary=False),
        width=(sizes.attention_width,),
        mlp=(sizes.mlp,),
        layers=sizes.layers,
        head="model.text_projection",
    )


@architecture("clip_vision", "multimodal", square_patches(prefix=1))
def clip_vision(sizes: Sizes, implementation: str) -> Built:
    settings = {**_square(sizes, implementation)}
    config = transformers.CLIPVisionConfig(**settings, projection_dim=sizes.width - 2)
    model = transformers.CLIPVisionModelWithProjection(config)
    return vision(model, sizes, "self_attn", field="image_embeds", head="model.visual_projection")


@architecture("clip", "multimodal", square_patches(prefix=1))
def clip(sizes: Sizes, implementation: str) -> Built:
    """Both towers and the scaled similarities of every image with every text, [B, B]."""
    vision_config = {**_square(sizes, implementation)}
    config = transformers.CLIPConfig(
        text_config=_clip_text(sizes), vision_config=vision_config, projection_dim=sizes.width - 2,
        attn_implementation=implementation,
    )  # fmt: skip
    return Built(
        module=ImageAndText(transformers.CLIPModel(config), "logits_per_image"),
        draw=joined(text(sizes.vocabulary), image(CHANNELS, *sizes.image)),
        dims={"batch": sizes.batch, "length": sizes.length},
        axes={"input_ids": TEXT_AXES, "pixel_values": IMAGE_AXES, "attention_mask": TEXT_AXES},
        attention=(
            AttentionRule(r"vision_model\..*self_attn", sizes.heads, sizes.head_dim),
            *causal(sizes, r"text_model\..*self_attn", rotary=False),
        ),
        width=(sizes.attention_width,),
        mlp=(sizes.mlp,),
        layers=2 * sizes.layers,
    )


@architecture("siglip_vision", "multimodal", square_patches(prefix=0))
def siglip_vision(sizes: Sizes, implementation: str) -> Built:
    """No token before the patches; pooled by attention from one learned query."""
    settings = {**_square(sizes, implementation)}
    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**settings))
    built = vision(model, sizes, r"layers\.\d+\.self_attn", field="pooler_output")
    pooling = AttentionRule(r"head\.attention", sizes.heads, sizes.head_dim, kind="cross")
    return replace(built, attention=(*built.attention, pooling))


@architecture("siglip_text", "multimodal", TEXT)
def siglip_text(sizes: Sizes, implementation: str) -> Built:
    """A text encoder without a causal mask, pooled at the last position."""
    config = transformers.SiglipTextConfig(
        **_clip_text(sizes), projection_size=sizes.width - 2, attn_implementation=implementation
    )
    return Built(
        module=Text(transformers.SiglipTextModel(config), "pooler_output"),
        draw=text(sizes.vocabulary),
        dims={"batch": sizes.batch, "length": sizes.length},
        axes={"input_ids": TEXT_AXES, "attention_mask": TEXT_AXES},
        attention=(AttentionRule("self_attn", sizes.heads, sizes.head_dim, mask=("padding",)),),
        width=(sizes.attention_width,),
        mlp=(sizes.mlp,),
        layers=sizes.layers,
        head="model.text_model.head" if hasattr(transformers.SiglipTextModel, "text_model") else None,
    )


def _with_image_tokens(sizes: Sizes, image_token: int, n_image_tokens: int) -> Any:
    """Ids whose first tokens stand for the image."""

    def draw(binding: Binding, generator: torch.Generator) -> Inputs:
        words = token_ids(binding, generator, sizes.vocabulary)
        marks = torch.full((binding["batch"], n_image_tokens), image_token)
        mask = padding_mask(binding, generator)
        return {
            "input_ids": torch.cat([words[:, :1], marks, words[:, 1:]], 1),
            "attention_mask": torch.cat([torch.ones_like(marks), mask], 1),
        }

    return draw


@architecture("llava", "multimodal", square_patches(prefix=1))
def llava(sizes: Sizes, implementation: str) -> Built:
    """Patches of a CLIP tower, projected, take the places of image tokens in a Llama."""
    n_image_tokens = sizes.grid[0] * sizes.grid[1]
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            **_square(sizes, implementation), projection_dim=sizes.width
        ),
        text_config=transformers.LlamaConfig(
            **{**llama_sizes(sizes, implementation, sizes.width), "max_position_embeddings": 128},
            head_dim=_even(sizes.head_dim),
        ),
        image_token_index=3, image_seq_length=n_image_tokens, vision_feature_layer=-1,
        attn_implementation=implementation,
    )  # fmt: skip
    decoder_rule = causal(sizes, r"language_model\..*self_attn", kv_heads=sizes.kv_heads)[0]
    return Built(
        module=ImageInText(transformers.LlavaForConditionalGeneration(config), image_token=3),
        draw=joined(_with_image_tokens(sizes, 3, n_image_tokens), image(CHANNELS, *sizes.image)),
        dims={"batch": sizes.batch, "length": sizes.length[:1]},
        axes={"input_ids": {0: "batch"}, "pixel_values": IMAGE_AXES, "attention_mask": {0: "batch"}},
        attention=(
            AttentionRule(r"vision_tower\..*self_attn", sizes.heads, sizes.head_dim),
            replace(decoder_rule, head_dim=_even(sizes.head_dim)),
        ),
        width=(sizes.attention_width, sizes.width),
        mlp=(sizes.mlp,),
        layers=2 * sizes.layers,
        head="model.lm_head",
    )


class ImageInText(torch.nn.Module):
    """The library's forward pass, less what no exporter takes: a check on values, and a list of images."""

    def __init__(self, model: torch.nn.Module, image_token: int) -> None:
        super().__init__()
        self.model = model
        self._image_token = image_token

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, pixel_values: torch.Tensor) -> Any:
        parts = self.model.model
        states = parts.vision_tower(pixel_values).last_hidden_state
        features = parts.multi_modal_projector(states[:, 1:])
        embeddings = parts.language_model.embed_tokens(input_ids)
        is_image = (input_ids == self._image_token).unsqueeze(-1).expand_as(embeddings)
        embeddings = embeddings.masked_scatter(is_image, features)
        states = parts.language_model(
            inputs_embeds=embeddings, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        return self.model.lm_head(states)


def _even(head_dim: int) -> int:
    """Rotation takes pairs."""
    return head_dim + head_dim % 2


@architecture("qwen2_vl_vision", "multimodal", square_patches(prefix=0))
def qwen2_vl_vision(sizes: Sizes, implementation: str) -> Built:
    """Patches of one image as rows [T, C], rotated in two directions; four neighbours are merged at the end."""
    config = transformers.models.qwen2_vl.configuration_qwen2_vl.Qwen2VLVisionConfig(
        depth=sizes.layers, embed_dim=sizes.attention_width, hidden_size=sizes.width, mlp_ratio=2,
        num_heads=sizes.heads, patch_size=2, attn_implementation=implementation,
    )  # fmt: skip
    model = transformers.models.qwen2_vl.modeling_qwen2_vl.Qwen2VisionTransformerPretrainedModel._from_config(config)
    rows, columns = (size + size % 2 for size in sizes.grid)

    def draw(binding: Binding, generator: torch.Generator) -> Inputs:
        return {"pixel_values": torch.randn(rows * columns, 2 * CHANNELS * 4, generator=generator)}

    return Built(
        module=OneImage(model, rows, columns),
        draw=draw,
        dims={"batch": (1,)},
        axes={"pixel_values": {}},
        attention=(AttentionRule(r"blocks\.\d+\.attn", sizes.heads, sizes.head_dim, rotary=True),),
        width=(sizes.attention_width,),
        mlp=(2 * sizes.attention_width,),
        layers=sizes.layers,
        head="model.merger",
    )


class OneImage(torch.nn.Module):
    """Fixes the grid of the image, which the model reads from values and uses as sizes."""

    def __init__(self, model: torch.nn.Module, rows: int, columns: int) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("grid", torch.tensor([[1, rows, columns]]), persistent=False)
        positions = get_vision_position_ids(torch.tensor([[1, rows, columns]]), model.spatial_merge_size)
        self.register_buffer("positions", positions, persistent=False)
        self._ends = np.array([0, rows * columns])  # an array, since exporters cannot use a tensor's values as sizes

    def forward(self, pixel_values: torch.Tensor) -> Any:
        result = self.model(
            pixel_values, grid_thw=self.grid, position_ids=self.positions, cu_seqlens=self._ends, max_seqlen=None
        )
        return result.pooler_output


@architecture("qwen2_vl_text", "multimodal", TEXT)
def qwen2_vl_text(sizes: Sizes, implementation: str) -> Built:
    """A decoder rotated by three positions per token: time, row and column."""
    config = transformers.models.qwen2_vl.configuration_qwen2_vl.Qwen2VLTextConfig(
        **llama_sizes(sizes, implementation),
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": _sections(sizes)},
    )

    def draw(binding: Binding, generator: torch.Generator) -> Inputs:
        positions = torch.arange(binding["length"]) // torch.tensor([[[1]], [[2]], [[3]]])
        return {
            **text(sizes.vocabulary)(binding, generator),
            "position_ids": positions.expand(3, binding["batch"], binding["length"]).contiguous(),
        }

    return Built(
        module=PositionedText(transformers.models.qwen2_vl.modeling_qwen2_vl.Qwen2VLTextModel(config)),
        draw=draw,
        dims={"batch": sizes.batch, "length": sizes.length},
        axes={"input_ids": TEXT_AXES, "attention_mask": TEXT_AXES, "position_ids": {1: "batch", 2: "length"}},
        attention=causal(sizes, kv_heads=sizes.kv_heads),
        width=(sizes.attention_width,),
        mlp=(sizes.mlp,),
        layers=sizes.layers,
    )


def _sections(sizes: Sizes) -> list[int]:
    pairs = sizes.head_dim // 2
    return [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]


class PositionedText(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        result = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        )
        return result.last_hidden_state


@architecture("detr", "multimodal", WINDOWS)
def detr(sizes: Sizes, implementation: str) -> Built:
    """A ResNet, an encoder over its grid, and a decoder whose queries are learned."""
    backbone = transformers.ResNetConfig(
        num_channels=CHANNELS, embedding_size=10, hidden_sizes=[10, 14], depths=[1, 1], layer_type="basic",
        out_features=["stage2"],
    )  # fmt: skip
    config = transformers.DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, num_queries=9 if sizes.is_dynamic else sizes.length[0],
        d_model=sizes.attention_width, encoder_layers=sizes.layers, decoder_layers=sizes.layers,
        encoder_attention_heads=sizes.heads, decoder_attention_heads=sizes.heads, encoder_ffn_dim=sizes.mlp,
        decoder_ffn_dim=sizes.mlp, num_labels=5,
        attn_implementation={"": implementation, "backbone_config": "eager"},
    )  # fmt: skip
    rows, columns = (8 * size for size in sizes.grid)  # the grid is that of the backbone's features
    return Built(
        module=Image(transformers.DetrForObjectDetection(config), "logits"),
        draw=image(CHANNELS, rows, columns),
        dims={"batch": sizes.batch},
        axes={"pixel_values": IMAGE_AXES},
        attention=(
            AttentionRule(r"encoder\.layers\.\d+\.self_attn", sizes.heads, sizes.head_dim),
            AttentionRule(r"decoder\.layers\.\d+\.self_attn", sizes.heads, sizes.head_dim),
            AttentionRule("encoder_attn", sizes.heads, sizes.head_dim, kind="cross"),
        ),
        width=(sizes.attention_width,),
        mlp=(sizes.mlp,),
        layers=2 * sizes.layers,
        head="model.class_labels_classifier",
    )
