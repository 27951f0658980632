"""Sizes for every family: all different, then two ways of making different axes have the same size.

`default` keeps all sizes apart, with dynamic dims: batch 5 or 9, tokens 7 or 13, heads 6, kv-heads 2, head channels 8,
residual channels 42, their product 48, MLP 52, vocabulary 61. In `colliding_heads` batch = tokens = heads = head
channels; in `colliding_channels` tokens = channels = MLP width = vocabulary and batch = heads. Both are static, so that
neither a size nor a symbol tells one axis from another.
"""

from __future__ import annotations

from dataclasses import replace

from architectures.architecture import Sizes, preset_table

_DEFAULT = Sizes("default")
_HEADS = Sizes(
    "colliding_heads", batch=(4,), length=(4,), heads=4, kv_heads=2, head_dim=4, width=16, mlp=24, vocabulary=20,
    experts=4, state=4, grid=(2, 2), window=2,
)  # fmt: skip
_CHANNELS = Sizes(
    "colliding_channels", batch=(2,), length=(16,), heads=2, kv_heads=1, head_dim=8, width=16, mlp=16, vocabulary=16,
    experts=16, state=16, grid=(4, 4), window=4,
)  # fmt: skip

TEXT = preset_table(_DEFAULT, _HEADS, _CHANNELS)


def patches(prefix: int) -> dict[str, Sizes]:
    """For vision transformers with `prefix` tokens before the patches: these count as tokens."""
    tokens = 4 + prefix
    heads = replace(_HEADS, batch=(tokens,), heads=tokens, kv_heads=1, head_dim=tokens, width=tokens**2)
    grid = {0: (4, 4), 1: (3, 5), 2: (2, 7)}[prefix]
    return preset_table(_DEFAULT, heads, replace(_CHANNELS, grid=grid))


def square_patches(prefix: int) -> dict[str, Sizes]:
    """As `patches`, for architectures that take square images only."""
    table = patches(prefix)
    channels = table["colliding_channels"]
    if prefix == 1:  # 3 * 3 + 1 tokens
        channels = replace(channels, grid=(3, 3), length=(10,), heads=2, head_dim=5, width=10, mlp=10, vocabulary=10)
    return preset_table(replace(table["default"], grid=(4, 4)), table["colliding_heads"], channels)


WINDOWS = preset_table(
    replace(_DEFAULT, batch=(5, 7), heads=3, head_dim=8, mlp=72, grid=(12, 12)),
    replace(_HEADS, grid=(4, 4)),  # windows of 4 tokens, 4 of them
    replace(_CHANNELS, grid=(8, 8)),  # windows of 16 tokens, 16 channels
)
"""For window attention over a grid; heads and width are those of the first stage."""

CONVOLUTIONS = preset_table(
    replace(_DEFAULT, batch=(5, 9), width=12, grid=(4, 7)),
    replace(_HEADS, width=4, grid=(4, 4)),  # batch, channels, rows and columns of the first stage
    replace(_CHANNELS, batch=(8,), width=8, grid=(8, 8)),
)
