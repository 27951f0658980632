"""Downgrades below an operator's first version: the body that the standard gives it, in older operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir
from opgraft.passes.opset.schemas import default_of, schema_at
from opgraft.passes.opset.site import CannotConvertError, Site
from opgraft.passes.opset.steps import Results, downgrade


@downgrade(15, "CastLike")
def cast_to_known_type(site: Site) -> Results:
    """CastLike(x, y) -> Cast(x, to=type of y)."""
    dtype = site.dtype(1)
    if dtype is None:
        raise CannotConvertError("the element type of the pattern is not recorded; run shape inference first")
    return [site.emit_one("Cast", (site.operand(0),), {"to": int(dtype)})]


@downgrade(17, "LayerNormalization")
def expand_layer_normalization(site: Site) -> Results:
    """d = x - mean(x); d / sqrt(mean(d^2) + epsilon) * scale + bias.

    The standard's own body subtracts mean(x)^2 from mean(x^2), which loses digits beside a large mean.
    """
    dtype, axis = site.dtype(), int(site.attribute("axis"))
    if dtype is None or (axis >= 0 and site.rank() is None):
        return expand(site)
    site.rounds = True
    stash = onnx_ir.DataType(int(site.attribute("stash_type")))
    axes = {"axes": list(range(axis if axis < 0 else axis - site.known_rank(), 0))}
    x = site.operand(0) if dtype == stash else site.emit_one("Cast", (site.operand(0),), {"to": int(stash)})
    mean = site.emit_one("ReduceMean", (x,), axes)
    deviation = site.emit_one("Sub", (x, mean))
    variance = site.emit_one("ReduceMean", (site.emit_one("Mul", (deviation, deviation)),), axes)
    epsilon = site.literal(np.array(site.attribute("epsilon"), dtype=np.float32).astype(stash.numpy()))
    norm = site.emit_one("Sqrt", (site.emit_one("Add", (variance, epsilon)),))
    normal = site.emit_one("Div", (deviation, norm))
    if dtype != stash:
        normal = site.emit_one("Cast", (normal,), {"to": int(dtype)})
    result = site.emit_one("Mul", (normal, site.operand(1)))
    if site.input(2) is not None:
        result = site.emit_one("Add", (result, site.operand(2)))
    others = [mean, site.emit_one("Reciprocal", (norm,)) if site.is_used(2) else None]
    return [result, *others][: len(site.node.outputs)]


@downgrade(21, "GroupNormalization")
def expand_group_normalization(site: Site) -> Results:
    """Version 18 had one scale per group, which cannot express one per channel."""
    return expand(site)


@downgrade(23, "RMSNormalization")
def expand_rms_normalization(site: Site) -> Results:
    """x / sqrt(mean(x^2) + epsilon) * scale; the standard's own body computes the axes at run time."""
    dtype, stash = site.dtype(), onnx_ir.DataType(int(site.attribute("stash_type")))
    if dtype is None:
        raise CannotConvertError("the element type is not recorded; run shape inference first")
    if site.dtype(1) not in (None, dtype):
        raise CannotConvertError("the scale is of another element type than the data")
    site.rounds = True
    axis = int(site.attribute("axis"))
    axes = list(range(axis, 0)) if axis < 0 else list(range(axis - site.known_rank(), 0))
    x = site.operand(0) if dtype == stash else site.emit_one("Cast", (site.operand(0),), {"to": int(stash)})
    square = site.emit_one("Mul", (x, x))
    mean = site.emit_one("ReduceMean", (square, site.literal(axes)))
    epsilon = site.literal(np.array(site.attribute("epsilon"), dtype=np.float32).astype(stash.numpy()))
    norm = site.emit_one("Sqrt", (site.emit_one("Add", (mean, epsilon)),))
    normal = site.emit_one("Div", (x, norm))
    if dtype != stash:
        normal = site.emit_one("Cast", (normal,), {"to": int(dtype)})
    return [site.emit_one("Mul", (normal, site.operand(1)))]


def expand(site: Site) -> Results:
    """The nodes of the operator's function body, with this node's values and attributes in place."""
    schema = schema_at(site.node.op_type, site.since)
    body = _body(site, schema)
    if body is None:
        first = schema.since_version if schema is not None else site.since
        raise CannotConvertError(f"{site.node.op_type} exists since opset {first} and has no older equivalent")
    function, version, output_names = body
    site.rounds = True
    mapping: dict[onnx_ir.Value, onnx_ir.Value | None] = dict(zip(function.inputs, site.node.inputs, strict=False))
    attributes = _actual_attributes(site, schema)
    for inner in function:
        outputs = site.emit(
            inner.op_type,
            [mapping.get(v) if v is not None else None for v in inner.inputs],
            _bound(inner, attributes),
            version=version,
            n_outputs=len(inner.outputs),
        )
        mapping.update(zip(inner.outputs, outputs, strict=True))
    by_name = {v.name: mapping.get(v) for v in function.outputs}
    results = [by_name.get(name) for name in output_names[: len(site.node.outputs)]]
    for index, result in enumerate(results):
        if result is None and site.is_used(index):
            raise CannotConvertError(f"the body of {site.node.op_type} has no output {index}")
    return [*results, *[None] * (len(site.node.outputs) - len(results))]


def _body(site: Site, schema: Any) -> tuple[onnx_ir.Function, int, list[str]] | None:
    """The oldest body of the operator, the opset in which it is written, and the names of its outputs.

    A body leaves out what computes an absent optional output; the function returned has the others only.
    """
    versions = body_versions(schema)
    if not versions:
        return None
    proto = body_at(site, schema, min(versions))
    if any(a.type in (a.GRAPH, a.GRAPHS) for n in proto.node for a in n.attribute):
        raise CannotConvertError(f"the body of {site.node.op_type} has subgraphs")
    imported = next((o.version for o in proto.opset_import if o.domain == ""), min(versions))
    output_names = list(proto.output)
    made = {name for n in proto.node for name in n.output}
    del proto.output[:]
    proto.output.extend(name for name in output_names if name in made)
    return onnx_ir.from_proto(proto), int(imported), output_names


def body_versions(schema: Any) -> Sequence[int]:
    """The opsets for which the standard gives bodies of the operator."""
    if schema is None:
        return ()
    found: Sequence[int] = schema.function_opset_versions if schema.has_function else ()
    return found or (schema.context_dependent_function_opset_versions if schema.has_context_dependent_function else ())


def body_at(site: Site, schema: Any, version: int) -> Any:
    """The body that the standard gives the operator from opset `version` on, for this node."""
    import onnx

    proto = onnx.FunctionProto()
    if schema.has_function:
        proto.ParseFromString(schema.get_function_with_opset_version(version))
        return proto
    types = [_type_proto(site, i).SerializeToString() for i in range(len(site.node.inputs))]
    node = _node_proto(site).SerializeToString()
    proto.ParseFromString(schema.get_context_dependent_function_with_opset_version(version, node, types))
    return proto


def _node_proto(site: Site) -> Any:
    """The node by itself, its values named by their place."""
    import onnx

    node = onnx.NodeProto(op_type=site.node.op_type)
    node.input.extend("" if v is None else f"input_{i}" for i, v in enumerate(site.node.inputs))
    node.output.extend(f"output_{i}" if site.is_used(i) else "" for i in range(len(site.node.outputs)))
    node.attribute.extend(onnx_ir.to_proto(attribute) for attribute in site.node.attributes.values())
    return node


def _type_proto(site: Site, index: int) -> Any:
    import onnx.helper

    value = site.input(index)
    if value is None:
        return onnx.TypeProto()
    dtype = site.facts.dtype_of(value)
    if dtype is None:
        raise CannotConvertError(f"the element type of input {index} is not recorded; run shape inference first")
    return onnx.helper.make_tensor_type_proto(int(dtype), site.facts.dims_of(value))


def _actual_attributes(site: Site, schema: Any) -> Mapping[str, onnx_ir.Attr]:
    actual = dict(site.node.attributes)
    for name in schema.attributes:
        default = default_of(schema, name)
        if name not in actual and default is not None:
            actual[name] = onnx_ir.convenience.convert_attribute(name, default)
    return actual


def _bound(node: onnx_ir.Node, attributes: Mapping[str, onnx_ir.Attr]) -> list[onnx_ir.Attr]:
    """The attributes of a body's node, its references to the operator's attributes resolved."""
    bound = []
    for name, attribute in node.attributes.items():
        if not attribute.is_ref():
            bound.append(attribute)
            continue
        actual = attributes.get(str(attribute.ref_attr_name))
        if actual is None:
            continue  # an absent attribute stays absent
        if actual.is_ref():
            bound.append(onnx_ir.RefAttr(name, str(actual.ref_attr_name), attribute.type))
        else:
            bound.append(onnx_ir.Attr(name, actual.type, actual.value))
    return bound
