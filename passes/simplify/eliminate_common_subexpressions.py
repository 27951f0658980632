"""Compute each thing once."""

from __future__ import annotations

from collections.abc import Hashable, Set
from typing import Any, ClassVar

import numpy as np
import onnx_ir
from opgraft.ir.program import Program, direct_subgraphs
from opgraft.passes._pass import Contract, Pass, PassContext
from opgraft.passes._pattern import COMMUTATIVE
from opgraft.passes._rewriter import Names, Rewriter, apply, is_random

FunctionKey = tuple[str, str, str]
# Attribute tensors above this are compared by identity: hashing them would read weights.
_MAX_HASHED_BYTES = 1 << 16


class EliminateCommonSubexpressions(Pass):
    """f(x), f(x) -> f(x) once

    Operators of unknown domains and random ones are left alone; two graph outputs keep two names.
    """

    contract: ClassVar[Contract] = Contract.EXACT

    def run(self, program: Program, context: PassContext) -> int:
        names = context.facts.setdefault("names", Names(program.model))
        pure = _pure_functions(program.model)
        before = len(context.rewrites)
        for graph in program.scopes():
            self._merge(graph, pure, context, names)
        return len(context.rewrites) - before

    def _merge(self, graph: onnx_ir.Graph, pure: Set[FunctionKey], context: PassContext, names: Names) -> None:
        seen: dict[Hashable, onnx_ir.Node] = {}
        for node in list(graph):
            if node.graph is not graph:
                continue
            key = _key(node, pure)
            if key is None:
                continue
            twin = seen.setdefault(key, node)
            if twin is node or len(twin.outputs) != len(node.outputs):
                continue
            if _would_lose_a_name(node, twin):
                continue
            if not context.allows(self.name):
                return
            rewriter = Rewriter(graph, node)
            token = context.recorder.before(node, [], twin.outputs) if context.recorder is not None else None
            rewrite = context.applied(self, node.name or node.op_type)
            apply(rewriter, twin.outputs, names)
            if context.recorder is not None and token is not None:
                context.recorder.after(token, rewrite)


def _would_lose_a_name(node: onnx_ir.Node, twin: onnx_ir.Node) -> bool:
    """Whether `node` produces a graph output whose name `twin` cannot take."""
    if not any(o.is_graph_output() for o in node.outputs):
        return False
    return len(node.outputs) != 1 or any(o.is_graph_output() for o in twin.outputs)


def _key(node: onnx_ir.Node, pure_functions: Set[FunctionKey]) -> Hashable | None:
    """What two nodes must have in common to compute the same; None when the node must not be merged."""
    if not _is_pure(node, pure_functions):
        return None
    attributes = []
    if node.attributes:
        for name, attribute in sorted(node.attributes.items()):
            frozen = _freeze(attribute)
            if frozen is None:
                return None
            attributes.append((name, frozen))
    inputs = [0 if v is None else id(v) for v in node.inputs]
    while inputs and not inputs[-1]:
        inputs.pop()
    if len(inputs) == 2 and node.op_type in COMMUTATIVE:
        inputs.sort()
    present = [bool(o.name) for o in node.outputs]
    return node.domain, node.op_type, node.overload, tuple(inputs), tuple(attributes), tuple(present)


def _is_pure(node: onnx_ir.Node, pure_functions: Set[FunctionKey]) -> bool:
    if (node.attributes and direct_subgraphs(node)) or is_random(node):
        return False
    return node.domain in ("", "ai.onnx", "ai.onnx.ml") or node.op_identifier() in pure_functions


def _pure_functions(model: onnx_ir.Model) -> Set[FunctionKey]:
    """The functions whose bodies are pure, and those of all functions they call."""
    callers: dict[FunctionKey, list[FunctionKey]] = {}
    impure: list[FunctionKey] = []
    for key, function in model.functions.items():
        for node in function.all_nodes():
            if not _is_pure(node, model.functions.keys()):
                impure.append(key)
            else:
                callers.setdefault(node.op_identifier(), []).append(key)
    pure = set(model.functions)
    while impure:
        key = impure.pop()
        if key in pure:
            pure.remove(key)
            impure += callers.get(key, ())
    return pure


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
