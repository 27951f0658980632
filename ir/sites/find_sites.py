"""All analyses of one program, in order: shapes, axes, origins, attention, masks, roles, and the other sites."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import onnx_ir
from opgraft.ir.axes import AxisGraph, analyze_axes, inline_calls
from opgraft.ir.axes.origins import Origins
from opgraft.ir.program import Program
from opgraft.ir.shapes import ShapeAnalysis, analyze_shapes
from opgraft.ir.sites.assign_roles import RoleTable, assign_roles
from opgraft.ir.sites.attention import find_attention
from opgraft.ir.sites.attention_site import AttentionSite, Refusal
from opgraft.ir.sites.layers import (
    Embedding,
    GatedMlp,
    Linear,
    Mlp,
    Residual,
    find_convolutions,
    find_embeddings,
    find_linears,
    find_mlps,
    find_recurrences,
    find_residuals,
    find_routers,
)
from opgraft.ir.sites.masks import Mask, classify_masks
from opgraft.ir.sites.norms import Norm, find_norms
from opgraft.ir.sites.probe import small_bindings
from opgraft.ir.sites.rotary import find_rotary


@dataclass(frozen=True)
class Sites:
    """What was found in `program`, whose local functions are inlined; further sites are looked for when asked."""

    program: Program
    facts: ShapeAnalysis
    axes: AxisGraph
    origins: Origins
    attention: tuple[AttentionSite, ...]
    masks: tuple[Mask, ...]
    """Of each attention."""
    refused: tuple[Refusal, ...]
    """Where attention is suspected and not claimed."""
    roles: RoleTable

    @cached_property
    def _nodes(self) -> list[onnx_ir.Node]:
        return [n for n in self.program.graph if any(v not in self.axes.constant for v in n.outputs)]

    @cached_property
    def rotary(self) -> tuple[bool | None, ...]:
        """Of each attention: whether its queries are turned by position; None where that could not be tried."""
        bindings = small_bindings(self.program, self.axes)
        normalized = {norm.output for norm in self.norms}
        return tuple(find_rotary(self.program, self.axes, self.attention, normalized, bindings))

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        return tuple(find_linears(self._nodes, self.axes))

    @cached_property
    def norms(self) -> tuple[Norm, ...]:
        return tuple(find_norms(self._nodes, self.axes))

    @cached_property
    def mlps(self) -> tuple[GatedMlp | Mlp, ...]:
        return tuple(find_mlps(self.linears, self.axes))

    @cached_property
    def embeddings(self) -> tuple[Embedding, ...]:
        return tuple(find_embeddings(self._nodes, self.axes))

    @cached_property
    def residuals(self) -> tuple[Residual, ...]:
        return tuple(find_residuals(self._nodes, self.axes))

    @cached_property
    def convolutions(self) -> tuple[onnx_ir.Node, ...]:
        return tuple(find_convolutions(self._nodes))

    @cached_property
    def recurrences(self) -> tuple[onnx_ir.Node, ...]:
        return tuple(find_recurrences(self._nodes, self.axes))

    @cached_property
    def routers(self) -> tuple[onnx_ir.Node, ...]:
        return tuple(find_routers(self._nodes, self.roles))


def find_sites(program: Program) -> Sites:
    """Analyse a program; time is linear in its size, but for the masks, which are evaluated once each."""
    flat = inline_calls(program)
    facts = analyze_shapes(flat, no_zeros=True)
    axes = analyze_axes(flat, facts)
    origins = Origins(axes)
    candidates = list(find_attention(flat.graph, axes, origins))
    attention = tuple(c for c in candidates if isinstance(c, AttentionSite))
    refused = tuple(c for c in candidates if isinstance(c, Refusal))
    masks = tuple(classify_masks(flat, axes, attention))
    roles = assign_roles(flat.graph, axes, origins, attention, refused, masks)
    return Sites(flat, facts, axes, origins, attention, masks, refused, roles)
