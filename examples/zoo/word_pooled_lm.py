"""Word-pooled language model: bytes are pooled into words, words are modelled, bytes of all words decoded in parallel.

Thawani et al., "Learn Your Tokens: Word-Pooled Tokenization for Language Modeling", EMNLP Findings 2023.
Each word has S slots before its bytes, as class tokens; an encoder limited to the word (a block-diagonal mask) fills
them, and concatenated they are the word vector. A causal decoder over words predicts the next word's vector, from which
a decoder limited to the word, causal inside it, gives the bytes. Simplified: words are padded to one length instead of
ragged, and given as [B, words, bytes].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import _truth
from zoo._layers import TransformerLayer

PADDING = 0


@dataclass(frozen=True)
class Sizes:
    words: int = 4
    word_bytes: int = 5
    slots: int = 2
    alphabet: int = 20
    heads: int = 2
    head_dim: int = 8
    hidden: int = 24
    word_heads: int = 4
    depth: int = 1
    """Of each of the three parts."""

    @property
    def width(self) -> int:
        """Of a byte; a word has `slots` times that."""
        return self.heads * self.head_dim


def layers(width: int, heads: int, hidden: int, depth: int) -> nn.ModuleList:
    return nn.ModuleList(TransformerLayer(width, heads, hidden) for _ in range(depth))


class WordPooledLM(nn.Module):
    """byte_ids [B, words, word_bytes], padded with 0 -> scores of each byte [B, words, word_bytes, alphabet]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        width, per_word = sizes.width, sizes.slots + sizes.word_bytes
        word_width = sizes.slots * width
        self.embedding = nn.Embedding(sizes.alphabet, width)
        self.slots = nn.Parameter(torch.randn(sizes.slots, width))
        self.position = nn.Parameter(torch.randn(per_word, width))
        self.word_position = nn.Parameter(torch.randn(sizes.words, word_width))
        self.first_word = nn.Parameter(torch.randn(1, 1, word_width))
        self.byte_encoder = layers(width, sizes.heads, sizes.hidden, sizes.depth)
        self.word_decoder = layers(word_width, sizes.word_heads, 2 * sizes.hidden, sizes.depth)
        self.byte_decoder = layers(width, sizes.heads, sizes.hidden, sizes.depth)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, sizes.alphabet)
        word = torch.arange(sizes.words).repeat_interleave(per_word)
        same_word = word[:, None] == word[None]
        self.register_buffer("same_word", same_word)
        self.register_buffer("earlier_in_word", same_word.tril())

    def forward(self, byte_ids: Tensor) -> Tensor:
        embedded = self.embedding(byte_ids)  # [B, words, bytes, C]
        words = self.encode(embedded, byte_ids)
        words = torch.cat([self.first_word.expand(words.shape[0], -1, -1), words[:, :-1]], dim=1) + self.word_position
        for layer in self.word_decoder:
            words = layer(words, is_causal=True)
        return self.decode(words, embedded)

    def encode(self, embedded: Tensor, byte_ids: Tensor) -> Tensor:
        """[B, words, bytes, C] -> [B, words, slots * C]; padded bytes are seen by nobody."""
        s = self.sizes
        slots = self.slots.expand(*embedded.shape[:2], -1, -1)
        x = (torch.cat([slots, embedded], dim=2) + self.position).flatten(1, 2)
        is_real = F.pad(byte_ids != PADDING, (s.slots, 0), value=True).flatten(1, 2)
        mask = self.same_word & is_real[:, None, None, :]  # [B, 1, T, T]
        for layer in self.byte_encoder:
            x = layer(x, mask)
        return x.unflatten(1, (s.words, -1))[:, :, : s.slots].flatten(2)

    def decode(self, words: Tensor, embedded: Tensor) -> Tensor:
        """Word vectors and the bytes so far -> scores; a word's vector stands in the slots before its bytes."""
        s = self.sizes
        slots = words.unflatten(2, (s.slots, s.width))
        x = (torch.cat([slots, embedded], dim=2) + self.position).flatten(1, 2)
        for layer in self.byte_decoder:
            x = layer(x, self.earlier_in_word)
        # The last slot predicts the first byte, a byte the next one.
        states = x.unflatten(1, (s.words, -1))[:, :, s.slots - 1 : -1]
        return self.head(self.norm(states))


def build(**sizes: int) -> nn.Module:
    return WordPooledLM(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    s = Sizes(**sizes)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, s.alphabet, (batch, s.words, s.word_bytes), generator=generator)
    lengths = torch.randint(1, s.word_bytes + 1, (batch, s.words, 1), generator=generator)
    return {"byte_ids": torch.where(torch.arange(s.word_bytes) < lengths, ids, PADDING)}


def truth(**sizes: int) -> _truth.Truth:
    s = Sizes(**sizes)
    word_head_dim = s.slots * s.width // s.word_heads
    parts = (
        ("byte_encoder", s.heads, s.head_dim, s.hidden, "block-diagonal+padding"),
        ("word_decoder", s.word_heads, word_head_dim, 2 * s.hidden, "causal"),
        ("byte_decoder", s.heads, s.head_dim, s.hidden, "block-diagonal+causal"),
    )
    sites, mlps = [], []
    for part, heads, head_dim, hidden, mask in parts:
        for i in range(s.depth):
            sites.append(_truth.attention(f"{part}.{i}.attention", heads, head_dim, mask=mask))
            mlps.append(_truth.mlp(f"{part}.{i}.mlp", hidden))
    return {"attention": sites, "mlp": mlps}


TRUTH = truth()
DYNAMIC = {"byte_ids": {0: "batch"}}
COLLIDING = {
    "words": 4,
    "word_bytes": 4,
    "slots": 4,
    "alphabet": 4,
    "heads": 4,
    "head_dim": 4,
    "hidden": 16,
    "word_heads": 4,
}
