"""Axes: which dim of which value is which, as a directed graph of dim relations.

    graph = analyze_axes(program)
    graph.of(value)                # numbers of its dims
    graph.into[number]             # how the dim comes from others
    graph.out_of[number]           # where it goes

Equal sizes never identify two dims: only what operators do with them does. What a rule cannot say makes the node
opaque, with a reason.
"""

from __future__ import annotations

from opgraft.ir.axes.analysis import analyze_axes, inline_calls
from opgraft.ir.axes.graph import AxisGraph, Direction, Kind, Relation

__all__ = ["AxisGraph", "Direction", "Kind", "Relation", "analyze_axes", "inline_calls"]
