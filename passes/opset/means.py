"""By what a runtime runs a node at some opset: a kernel of its own, or the body that the standard gives."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from functools import cache

import onnx_ir
from opgraft.ir.kernel_table import KernelTable
from opgraft.passes.opset.down_functions import body_at, body_versions
from opgraft.passes.opset.schemas import formal_parameter, schema_at, spell_type
from opgraft.passes.opset.site import CannotConvertError, Scope, Site


class _Means(enum.Enum):
    KERNEL = enum.auto()
    BODY = enum.auto()
    NONE = enum.auto()


def keeps_bits(node: onnx_ir.Node, start: int, nodes: Sequence[onnx_ir.Node], version: int, scope: Scope) -> bool:
    """Whether kernels run `node` of opset `start` as well as `nodes`, which stand for it at `version`.

    What is run by a body may come to other roundings. Where the runtime's kernels are not known, an operator that has
    a body is taken to be run by it.

    Raises:
        CannotConvertError: The runtime runs the node, and not one of those that stand for it.
    """
    since = _since(node.op_type, start)
    is_same = list(nodes) == [node] and _since(node.op_type, version) == since
    if is_same and not _has_body(node.op_type, start):
        return True
    means = _means(node, start, scope)
    if means is _Means.NONE:
        return True  # then there are no bits to compare with
    exact = means is _Means.KERNEL
    for new in nodes:
        means = _means(new, version, scope)
        if means is _Means.NONE:
            wanted = f"{new.op_type}-{_since(new.op_type, version)}"
            raise CannotConvertError(
                f"at opset {version} the runtime has no kernel for {wanted}, and it runs {node.op_type}-{since} now"
            )
        exact = exact and means is _Means.KERNEL
    return exact or is_same


def _means(node: onnx_ir.Node, version: int, scope: Scope) -> _Means:
    op_type, has_body = node.op_type, _has_body(node.op_type, version)
    if op_type == "Constant":
        return _Means.KERNEL  # the runtime makes an initializer of it
    if scope.kernels is None:
        return _Means.BODY if has_body else _Means.KERNEL
    if scope.kernels.has(op_type, _since(op_type, version), _types(node, version, scope)):
        return _Means.KERNEL
    return _Means.BODY if has_body and _runs_body(node, version, scope, scope.kernels) else _Means.NONE


def _runs_body(node: onnx_ir.Node, version: int, scope: Scope, kernels: KernelTable) -> bool:
    """Whether the runtime has what the body consists of, as far as the types are known."""
    schema = schema_at(node.op_type, version)
    written = max((v for v in body_versions(schema) if v <= version), default=None)
    if written is None:
        return False
    try:
        body = body_at(Site(node, version, version, version, scope), schema, written)
    except CannotConvertError:
        return True
    return all(
        n.domain
        or n.op_type == "Constant"
        or kernels.has(n.op_type, _since(n.op_type, version), {})
        or _has_body(n.op_type, version)
        for n in body.node
    )


@cache
def _has_body(op_type: str, version: int) -> bool:
    """Whether the standard gives a body for the operator that holds at `version`."""
    import onnx

    schema = schema_at(op_type, version)
    if schema is None or schema.has_context_dependent_function:
        return schema is not None
    written = max((v for v in schema.function_opset_versions if v <= version), default=None)
    if written is None:
        return False
    body = onnx.FunctionProto()
    body.ParseFromString(schema.get_function_with_opset_version(written))
    # A body ends with the first opset that changes one of its operators.
    return all(n.domain or _since(n.op_type, written) == _since(n.op_type, version) for n in body.node)


def _types(node: onnx_ir.Node, version: int, scope: Scope) -> dict[str, set[str]]:
    """The known types of inputs and outputs, by their type variables and by their names in the schema."""
    schema = schema_at(node.op_type, version)
    found: dict[str, set[str]] = {}
    if schema is None:
        return found
    for formals, values in ((schema.inputs, node.inputs), (schema.outputs, node.outputs)):
        for index, value in enumerate(values):
            formal = formal_parameter(formals, index)
            dtype = scope.facts.dtype_of(value)
            text = spell_type(onnx_ir.TensorType(dtype) if dtype is not None else None if value is None else value.type)
            if formal is not None and text is not None:
                found.setdefault(formal.type_str, set()).add(text)
                found.setdefault(formal.name, set()).add(text)
    return found


def _since(op_type: str, version: int) -> int:
    schema = schema_at(op_type, version)
    return 0 if schema is None else int(schema.since_version)
