"""Replaces elementwise regions of a model by calls of `opgraft.kernels` operators.

Every operator is also a model-local function with a body in standard operators. A runtime that has the kernel
library registered runs the kernel, any other runs the body: the model never depends on the library.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir
import onnx_ir.passes.common
from opgraft.backends.tvm.build import build_library
from opgraft.backends.tvm.find_regions import FoundRegion, Refusal, find_regions
from opgraft.ir.errors import InputError
from opgraft.kernels.fused_elementwise import ElementwiseRegion

DOMAIN = "opgraft.kernels"
# Clip takes its bounds as inputs since 11; from there on no operator of the table changed on float32.
MIN_OPSET = 11
# Model-local functions exist since IR version 8.
MIN_IR_VERSION = 8


@dataclass(frozen=True)
class Region:
    """One replaced region: its operator, and the names of what it replaced, read and wrote."""

    operator: str
    kernel: ElementwiseRegion
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class TvmLowering:
    """`library` is None where no region was found; the model is then an unchanged copy."""

    model: onnx_ir.Model
    library: Path | None
    regions: tuple[Region, ...]
    refused: tuple[Refusal, ...]


def lower_elementwise(
    model: onnx_ir.Model, *, target_cpu: str | None = None, cache_dir: Path | None = None
) -> TvmLowering:
    """Fuses the elementwise regions of a copy of `model` and builds the library of their kernels.

    Raises: InputError for an opset below 11, and what `build_library` raises.
    """
    partitioned, regions, refused = partition_elementwise(model)
    if not regions:
        return TvmLowering(partitioned, None, (), refused)
    kernels = [region.kernel for region in regions]
    library = build_library(kernels, target_cpu=target_cpu, cache_dir=cache_dir)
    return TvmLowering(partitioned, library, regions, refused)


def partition_elementwise(
    model: onnx_ir.Model,
) -> tuple[onnx_ir.Model, tuple[Region, ...], tuple[Refusal, ...]]:
    """The partitioned copy, its regions and what was left alone; needs neither TVM nor a compiler."""
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
    if opset < MIN_OPSET:
        raise InputError(
            f"opset {opset} is below {MIN_OPSET}",
            where=model.graph.name or "model",
            remedy="upgrade the opset",
        )
    model = onnx_ir.passes.common.ShapeInferencePass()(model.clone()).model
    regions: list[Region] = []
    refused: list[Refusal] = []
    for graph in list(model.graphs()):
        graph.sort()
        found, left = find_regions(graph)
        refused += left
        for region in found:
            regions.append(_replace(graph, region))
            function = _body(region, opset)
            model.functions[function.identifier()] = function
        graph.sort()
    if regions:
        model.opset_imports[DOMAIN] = 1
        model.ir_version = max(model.ir_version, MIN_IR_VERSION)
    return model, tuple(regions), tuple(refused)


def _replace(graph: onnx_ir.Graph, region: FoundRegion) -> Region:
    call = onnx_ir.Node(
        DOMAIN,
        region.kernel.symbol,
        region.inputs,
        num_outputs=len(region.outputs),
        name=f"{region.kernel.symbol}_{region.outputs[0].name}",
        metadata_props=dict(region.nodes[-1].metadata_props),
    )
    described = Region(
        operator=call.op_type,
        kernel=region.kernel,
        nodes=tuple(node.name or "" for node in region.nodes),
        inputs=tuple(value.name or "" for value in region.inputs),
        outputs=tuple(value.name or "" for value in region.outputs),
    )
    for old, new in zip(region.outputs, call.outputs, strict=True):
        new.name, new.type, new.shape = old.name, old.type, old.shape
        new.doc_string = old.doc_string
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    read = {value for node in region.nodes for value in node.inputs if value is not None}
    graph.insert_before(region.nodes[0], call)
    graph.remove(region.nodes, safe=True)
    _drop_unread_constants(read)
    return described


def _drop_unread_constants(values: set[onnx_ir.Value]) -> None:
    """Removes the constants that are literals of a kernel now and that nothing else reads."""
    for value in values:
        owner = value.graph
        if not isinstance(owner, onnx_ir.Graph) or value.uses() or value.is_graph_output():
            continue
        producer = value.producer()
        if producer is not None and producer.op_type == "Constant":
            owner.remove(producer, safe=True)
        elif value.is_initializer() and not value.is_graph_input() and value.name is not None:
            del owner.initializers[value.name]


def _body(region: FoundRegion, opset: int) -> onnx_ir.Function:
    """The region's steps as the standard operators they came from."""
    kernel = region.kernel
    inputs = [onnx_ir.Value(name=f"a{position}") for position in range(len(kernel.operands))]
    values: list[onnx_ir.Value] = list(inputs)
    nodes: list[onnx_ir.Node] = []
    for position, constant in enumerate(kernel.constants):
        tensor = onnx_ir.tensor(np.asarray(constant, dtype=np.float32))
        node = onnx_ir.Node("", "Constant", [], [onnx_ir.AttrTensor("value", tensor)], num_outputs=1)
        node.outputs[0].name = f"c{position}"
        nodes.append(node)
        values.append(node.outputs[0])
    for position, step in enumerate(kernel.steps):
        arguments = [None if index is None else values[index] for index in step.arguments]
        attributes = onnx_ir.convenience.convert_attributes(dict(step.attributes))
        node = onnx_ir.Node("", step.op, arguments, attributes, num_outputs=1)
        node.outputs[0].name = f"v{position}"
        nodes.append(node)
        values.append(node.outputs[0])
    outputs = [values[index] for index in kernel.outputs]
    graph = onnx_ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": opset}, name=kernel.symbol)
    return onnx_ir.Function(DOMAIN, kernel.symbol, graph=graph, attributes=[])
