"""What an attention site is, and what a refusal to call something one."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir
from opgraft.ir.axes.roles import Roles
from opgraft.ir.dims import Size


@dataclass(frozen=True)
class Addend:
    """What is added to the scores, or decides which are replaced."""

    value: onnx_ir.Value
    node: onnx_ir.Node
    """Add, Sub or Where, or the attention operator itself."""
    query: int
    key: int
    """Numbers of both token dims of the scores there, or of the operands."""
    query_axis: int
    key_axis: int
    """Their positions in the scores."""
    rank: int
    """Of the scores."""
    keeps_where: bool | None = None
    """For a condition: which of its values keeps the score."""


@dataclass(frozen=True)
class AttentionSite:
    """One attention: three operands, its scores on the way through the softmax, and what its dims are."""

    scores: onnx_ir.Node
    softmax: onnx_ir.Node
    context: onnx_ir.Node
    query: onnx_ir.Value
    key: onnx_ir.Value
    value: onnx_ir.Value
    output: onnx_ir.Value
    heads: Size
    kv_heads: Size
    head_dim: Size
    """Channels of a head; where channels attend to channels, as many as there are queries."""
    scale: float | None
    """What query x key is multiplied with in all; None where it is no constant."""
    addends: tuple[Addend, ...]
    is_channel: bool
    """Whether tokens are summed over in the scores, so that channels attend to channels."""
    is_cross: bool
    """Whether queries and keys come from different dims of the inputs."""
    has_constant_query: bool
    is_causal: bool
    """Whether the operator itself hides later keys."""
    softmax_positions: tuple[int, int] | None
    """Positions of the query and the key dim at the softmax; None where the query dim is merged with others there."""
    value_key: int
    """Number of the key dim of the values."""
    output_query: int | None
    """Position of the query dim in the output."""
    roles: dict[int, Roles] = field(hash=False)
    """Of the dims of all values named here and of the scores, by number."""
    undecided: str = ""
    """What else the operator hides keys by, which is not looked into."""


@dataclass(frozen=True)
class Refusal:
    """A softmax between two products that is not claimed as attention, and why."""

    node: onnx_ir.Node
    reason: str
    roles: dict[int, Roles] = field(default_factory=dict, hash=False)
    """What is known all the same."""
