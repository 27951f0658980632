"""Text encoders: ids and a padding mask to token states [B, T, C]."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from architectures.architecture import Built, Sizes, architecture
from architectures.inputs import TEXT_AXES, text
from architectures.presets import TEXT
from architectures.truth import AttentionRule, Mask
from architectures.wrappers import Text

BOTH = ("sdpa", "eager")


def encoder(
    model: torch.nn.Module,
    sizes: Sizes,
    pattern: str,
    mask: tuple[Mask, ...] = ("padding",),
    rotary: bool = False,
    rules: tuple[AttentionRule, ...] = (),
) -> Built:
    return Built(
        module=Text(model, "last_hidden_state"),
        draw=text(sizes.vocabulary),
        dims={"batch": sizes.batch, "length": sizes.length},
        axes={"input_ids": TEXT_AXES, "attention_mask": TEXT_AXES},
        attention=rules or (AttentionRule(pattern, sizes.heads, sizes.head_dim, mask=mask, rotary=rotary),),
        width=(sizes.attention_width,),
        mlp=(sizes.mlp,),
        layers=sizes.layers,
    )


def bert_sizes(sizes: Sizes, implementation: str) -> dict[str, Any]:
    return {
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.attention_width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.mlp,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
        "attn_implementation": implementation,
    }


@architecture("bert", "encoder", TEXT, BOTH)
def bert(sizes: Sizes, implementation: str) -> Built:
    config = transformers.BertConfig(**bert_sizes(sizes, implementation))
    return encoder(transformers.BertModel(config, add_pooling_layer=False), sizes, "attention.self")


@architecture("roberta", "encoder", TEXT, BOTH)
def roberta(sizes: Sizes, implementation: str) -> Built:
    config = transformers.RobertaConfig(**bert_sizes(sizes, implementation))
    return encoder(transformers.RobertaModel(config, add_pooling_layer=False), sizes, "attention.self")


@architecture("distilbert", "encoder", TEXT)
def distilbert(sizes: Sizes, implementation: str) -> Built:
    config = transformers.DistilBertConfig(
        vocab_size=sizes.vocabulary, dim=sizes.attention_width, n_layers=sizes.layers, n_heads=sizes.heads,
        hidden_dim=sizes.mlp, max_position_embeddings=40, attn_implementation=implementation,
    )  # fmt: skip
    return encoder(transformers.DistilBertModel(config), sizes, r"layer\.\d+\.attention")


@architecture("albert", "encoder", TEXT)
def albert(sizes: Sizes, implementation: str) -> Built:
    """One layer's weights, run several times; embeddings narrower than the states."""
    config = transformers.AlbertConfig(**bert_sizes(sizes, implementation), embedding_size=sizes.width - 2)
    return encoder(transformers.AlbertModel(config, add_pooling_layer=False), sizes, r"albert_layers\.\d+\.attention")


@architecture("deberta_v2", "encoder", TEXT, ("eager",))
def deberta_v2(sizes: Sizes, implementation: str) -> Built:
    """Scores from contents to contents, contents to positions and positions to contents."""
    config = transformers.DebertaV2Config(
        **bert_sizes(sizes, implementation), relative_attention=True, position_buckets=8, share_att_key=True,
        pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm", position_biased_input=False, type_vocab_size=0,
    )  # fmt: skip
    return encoder(transformers.DebertaV2Model(config), sizes, "attention.self", mask=("padding", "bias"))


@architecture("modernbert", "encoder", TEXT)
def modernbert(sizes: Sizes, implementation: str) -> Built:
    """Rotary positions, a gated MLP, and every layer but the first of three within a window."""
    config = transformers.ModernBertConfig(
        **bert_sizes(sizes, implementation), local_attention=4, cls_token_id=1, sep_token_id=2,
        bos_token_id=1, eos_token_id=2, layer_types=["full_attention", "sliding_attention"] * (sizes.layers // 2),
    )  # fmt: skip
    rules = tuple(
        AttentionRule(rf"layers\.{place}\.attn", sizes.heads, sizes.head_dim, mask=mask, rotary=True)
        for place in range(sizes.layers)
        for mask in [("padding", "window") if place % 2 else ("padding",)]
    )
    return encoder(transformers.ModernBertModel(config), sizes, "", rules=rules)


@architecture("mpnet", "encoder", TEXT, ("eager",))
def mpnet(sizes: Sizes, implementation: str) -> Built:
    """A bias by relative position, one table for all layers."""
    config = transformers.MPNetConfig(**bert_sizes(sizes, implementation))
    model = transformers.MPNetModel(config, add_pooling_layer=False)
    return encoder(model, sizes, r"attention\.attn", mask=("padding", "bias"))


@architecture("electra", "encoder", TEXT)
def electra(sizes: Sizes, implementation: str) -> Built:
    config = transformers.ElectraConfig(**bert_sizes(sizes, implementation), embedding_size=sizes.width - 2)
    return encoder(transformers.ElectraModel(config), sizes, "attention.self")
