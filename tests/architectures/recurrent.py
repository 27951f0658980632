"""Decoders with a recurrent state: state spaces, linear recurrences, and hybrids with attention.

The recurrence over tokens is unrolled by the exporters, so the number of tokens is static in all but Mamba-2 kin.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import transformers

from architectures.architecture import Built, Sizes, architecture
from architectures.decoders import SPECIAL, WINDOW, causal, decoder, llama_sizes
from architectures.presets import TEXT


def fixed_length(built: Built) -> Built:
    return replace(built, dims={**built.dims, "length": built.dims["length"][:1]})


@architecture("mamba", "recurrent", TEXT)
def mamba(sizes: Sizes, implementation: str) -> Built:
    config = transformers.MambaConfig(
        vocab_size=sizes.vocabulary, hidden_size=sizes.width, state_size=sizes.state,
        num_hidden_layers=sizes.layers, expand=2, time_step_rank=3, **SPECIAL,
    )  # fmt: skip
    return fixed_length(_headless(transformers.MambaForCausalLM(config), sizes, sizes.width))


@architecture("mamba2", "recurrent", TEXT)
def mamba2(sizes: Sizes, implementation: str) -> Built:
    """Computed by chunks, here of five tokens."""
    config = transformers.Mamba2Config(
        vocab_size=sizes.vocabulary, hidden_size=sizes.attention_width // 2 * 2, state_size=sizes.state,
        num_hidden_layers=sizes.layers, expand=2, num_heads=2 * sizes.heads, head_dim=sizes.head_dim, n_groups=2,
        chunk_size=5, **SPECIAL,
    )  # fmt: skip
    return _headless(transformers.Mamba2ForCausalLM(config), sizes, sizes.attention_width)


def _headless(model: torch.nn.Module, sizes: Sizes, width: int) -> Built:
    return replace(decoder(model, sizes, (), width), mlp=())


@architecture("recurrent_gemma", "recurrent", TEXT)
def recurrent_gemma(sizes: Sizes, implementation: str) -> Built:
    """A gated linear recurrence, then attention within a window; half of the head is rotated."""
    config = transformers.RecurrentGemmaConfig(
        vocab_size=sizes.vocabulary, hidden_size=sizes.attention_width, intermediate_size=2 * sizes.mlp,
        num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads, num_key_value_heads=sizes.kv_heads,
        lru_width=sizes.attention_width, attention_window_size=WINDOW, block_types=["recurrent", "attention"],
        attn_implementation=implementation, **SPECIAL,
    )  # fmt: skip
    rules = causal(sizes, "temporal_block", sizes.kv_heads, also=("window",))
    rules = tuple(replace(rule, pattern=r"layers\.1\.temporal_block") for rule in rules)
    return fixed_length(decoder(transformers.RecurrentGemmaForCausalLM(config), sizes, rules))


@architecture("jamba", "recurrent", TEXT)
def jamba(sizes: Sizes, implementation: str) -> Built:
    """Mamba, then attention with experts; no positions."""
    config = transformers.JambaConfig(
        **llama_sizes(sizes, implementation),
        num_experts=sizes.experts, num_experts_per_tok=2, expert_layer_period=2, expert_layer_offset=1,
        attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False, mamba_d_state=sizes.state,
        mamba_dt_rank=3, experts_implementation="batched_mm",
    )  # fmt: skip
    rules = causal(sizes, kv_heads=sizes.kv_heads, rotary=False)
    return fixed_length(decoder(transformers.JambaForCausalLM(config), sizes, rules, experts=sizes.experts))


@architecture("bamba", "recurrent", TEXT)
def bamba(sizes: Sizes, implementation: str) -> Built:
    """Mamba-2, then attention; half of the head is rotated."""
    config = transformers.BambaConfig(
        **llama_sizes(sizes, implementation), attn_layer_indices=[1], mamba_n_heads=2 * sizes.heads,
        mamba_d_head=sizes.head_dim, mamba_n_groups=2, mamba_d_state=sizes.state, mamba_chunk_size=5,
    )  # fmt: skip
    rules = causal(sizes, kv_heads=sizes.kv_heads)
    return decoder(transformers.BambaForCausalLM(config), sizes, rules)


@architecture("zamba", "recurrent", TEXT)
def zamba(sizes: Sizes, implementation: str) -> Built:
    """Mamba layers and one attention block shared by the hybrid ones, over states and embeddings joined."""
    config = transformers.ZambaConfig(
        vocab_size=sizes.vocabulary, hidden_size=sizes.attention_width, intermediate_size=sizes.mlp,
        num_hidden_layers=3, num_attention_heads=sizes.heads, num_key_value_heads=sizes.heads, n_mamba_heads=2,
        use_mamba_kernels=False, mamba_d_state=sizes.state, mamba_dt_rank=3, max_position_embeddings=40,
        layers_block_type=["mamba", "hybrid", "hybrid"], attn_implementation=implementation, **SPECIAL,
    )  # fmt: skip
    rules = causal(sizes, rotary=False)
    rules = tuple(replace(rule, head_dim=2 * sizes.head_dim) for rule in rules)
    return fixed_length(replace(decoder(transformers.ZambaForCausalLM(config), sizes, rules), layers=3))
