"""Encoder and decoder of text or speech, with cross-attention, and speech encoders."""

from __future__ import annotations

import torch
import transformers

from architectures.architecture import Binding, Built, Inputs, Sizes, architecture
from architectures.inputs import SOURCE_AXES, TARGET_AXES, text_pair, token_ids, wave
from architectures.presets import TEXT
from architectures.truth import AttentionRule
from architectures.wrappers import SpeechToText, TextToText, Wave

BOTH = ("sdpa", "eager")


def text_to_text(model: torch.nn.Module, sizes: Sizes, rules: tuple[AttentionRule, ...], width: int) -> Built:
    """Source and target differ in length, except where sizes collide."""
    target = tuple(length + 4 for length in sizes.length) if sizes.is_dynamic else sizes.length
    return Built(
        module=TextToText(model, "logits"),
        draw=text_pair(sizes.vocabulary),
        dims={"batch": sizes.batch, "source": sizes.length, "target": target},
        axes={"input_ids": SOURCE_AXES, "attention_mask": SOURCE_AXES, "decoder_input_ids": TARGET_AXES},
        attention=rules,
        width=(width,),
        mlp=(sizes.mlp,),
        layers=2 * sizes.layers,
        head="model.lm_head",
    )


@architecture("t5", "sequence", TEXT, ("eager",))
def t5(sizes: Sizes, implementation: str) -> Built:
    """Scores are not scaled and biased by relative position, the table of the first layer."""
    config = transformers.T5Config(
        vocab_size=sizes.vocabulary, d_model=sizes.width, d_kv=sizes.head_dim, d_ff=sizes.mlp,
        num_layers=sizes.layers, num_heads=sizes.heads, relative_attention_num_buckets=8,
        relative_attention_max_distance=16, attn_implementation=implementation,
    )  # fmt: skip
    heads, head_dim = sizes.heads, sizes.head_dim
    rules = (
        AttentionRule(r"encoder\.block\.\d+\.layer\.0\.SelfAttention", heads, head_dim, mask=("padding", "bias")),
        AttentionRule(r"decoder\.block\.\d+\.layer\.0\.SelfAttention", heads, head_dim, mask=("causal", "bias")),
        AttentionRule(r"layer\.1\.EncDecAttention", heads, head_dim, kind="cross", mask=("padding",)),
    )
    return text_to_text(transformers.T5ForConditionalGeneration(config), sizes, rules, sizes.width)


def _bart_rules(sizes: Sizes, masked: bool = True) -> tuple[AttentionRule, ...]:
    heads, head_dim = sizes.heads, sizes.head_dim
    padding = ("padding",) if masked else ()
    return (
        AttentionRule(r"encoder\.layers\.\d+\.self_attn", heads, head_dim, mask=padding),  # type: ignore[arg-type]
        AttentionRule(r"decoder\.layers\.\d+\.self_attn", heads, head_dim, mask=("causal",)),
        AttentionRule(r"encoder_attn", heads, head_dim, kind="cross", mask=padding),  # type: ignore[arg-type]
    )


@architecture("bart", "sequence", TEXT, BOTH)
def bart(sizes: Sizes, implementation: str) -> Built:
    config = transformers.BartConfig(
        vocab_size=sizes.vocabulary, d_model=sizes.attention_width, max_position_embeddings=40,
        encoder_layers=sizes.layers, decoder_layers=sizes.layers, encoder_attention_heads=sizes.heads,
        decoder_attention_heads=sizes.heads, encoder_ffn_dim=sizes.mlp, decoder_ffn_dim=sizes.mlp,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2,
        attn_implementation=implementation,
    )  # fmt: skip
    model = transformers.BartForConditionalGeneration(config)
    return text_to_text(model, sizes, _bart_rules(sizes), sizes.attention_width)


@architecture("pegasus", "sequence", TEXT)
def pegasus(sizes: Sizes, implementation: str) -> Built:
    """As BART with norms before the branches and sinusoidal positions."""
    config = transformers.PegasusConfig(
        vocab_size=sizes.vocabulary, d_model=sizes.attention_width, max_position_embeddings=40,
        encoder_layers=sizes.layers, decoder_layers=sizes.layers, encoder_attention_heads=sizes.heads,
        decoder_attention_heads=sizes.heads, encoder_ffn_dim=sizes.mlp, decoder_ffn_dim=sizes.mlp,
        attn_implementation=implementation,
    )  # fmt: skip
    model = transformers.PegasusForConditionalGeneration(config)
    return text_to_text(model, sizes, _bart_rules(sizes), sizes.attention_width)


@architecture("whisper", "sequence", TEXT, BOTH)
def whisper(sizes: Sizes, implementation: str) -> Built:
    """A spectrogram of fixed length, halved by a strided convolution."""
    frames = sizes.length[0] + 4 if sizes.is_dynamic else sizes.length[0]
    bins = 10 if sizes.is_dynamic else sizes.head_dim
    config = transformers.WhisperConfig(
        vocab_size=sizes.vocabulary, num_mel_bins=bins, d_model=sizes.attention_width,
        encoder_layers=sizes.layers, decoder_layers=sizes.layers, encoder_attention_heads=sizes.heads,
        decoder_attention_heads=sizes.heads, encoder_ffn_dim=sizes.mlp, decoder_ffn_dim=sizes.mlp,
        max_source_positions=frames, max_target_positions=40, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, begin_suppress_tokens=None, attn_implementation=implementation,
    )  # fmt: skip

    def draw(binding: Binding, generator: torch.Generator) -> Inputs:
        return {
            "input_features": torch.randn(binding["batch"], bins, 2 * frames, generator=generator),
            "decoder_input_ids": token_ids(binding, generator, sizes.vocabulary, "target"),
        }

    return Built(
        module=SpeechToText(transformers.WhisperForConditionalGeneration(config), "logits"),
        draw=draw,
        dims={"batch": sizes.batch, "target": sizes.length},
        axes={"input_features": {0: "batch"}, "decoder_input_ids": TARGET_AXES},
        attention=_bart_rules(sizes, masked=False),
        width=(sizes.attention_width,),
        mlp=(sizes.mlp,),
        layers=2 * sizes.layers,
        head="model.proj_out",
    )


@architecture("wav2vec2", "sequence", TEXT)
def wav2vec2(sizes: Sizes, implementation: str) -> Built:
    """Strided convolutions over samples, then an encoder with a convolution as position embedding."""
    config = transformers.Wav2Vec2Config(
        vocab_size=sizes.vocabulary, hidden_size=sizes.attention_width, num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads, intermediate_size=sizes.mlp, conv_dim=(14, 18), conv_kernel=(4, 3),
        conv_stride=(4, 2), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, apply_spec_augment=False,
        attn_implementation=implementation,
    )  # fmt: skip
    samples = tuple(8 * length + 4 for length in sizes.length)  # as many frames after both convolutions as tokens
    return Built(
        module=Wave(transformers.Wav2Vec2ForCTC(config), "logits"),
        draw=wave("input_values"),
        dims={"batch": sizes.batch, "samples": samples},
        axes={"input_values": {0: "batch", 1: "samples"}},
        attention=(AttentionRule(r"layers\.\d+\.attention", sizes.heads, sizes.head_dim),),
        width=(sizes.attention_width,),
        mlp=(sizes.mlp,),
        layers=sizes.layers,
        head="model.lm_head",
    )
