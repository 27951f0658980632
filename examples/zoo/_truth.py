"""The form in which a file of the zoo states what is known of its model; the tests check it against a run."""

from __future__ import annotations

from typing import Any

Site = dict[str, Any]
Truth = dict[str, list[Site]]


def attention(
    path: str,
    heads: int,
    head_dim: int,
    *,
    kv_heads: int | None = None,
    kind: str = "self",
    mask: str | None = None,
    axis: str = "token",
    calls: int = 1,
    rotary: bool = False,
) -> Site:
    """The softmax attention that the module at `path` computes.

    kind: `self`; `cross` where keys come from other tokens than queries; `aggregated` where each query has keys of
        its own (neighbours) beside shared ones, so that no matrix of tokens by tokens exists.
    mask: None, or what acts on the scores, joined by `+`: `causal`, `block-causal`, `block-diagonal`, `sparse`,
        `padding`, `border`, `shift` (boolean or -inf), `bias` (finite: relative positions).
    axis: what the tokens are: `token`, `window`, `group`, `patch`, `frame`, `channel`, `series`.
    calls: how often one forward pass runs it.
    rotary: whether queries and keys are turned by their positions.
    """
    return {
        "path": path,
        "heads": heads,
        "kv_heads": heads if kv_heads is None else kv_heads,
        "head_dim": head_dim,
        "kind": kind,
        "mask": mask,
        "axis": axis,
        "calls": calls,
        "rotary": rotary,
    }


def mlp(path: str, width: int, *, activation: str = "gelu", gated: bool = False) -> Site:
    """The module at `path` takes channels to `width` hidden ones (per expert), applies `activation`, and back."""
    return {"path": path, "width": width, "activation": activation, "gated": gated}
