"""Standard operators against their schemas: operand counts and attribute types, as the runtime checks them.

Rewrites read attributes and operands by what the schema promises, so that a node that breaks the promise must be
refused before one of them sees it. Names without a schema (custom operators, newer standard ones) pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import AttributeProto, defs
from opgraft.ir.errors import InputError


@dataclass(frozen=True)
class Signature:
    """What a schema says of a node: counts, and the type number of each attribute."""

    n_inputs: tuple[int, int]
    n_outputs: tuple[int, int]
    attributes: dict[str, int]
    required: frozenset[str]


class Signatures:
    """Signatures of the default domain at one opset, looked up once per operator."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        # Above what this onnx knows, an operator may have changed.
        self.is_known = 0 < opset <= defs.onnx_opset_version()
        self._found: dict[str, Signature | None] = {}

    def get(self, op_type: str) -> Signature | None:
        try:
            return self._found[op_type]
        except KeyError:
            found = self._found[op_type] = self._look_up(op_type)
            return found

    def _look_up(self, op_type: str) -> Signature | None:
        if not self.is_known or not defs.has(op_type, max_inclusive_version=self.opset, domain=""):
            return None
        schema = defs.get_schema(op_type, self.opset, "")
        if schema.deprecated:
            return None
        return Signature(
            (schema.min_input, schema.max_input),
            (schema.min_output, schema.max_output),
            {name: int(attribute.type.value) for name, attribute in schema.attributes.items()},
            frozenset(name for name, attribute in schema.attributes.items() if attribute.required),
        )


def check_operands(node: onnx.NodeProto, n_inputs: int, n_outputs: int, signature: Signature, where: str) -> None:
    """Raises InputError when `node` has not as many operands as its operator takes."""
    low, high = signature.n_inputs
    if not low <= n_inputs <= high:
        raise _refusal(node, where, f"has {n_inputs} inputs, {_range(low, high)} are allowed")
    low, high = signature.n_outputs
    if not low <= n_outputs <= high:
        raise _refusal(node, where, f"has {n_outputs} outputs, {_range(low, high)} are allowed")


def check_attributes(node: onnx.NodeProto, signature: Signature, where: str) -> None:
    """Raises InputError when `node` has other attributes than its operator, or lacks one."""
    present = set()
    for attribute in node.attribute:
        name = attribute.name
        present.add(name)
        wanted = signature.attributes.get(name)
        if wanted is None:
            if str(name).startswith("__"):
                # Marks of the runtime's own; it takes them on every operator.
                continue
            raise _refusal(node, where, f"has the attribute {name!r}, which the operator does not have")
        if attribute.type != wanted and not (attribute.ref_attr_name and not attribute.type):
            found, right = (AttributeProto.AttributeType.Name(number) for number in (attribute.type, wanted))
            raise _refusal(node, where, f"has the attribute {name!r} as {found}, it should be {right}")
    missing = signature.required - present
    if missing:
        raise _refusal(node, where, f"lacks the attribute {min(missing)!r}")


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _refusal(node: onnx.NodeProto, where: str, what: str) -> InputError:
    return InputError(f"{node.op_type} {what}", where=where, remedy="the model is invalid; export it again")
