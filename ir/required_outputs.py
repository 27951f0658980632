"""Unused outputs that an operator must have all the same."""

from __future__ import annotations

import onnx_ir
from opgraft.ir.external import roots_of
from opgraft.ir.validate_operator import Signatures


def name_required_outputs(model: onnx_ir.Model) -> None:
    """Name trailing unnamed outputs up to the least number that the schema allows.

    The IR leaves trailing unnamed outputs out when it writes a node; TopK with its indices unused would then have one
    output where the runtime demands two.
    """
    incomplete = [
        (node, version)
        for root, version in roots_of(model)
        for graph in (root, *root.subgraphs())
        for node in graph
        if node.outputs and not node.outputs[-1].name and node.domain in ("", "ai.onnx")
    ]
    if not incomplete:
        return
    signatures: dict[int, Signatures] = {}
    taken: set[str] | None = None
    for node, version in incomplete:
        signature = signatures.setdefault(version, Signatures(version)).get(node.op_type)
        for value in node.outputs[: signature.n_outputs[0]] if signature is not None else ():
            if not value.name:
                taken = _names(model) if taken is None else taken
                value.name = _fresh(taken)


def _names(model: onnx_ir.Model) -> set[str]:
    return {
        value.name
        for root, _ in roots_of(model)
        for graph in (root, *root.subgraphs())
        for value in (*graph.inputs, *graph.initializers.values(), *(o for node in graph for o in node.outputs))
        if value.name
    }


def _fresh(taken: set[str]) -> str:
    number = 1
    while f"unused_{number}" in taken:
        number += 1
    taken.add(f"unused_{number}")
    return f"unused_{number}"
