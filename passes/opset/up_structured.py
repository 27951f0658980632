"""Upgrades of normalisation, recurrence and scans."""

from __future__ import annotations

import onnx_ir
from opgraft.passes.opset.site import CannotConvertError, Site
from opgraft.passes.opset.steps import Results, upgrade


@upgrade(7, "BatchNormalization")
def require_inference(site: Site) -> Results:
    """From version 7 the outputs decide between training and inference; before, `is_test` did."""
    if not site.attribute("is_test"):
        raise CannotConvertError("BatchNormalization in training mode (is_test=0)")
    return site.again(drop=["is_test"], n_outputs=1) + [None] * (len(site.node.outputs) - 1)


@upgrade(9, "BatchNormalization")
def spread_activations(site: Site) -> Results:
    """spatial=0: (x - mean) / sqrt(var + epsilon) * scale + bias, one entry per activation [C, D1, ...]."""
    if site.attribute("spatial"):
        return site.again(drop=["spatial"]) if "spatial" in site.node.attributes else None
    if any(site.is_used(i) for i in range(1, 5)):
        raise CannotConvertError("BatchNormalization per activation (spatial=0) in training mode")
    site.rounds = True
    x, scale, bias, mean, var = (site.operand(i) for i in range(5))
    deviation = site.emit_one("Sqrt", (site.emit_one("Add", (var, site.scalar_like(site.attribute("epsilon")))),))
    normal = site.emit_one("Div", (site.emit_one("Sub", (x, mean)), deviation))
    y = site.emit_one("Add", (site.emit_one("Mul", (normal, scale)), bias))
    return [y, *[None] * (len(site.node.outputs) - 1)]


@upgrade(14, "BatchNormalization")
def spell_training_mode(site: Site) -> Results:
    """Several outputs meant training; the two saved statistics are gone."""
    if site.is_used(3) or site.is_used(4):
        raise CannotConvertError("the saved statistics of BatchNormalization in training have no equivalent")
    count = len(site.node.outputs)
    if count == 1:
        return None
    if not (site.is_used(1) or site.is_used(2)):
        raise CannotConvertError("BatchNormalization with several outputs, none of which is read: which mode?")
    return site.again(n_outputs=min(count, 3), training_mode=1) + [None] * max(count - 3, 0)


@upgrade(21, "GroupNormalization")
def spread_groups(site: Site) -> Results:
    """scale[G], bias[G] -> [C]: each group's entry repeated for its channels."""
    dtype = site.dtype()
    if dtype is None:
        raise CannotConvertError("the element type is not recorded; run shape inference first")
    groups = int(site.attribute("num_groups"))
    channels = site.emit_one("Shape", (site.operand(0),), {"start": 1, "end": 2})
    per_group = site.emit_one("Div", (channels, site.literal([groups])))
    grid = site.emit_one("Concat", (site.literal([groups]), per_group), {"axis": 0})
    spread = []
    for index in (1, 2):
        column = site.emit_one("Unsqueeze", (site.operand(index), site.literal([1])))
        spread.append(site.emit_one("Reshape", (site.emit_one("Expand", (column, grid)), site.literal([-1]))))
    # Version 18 computed in the input's own type, and version 21 computes in float32 unless told otherwise.
    stash = None if dtype == onnx_ir.DataType.FLOAT else int(dtype)
    return site.again((site.operand(0), *spread), stash_type=stash)


@upgrade(7, "RNN", "LSTM", "GRU")
def drop_output_sequence(site: Site) -> Results:
    """`output_sequence` said whether Y was wanted; its being an output says the same."""
    return site.again(drop=["output_sequence"]) if "output_sequence" in site.node.attributes else None


@upgrade(9, "Scan")
def scan_batches_outside(site: Site) -> Results:
    """Scan-8 over [B, T, ...] -> a scan over B whose body scans over T with the old body.

    An outer Scan takes states and inputs alike apart along axis 0, and stacks final states and outputs there.
    """
    if site.input(0) is not None:
        raise CannotConvertError("Scan-8 with sequence lengths")
    body = site.node.attributes["body"].as_graph()
    n_inputs = int(site.attribute("num_scan_inputs"))
    formals = [onnx_ir.Value(name=None, type=v.type, shape=v.shape) for v in body.inputs]
    inner_attributes = [site.node.attributes["body"], onnx_ir.AttrInt64("num_scan_inputs", n_inputs)]
    directions = site.attribute("directions")
    if directions:
        inner_attributes.append(onnx_ir.AttrInt64s("scan_input_directions", list(directions)))
    n_states = len(body.inputs) - n_inputs
    for formal in formals[n_states:]:
        formal.shape = None  # these carry the time axis that the old body does not see
    inner = onnx_ir.Node("", "Scan", formals, inner_attributes, num_outputs=len(site.node.outputs))
    for i, (output, result) in enumerate(zip(inner.outputs, body.outputs, strict=True)):
        output.type = result.type
        output.shape = result.shape if i < n_states else None
    outer = onnx_ir.Graph(formals, inner.outputs, nodes=[inner], name=f"{body.name or 'scan'}_batch")
    actual = [v for v in site.node.inputs[1:] if v is not None]
    return site.emit(
        "Scan",
        actual,
        [onnx_ir.AttrGraph("body", outer), onnx_ir.AttrInt64("num_scan_inputs", len(actual))],
        n_outputs=len(site.node.outputs),
    )
