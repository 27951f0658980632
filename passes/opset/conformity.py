"""Whether a node means the same under its operator's older schema; what may be left out for it to do so."""

from __future__ import annotations

from typing import Any

import onnx_ir
from opgraft.passes.opset.reviewed import AXES, NEW_VALUES
from opgraft.passes.opset.schemas import default_of, formal_parameter, permits_type, schema_at, spell_type
from opgraft.passes.opset.site import CannotConvertError, Site
from opgraft.passes.opset.steps import Results

_ONE_IS_NEUTRAL = frozenset({"dilations"})
"""Attributes without a declared default whose absence means a list of ones."""


def check_types(site: Site) -> None:
    """Refuse when the older schema does not take the type of an input or output, as far as types are known."""
    older = schema_at(site.node.op_type, site.version)
    if older is None:
        return
    for index, value in enumerate(site.node.inputs):
        dtype = site.facts.dtype_of(value)
        declared = onnx_ir.TensorType(dtype) if dtype is not None else None if value is None else value.type
        _check_type(site, older, older.inputs, index, declared, "input")
    for index, output in enumerate(site.node.outputs):
        if site.node.op_type not in _OUTPUTS_RETYPED:
            _check_type(site, older, older.outputs, index, output.type, "output")
    for attribute in site.node.attributes.values():
        if site.node.op_type == "If" and attribute.type == onnx_ir.AttributeType.GRAPH:
            for index, output in enumerate(attribute.as_graph().outputs):
                _check_type(site, older, older.outputs, index, output.type, "output")


_OUTPUTS_RETYPED = frozenset({"Dropout"})
"""Operators whose second output had another type before; its adapter asks whether anything reads it."""


def _check_type(
    site: Site, older: Any, formals: Any, index: int, declared: onnx_ir.TypeProtocol | None, place: str
) -> None:
    formal, text = formal_parameter(formals, index), spell_type(declared)
    if formal is not None and text is not None and not permits_type(older, formal, text):
        raise CannotConvertError(f"opset {site.version} has no {text} as {place} {index}")


def fit_older_schema(site: Site) -> Results:
    """The node without what the older schema does not know, if that says nothing; refuses otherwise."""
    node = site.node
    older, newer = schema_at(node.op_type, site.version), schema_at(node.op_type, site.since)
    if older is None or newer is None:
        raise CannotConvertError("no schema")
    _check_new_values(site)
    drop = [n for n in node.attributes if n not in older.attributes]
    for name in drop:
        _require_neutral(site, newer, name)
    spelled = _spell_moved_defaults(site, older, newer)
    n_inputs = _fitting_inputs(site, older)
    n_outputs = _fitting_outputs(site, older)
    if (site.node.op_type in AXES.get(11, "").split()) and site.since >= 11 > site.version:
        spelled.update(_without_negative_axes(site))
    if not drop and not spelled and n_inputs == len(node.inputs) and n_outputs == len(node.outputs):
        return None
    results = site.again(node.inputs[:n_inputs], drop=drop, n_outputs=n_outputs, **spelled)
    return [*results, *[None] * (len(node.outputs) - n_outputs)]


def _check_new_values(site: Site) -> None:
    for (op_type, version), (attribute, values) in NEW_VALUES.items():
        if op_type == site.node.op_type and site.version < version <= site.since:
            value = site.attribute(attribute)
            if value in values:
                raise CannotConvertError(f"{attribute}={value!r} exists since opset {version}")


def _require_neutral(site: Site, newer: Any, name: str) -> None:
    value = site.attribute(name)
    default = default_of(newer, name) if name in newer.attributes else None
    if default is not None and (value == default or (isinstance(default, list) and list(value) == default)):
        return
    if name in _ONE_IS_NEUTRAL and all(v == 1 for v in value):
        return
    raise CannotConvertError(f"opset {site.version} has no attribute {name!r} (here {value!r})")


def _spell_moved_defaults(site: Site, older: Any, newer: Any) -> dict[str, Any]:
    """Attributes that are absent here and have another default there."""
    spelled = {}
    for name in newer.attributes:
        if name in older.attributes and name not in site.node.attributes:
            default = default_of(newer, name)
            if default is not None and default != default_of(older, name):
                spelled[name] = default
    return spelled


def _fitting_inputs(site: Site, older: Any) -> int:
    count = len(site.node.inputs)
    while count > older.max_input:
        count -= 1
        if site.node.inputs[count] is not None:
            raise CannotConvertError(f"opset {site.version} has no input {count}")
    present = [v is not None for v in site.node.inputs]
    required = min(older.min_input, older.max_input)
    if count < required or not all(present[:required]):
        raise CannotConvertError(f"opset {site.version} requires {older.min_input} inputs")
    return count


def _fitting_outputs(site: Site, older: Any) -> int:
    count = len(site.node.outputs)
    while count > older.max_output:
        count -= 1
        if site.is_used(count):
            raise CannotConvertError(f"opset {site.version} has no output {count}")
    return count


def _without_negative_axes(site: Site) -> dict[str, Any]:
    """Before version 11 axes counted from the front only."""
    spelled: dict[str, Any] = {}
    inserted = 0
    if site.node.op_type == "Unsqueeze":
        inserted = len(site.attribute("axes") or ())
    elif site.node.op_type == "OneHot":
        return {}  # -1 was the default of OneHot-9 already
    for name in ("axis", "axes"):
        if name not in site.node.attributes:
            continue
        value = site.attribute(name)
        axes = [value] if isinstance(value, int) else list(value)
        if any(a < 0 for a in axes):
            rank = site.known_rank() + inserted
            axes = [a + rank if a < 0 else a for a in axes]
            spelled[name] = axes[0] if isinstance(value, int) else axes
    return spelled
