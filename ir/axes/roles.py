"""What a dim is for: the roles, and the words for dims that are several at once."""

from __future__ import annotations

import enum
from typing import TypeAlias


class Role(enum.Enum):
    BATCH = "batch"
    TOKEN = "token"
    """Positions of a sequence, where nothing tells queries from keys."""
    QUERY = "token-as-query"
    KEY = "token-as-key"
    HEAD = "head"
    KV_HEAD = "kv-head"
    HEAD_DIM = "head-dim"
    CHANNEL = "channel"
    SPATIAL = "spatial"
    VOCABULARY = "vocabulary"
    EXPERT = "expert"
    UNIT = "unit"
    """Size 1, made to be stretched or left over from a reduction."""


Roles: TypeAlias = tuple[Role, ...]
"""The roles of a dim, the most significant digit first; empty where nothing is known."""


def text_of(roles: Roles) -> str:
    return "*".join(role.value for role in roles) or "unknown"
