"""Text decoders without a cache: ids and a padding mask to logits [B, T, vocabulary]."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import transformers

from architectures.architecture import Built, Sizes, architecture
from architectures.inputs import TEXT_AXES, text
from architectures.presets import TEXT
from architectures.truth import AttentionRule, Mask
from architectures.wrappers import CausalText, MasklessCausalText

BOTH = ("sdpa", "eager")
WINDOW = 3
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def decoder(
    model: torch.nn.Module,
    sizes: Sizes,
    attention: tuple[AttentionRule, ...],
    width: int | None = None,
    head: str = "model.lm_head",
    experts: int = 0,
    masked: bool = True,
) -> Built:
    names = ("input_ids", "attention_mask") if masked else ("input_ids",)
    return Built(
        module=(CausalText if masked else MasklessCausalText)(model, "logits"),
        draw=text(sizes.vocabulary, masked),
        dims={"batch": sizes.batch, "length": sizes.length},
        axes=dict.fromkeys(names, TEXT_AXES),
        attention=attention,
        width=(sizes.attention_width if width is None else width,),
        mlp=(sizes.mlp,),
        layers=sizes.layers,
        head=head,
        experts=experts,
    )


def causal(
    sizes: Sizes,
    pattern: str = "self_attn",
    kv_heads: int | None = None,
    rotary: bool = True,
    also: tuple[Mask, ...] = (),
    padded: bool = True,
) -> tuple[AttentionRule, ...]:
    mask: tuple[Mask, ...] = ("causal", *(("padding",) if padded else ()), *also)  # type: ignore[assignment]
    return (AttentionRule(pattern, sizes.heads, sizes.head_dim, kv_heads, mask=mask, rotary=rotary),)


def llama_sizes(sizes: Sizes, implementation: str, width: int | None = None) -> dict[str, Any]:
    return {
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.attention_width if width is None else width,
        "intermediate_size": sizes.mlp,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "max_position_embeddings": 40,
        "attn_implementation": implementation,
        **SPECIAL,
    }


@architecture("gpt2", "decoder", TEXT, BOTH)
def gpt2(sizes: Sizes, implementation: str) -> Built:
    return _gpt2(sizes, implementation)


@architecture("gpt2_maskless", "decoder", TEXT)
def gpt2_maskless(sizes: Sizes, implementation: str) -> Built:
    return _gpt2(sizes, implementation, masked=False)


def _gpt2(sizes: Sizes, implementation: str, masked: bool = True) -> Built:
    config = transformers.GPT2Config(
        vocab_size=sizes.vocabulary, n_positions=40, n_embd=sizes.attention_width, n_layer=sizes.layers,
        n_head=sizes.heads, n_inner=sizes.mlp, attn_implementation=implementation, **SPECIAL,
    )  # fmt: skip
    rules = causal(sizes, r"h\.\d+\.attn", rotary=False, padded=masked)
    return decoder(transformers.GPT2LMHeadModel(config), sizes, rules, masked=masked)


@architecture("gpt_neo", "decoder", TEXT, ("eager",))
def gpt_neo(sizes: Sizes, implementation: str) -> Built:
    """Full and windowed layers in turn; scores are not scaled."""
    config = transformers.GPTNeoConfig(
        vocab_size=sizes.vocabulary, max_position_embeddings=40, hidden_size=sizes.attention_width,
        num_layers=sizes.layers, num_heads=sizes.heads, intermediate_size=sizes.mlp, window_size=WINDOW,
        attention_types=[[["global", "local"], sizes.layers // 2]], attn_implementation=implementation, **SPECIAL,
    )  # fmt: skip
    rules = tuple(
        rule
        for place in range(sizes.layers)
        for rule in causal(sizes, rf"h\.{place}\.attn\.attention", rotary=False, also=("window",) if place % 2 else ())
    )
    return decoder(transformers.GPTNeoForCausalLM(config), sizes, rules)


@architecture("gpt_neox", "decoder", TEXT)
def gpt_neox(sizes: Sizes, implementation: str) -> Built:
    """Attention and MLP in parallel; half of a head's channels are rotated; one fused projection, per head."""
    config = transformers.GPTNeoXConfig(
        vocab_size=sizes.vocabulary, hidden_size=sizes.attention_width, num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads, intermediate_size=sizes.mlp, max_position_embeddings=40,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        attn_implementation=implementation, **SPECIAL,
    )  # fmt: skip
    rules = causal(sizes, r"layers\.\d+\.attention")
    return decoder(transformers.GPTNeoXForCausalLM(config), sizes, rules)


@architecture("gptj", "decoder", TEXT, ("eager",))
def gptj(sizes: Sizes, implementation: str) -> Built:
    """Rotation of neighbouring channels, of half of them."""
    config = transformers.GPTJConfig(
        vocab_size=sizes.vocabulary, n_positions=40, n_embd=sizes.attention_width, n_layer=sizes.layers,
        n_head=sizes.heads, n_inner=sizes.mlp, rotary_dim=sizes.head_dim // 2,
        attn_implementation=implementation, **SPECIAL,
    )  # fmt: skip
    return decoder(transformers.GPTJForCausalLM(config), sizes, causal(sizes, r"h\.\d+\.attn"))


@architecture("opt", "decoder", TEXT)
def opt(sizes: Sizes, implementation: str) -> Built:
    config = transformers.OPTConfig(
        vocab_size=sizes.vocabulary, hidden_size=sizes.attention_width, num_hidden_layers=sizes.layers,
        ffn_dim=sizes.mlp, num_attention_heads=sizes.heads, max_position_embeddings=40,
        word_embed_proj_dim=sizes.attention_width, attn_implementation=implementation, **SPECIAL,
    )  # fmt: skip
    return decoder(transformers.OPTForCausalLM(config), sizes, causal(sizes, rotary=False))


@architecture("bloom", "decoder", TEXT, ("eager",))
def bloom(sizes: Sizes, implementation: str) -> Built:
    """Scores biased by distance, a slope per head; the MLP is always four times as wide."""
    config = transformers.BloomConfig(
        vocab_size=sizes.vocabulary, hidden_size=sizes.attention_width, n_layer=sizes.layers, n_head=sizes.heads,
        attn_implementation=implementation, **SPECIAL,
    )  # fmt: skip
    model = transformers.BloomForCausalLM(config)
    built = decoder(model, sizes, causal(sizes, "self_attention", rotary=False, also=("bias",)))
    return _with_mlp(built, 4 * sizes.attention_width)


def _with_mlp(built: Built, width: int) -> Built:
    return replace(built, mlp=(width,))


@architecture("llama", "decoder", TEXT, BOTH)
def llama(sizes: Sizes, implementation: str) -> Built:
    return _llama(sizes, implementation)


@architecture("llama_maskless", "decoder", TEXT)
def llama_maskless(sizes: Sizes, implementation: str) -> Built:
    return _llama(sizes, implementation, masked=False)


def _llama(sizes: Sizes, implementation: str, masked: bool = True) -> Built:
    config = transformers.LlamaConfig(**llama_sizes(sizes, implementation, sizes.width), head_dim=sizes.head_dim)
    rules = causal(sizes, kv_heads=sizes.kv_heads, padded=masked)
    return decoder(transformers.LlamaForCausalLM(config), sizes, rules, sizes.width, masked=masked)


@architecture("mistral", "decoder", TEXT, BOTH)
def mistral(sizes: Sizes, implementation: str) -> Built:
    config = transformers.MistralConfig(
        **llama_sizes(sizes, implementation, sizes.width), head_dim=sizes.head_dim, sliding_window=WINDOW
    )
    rules = causal(sizes, kv_heads=sizes.kv_heads, also=("window",))
    return decoder(transformers.MistralForCausalLM(config), sizes, rules, sizes.width)


@architecture("mixtral", "decoder", TEXT)
def mixtral(sizes: Sizes, implementation: str) -> Built:
    config = transformers.MixtralConfig(
        **llama_sizes(sizes, implementation, sizes.width), head_dim=sizes.head_dim,
        num_local_experts=sizes.experts, num_experts_per_tok=2, experts_implementation="batched_mm",
    )  # fmt: skip
    rules = causal(sizes, kv_heads=sizes.kv_heads)
    return decoder(transformers.MixtralForCausalLM(config), sizes, rules, sizes.width, experts=sizes.experts)


@architecture("qwen2", "decoder", TEXT)
def qwen2(sizes: Sizes, implementation: str) -> Built:
    config = transformers.Qwen2Config(**llama_sizes(sizes, implementation))
    return decoder(transformers.Qwen2ForCausalLM(config), sizes, causal(sizes, kv_heads=sizes.kv_heads))


@architecture("qwen3", "decoder", TEXT, BOTH)
def qwen3(sizes: Sizes, implementation: str) -> Built:
    """Queries and keys are normalised per head."""
    config = transformers.Qwen3Config(**llama_sizes(sizes, implementation, sizes.width), head_dim=sizes.head_dim)
    rules = causal(sizes, kv_heads=sizes.kv_heads)
    return decoder(transformers.Qwen3ForCausalLM(config), sizes, rules, sizes.width)


@architecture("qwen3_moe", "decoder", TEXT)
def qwen3_moe(sizes: Sizes, implementation: str) -> Built:
    config = transformers.Qwen3MoeConfig(
        **llama_sizes(sizes, implementation, sizes.width), head_dim=sizes.head_dim,
        moe_intermediate_size=sizes.mlp, num_experts=sizes.experts, num_experts_per_tok=2, norm_topk_prob=True,
        experts_implementation="batched_mm",
    )  # fmt: skip
    rules = causal(sizes, kv_heads=sizes.kv_heads)
    return decoder(transformers.Qwen3MoeForCausalLM(config), sizes, rules, sizes.width, experts=sizes.experts)


def _alternating(sizes: Sizes) -> tuple[list[str], tuple[AttentionRule, ...]]:
    """Windowed and full layers in turn."""
    kinds = ["full_attention" if place % 2 else "sliding_attention" for place in range(sizes.layers)]
    rules = tuple(
        rule
        for place, kind in enumerate(kinds)
        for rule in causal(
            sizes,
            rf"layers\.{place}\.self_attn",
            sizes.kv_heads,
            also=("window",) if kind == "sliding_attention" else (),
        )
    )
    return kinds, rules


@architecture("gemma2", "decoder", TEXT, ("eager",))
def gemma2(sizes: Sizes, implementation: str) -> Built:
    """Scores and logits are capped by tanh; norms on both sides of every branch."""
    kinds, rules = _alternating(sizes)
    config = transformers.Gemma2Config(
        **llama_sizes(sizes, implementation, sizes.width), head_dim=sizes.head_dim, layer_types=kinds,
        sliding_window=WINDOW, query_pre_attn_scalar=sizes.head_dim,
    )  # fmt: skip
    return decoder(transformers.Gemma2ForCausalLM(config), sizes, rules, sizes.width)


@architecture("gemma3_text", "decoder", TEXT)
def gemma3_text(sizes: Sizes, implementation: str) -> Built:
    kinds, rules = _alternating(sizes)
    config = transformers.Gemma3TextConfig(
        **llama_sizes(sizes, implementation, sizes.width), head_dim=sizes.head_dim, layer_types=kinds,
        sliding_window=WINDOW, query_pre_attn_scalar=sizes.head_dim,
    )  # fmt: skip
    return decoder(transformers.Gemma3ForCausalLM(config), sizes, rules, sizes.width)


@architecture("phi", "decoder", TEXT)
def phi(sizes: Sizes, implementation: str) -> Built:
    """Attention and MLP in parallel from one norm; half of a head's channels are rotated."""
    config = transformers.PhiConfig(
        **llama_sizes(sizes, implementation),
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    )
    return decoder(transformers.PhiForCausalLM(config), sizes, causal(sizes, kv_heads=sizes.kv_heads))


@architecture("phi3", "decoder", TEXT)
def phi3(sizes: Sizes, implementation: str) -> Built:
    """Fused projections: queries, keys and values in one, gate and up in another."""
    config = transformers.Phi3Config(**llama_sizes(sizes, implementation), original_max_position_embeddings=40)
    return decoder(transformers.Phi3ForCausalLM(config), sizes, causal(sizes, kv_heads=sizes.kv_heads))


@architecture("falcon", "decoder", TEXT)
def falcon(sizes: Sizes, implementation: str) -> Built:
    """One key and value head for all queries; attention and MLP in parallel."""
    config = transformers.FalconConfig(
        vocab_size=sizes.vocabulary, hidden_size=sizes.attention_width, num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads, ffn_hidden_size=sizes.mlp, max_position_embeddings=40,
        attn_implementation=implementation, **SPECIAL,
    )  # fmt: skip
    return decoder(transformers.FalconForCausalLM(config), sizes, causal(sizes, "self_attention", kv_heads=1))


@architecture("stablelm", "decoder", TEXT)
def stablelm(sizes: Sizes, implementation: str) -> Built:
    config = transformers.StableLmConfig(
        **llama_sizes(sizes, implementation), use_qkv_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    )  # fmt: skip
    return decoder(transformers.StableLmForCausalLM(config), sizes, causal(sizes, kv_heads=sizes.kv_heads))


@architecture("olmo2", "decoder", TEXT)
def olmo2(sizes: Sizes, implementation: str) -> Built:
    """Norms after the branches; queries and keys are normalised over all heads."""
    config = transformers.Olmo2Config(**llama_sizes(sizes, implementation))
    return decoder(transformers.Olmo2ForCausalLM(config), sizes, causal(sizes, kv_heads=sizes.kv_heads))


@architecture("cohere", "decoder", TEXT)
def cohere(sizes: Sizes, implementation: str) -> Built:
    """Rotation of neighbouring channels; parallel branches; logits are scaled."""
    config = transformers.CohereConfig(**llama_sizes(sizes, implementation), use_qk_norm=True)
    return decoder(transformers.CohereForCausalLM(config), sizes, causal(sizes, kv_heads=sizes.kv_heads))
