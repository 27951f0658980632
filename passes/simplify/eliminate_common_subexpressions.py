"""Compute each thing once."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir
from opgraft.ir.program import Program, direct_subgraphs
from opgraft.passes._pass import Contract, Pass, PassContext
from opgraft.passes._pattern import COMMUTATIVE
from opgraft.passes._rewriter import Names, Rewriter, apply, is_random

# Attribute tensors above this are compared by identity: hashing them would read weights.
_MAX_HASHED_BYTES = 1 << 16


@dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """f(x), f(x) -> f(x) once

    Operators of unknown domains and random ones are left alone; two graph outputs keep two names.
    """

    contract: ClassVar[Contract] = Contract.EXACT

    def run(self, program: Program, context: PassContext) -> int:
        names = context.facts.setdefault("names", Names(program.model))
        before = len(context.rewrites)
        for graph in program.scopes():
            self._merge(graph, program, context, names)
        return len(context.rewrites) - before

    def _merge(self, graph: onnx_ir.Graph, program: Program, context: PassContext, names: Names) -> None:
        seen: dict[Hashable, onnx_ir.Node] = {}
        for node in list(graph):
            if node.graph is not graph:
                continue
            key = _key(node, program)
            if key is None:
                continue
            twin = seen.setdefault(key, node)
            if twin is node or len(twin.outputs) != len(node.outputs):
                continue
            if any(o.is_graph_output() for o in node.outputs):
                if any(o.is_graph_output() for o in twin.outputs) or len(node.outputs) != 1:
                    continue
            if not context.allows(self.name):
                return
            rewriter = Rewriter(graph, node)
            token = context.recorder.before(node, [], twin.outputs) if context.recorder is not None else None
            rewrite = context.applied(self, node.name or node.op_type)
            apply(rewriter, twin.outputs, names)
            if context.recorder is not None and token is not None:
                context.recorder.after(token, rewrite)


def _key(node: onnx_ir.Node, program: Program) -> Hashable | None:
    """What two nodes must have in common to compute the same; None when the node must not be merged."""
    if not _is_pure(node, program):
        return None
    attributes = []
    for name, attribute in sorted(node.attributes.items()):
        frozen = _freeze(attribute)
        if frozen is None:
            return None
        attributes.append((name, frozen))
    inputs = tuple(None if v is None else id(v) for v in node.inputs)
    while inputs and inputs[-1] is None:
        inputs = inputs[:-1]
    if node.op_type in COMMUTATIVE and len(inputs) == 2:
        inputs = tuple(sorted(inputs, key=lambda i: i or 0))
    present = tuple(bool(o.name) for o in node.outputs)
    return node.domain, node.op_type, node.overload, inputs, tuple(attributes), present


def _is_pure(node: onnx_ir.Node, program: Program) -> bool:
    if direct_subgraphs(node) or is_random(node):
        return False
    if node.domain in ("", "ai.onnx", "ai.onnx.ml"):
        return True
    function = program.model.functions.get(node.op_identifier())
    return function is not None and all(_is_pure(n, program) for n in function.all_nodes())


def _freeze(attribute: onnx_ir.Attr) -> Hashable | None:
    if attribute.is_ref():
        return ("ref", attribute.ref_attr_name)
    kind = onnx_ir.AttributeType
    value: Any = attribute.value
    if attribute.type == kind.FLOAT:
        return np.float32(value).tobytes()
    if attribute.type == kind.FLOATS:
        return np.asarray(value, dtype=np.float32).tobytes()
    if attribute.type in (kind.INT, kind.STRING):
        return (attribute.type.value, value)
    if attribute.type in (kind.INTS, kind.STRINGS):
        return (attribute.type.value, tuple(value))
    if attribute.type == kind.TENSOR:
        tensor = attribute.as_tensor()
        if tensor.nbytes > _MAX_HASHED_BYTES or tensor.dtype == onnx_ir.DataType.STRING:
            return ("tensor", id(tensor))
        return (int(tensor.dtype), tuple(tensor.shape), tensor.tobytes())
    return None
