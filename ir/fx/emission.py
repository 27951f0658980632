"""Walks a program and has every node emitted by its rule: scopes, functions, bodies, names."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir
import torch
from opgraft.ir.dim_text import parse_dim
from opgraft.ir.element_types import infer_types
from opgraft.ir.errors import InputError
from opgraft.ir.fx.builder import Builder
from opgraft.ir.fx.call import Call, Output, describe
from opgraft.ir.fx.ops_view import given_or, items_to
from opgraft.ir.fx.parameters import Parameters
from opgraft.ir.fx.rules import RULES
from opgraft.ir.fx.shape_values import follow
from opgraft.ir.fx.standard_bodies import standard_body
from opgraft.ir.fx.values import FOLLOWED, REAL_FLOATS, TORCH_TYPES, DataType, FxValue
from opgraft.ir.integer_contents import Integers, Sizes, object_array
from opgraft.ir.normalize_export import FX_KEY, SCOPE_KEY
from opgraft.ir.program import DEFAULT_DOMAINS, Program, direct_subgraphs
from opgraft.ir.shape_rule import ShapeOperands, Unknowns
from opgraft.ir.shape_rules import SHAPE_RULES, infer
from torch import fx

_MAX_DEPTH = 64
_FLOAT_TYPES = {None: None, "float32": DataType.FLOAT, "float64": DataType.DOUBLE}


@dataclass(frozen=True)
class Bodies:
    """Subgraphs as modules, all with the same inputs behind their own ones."""

    modules: list[fx.Node]
    operands: list[fx.Node]
    results: list[list[FxValue]]


class Emission:
    """One run of `emit_fx`."""

    def __init__(self, program: Program, dtype: str | None) -> None:
        self.program = program
        self.functions = program.model.functions
        self.float_type = _FLOAT_TYPES[dtype]
        self.holder = torch.nn.Module()
        self.parameters = Parameters(self.holder, self.float_type)
        self.unknowns = Unknowns()
        self.n_bodies = 0
        self.literals: dict[int, FxValue] = {}
        """By the identity of the tensors in the program, which outlive the emission."""

    def module(self) -> fx.GraphModule:
        graph = self.program.graph
        builder = Builder(self.parameters)
        scope = Scope(self, builder, self.program.model.opset_imports)
        self._add_inputs(scope)
        scope.run(graph)
        results = [builder.tensor(scope.value(v)) for v in graph.outputs]
        builder.graph.output(results[0] if len(results) == 1 else tuple(results))
        builder.graph.eliminate_dead_code()
        made = fx.GraphModule(self.holder, builder.graph, class_name=_identifier(graph.name or "Emitted"))
        # The copy that GraphModule makes of the holder has lost which buffers are no part of the state dict.
        for name in self.holder._non_persistent_buffers_set & made._buffers.keys():
            made.register_buffer(name, self.holder.get_buffer(name), persistent=False)
        return made.eval()

    def _add_inputs(self, scope: Scope) -> None:
        taken: set[str] = set()
        nodes = []
        for value in self.program.graph.inputs:
            name = _unique(_identifier(value.name or "input"), taken)
            if value.is_initializer():
                nodes.append(scope.builder.graph.placeholder(name, default_value=None))
            else:
                nodes.append(scope.builder.graph.placeholder(name))
            if scope.builder.anchor is None and not value.is_initializer() and _is_tensor(value):
                scope.builder.anchor = nodes[-1]
        for value, node in zip(self.program.graph.inputs, nodes, strict=True):
            scope.values[value] = self._input(scope, value, node)

    def _input(self, scope: Scope, value: onnx_ir.Value, node: fx.Node) -> FxValue:
        builder, dtype = scope.builder, value.dtype
        is_tensor = _is_tensor(value)
        if value.const_value is not None:
            default = FxValue(builder, value.const_value.dtype, constant=value.const_value, name=value.name or "")
            node = builder.call(given_or, node, builder.tensor(default))
        wanted = self.widened(dtype)
        if wanted != dtype and wanted is not None:
            target = torch.ops.aten.to.dtype if is_tensor else items_to
            node = builder.call(target, node, TORCH_TYPES[wanted])
        sizes: Sizes | None = None
        if is_tensor and value.shape is not None:
            sizes = tuple(
                d if isinstance(d, int) else parse_dim(d.value) if d.value else self.unknowns.fresh()
                for d in value.shape
            )
        return FxValue(builder, wanted, node, name=value.name or "", sizes=sizes)

    def widened(self, dtype: DataType | None) -> DataType | None:
        return self.float_type if self.float_type is not None and dtype in REAL_FLOATS else dtype


def _is_tensor(value: onnx_ir.Value) -> bool:
    return value.type is None or isinstance(value.type, onnx_ir.TensorType)


class Scope:
    """Values by name of one graph, inside those of the graphs around it."""

    def __init__(
        self,
        emission: Emission,
        builder: Builder,
        imports: Mapping[str, int],
        parameters: Mapping[str, onnx_ir.Attr] | None = None,
        parent: Scope | None = None,
    ) -> None:
        self.emission = emission
        self.builder = builder
        self.imports = imports
        self.parameters = parameters or {}
        self.parent = parent
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.values: dict[onnx_ir.Value, FxValue] = {}
        self.absent: set[onnx_ir.Value] = set()
        """Inputs of a function that the call leaves out."""
        self.opset = imports.get("", imports.get("ai.onnx", 0))

    def widened(self, dtype: DataType | None) -> DataType | None:
        return self.emission.widened(dtype)

    # -- values ------------------------------------------------------------------------------------------------------

    def find(self, value: onnx_ir.Value) -> FxValue | None:
        scope: Scope | None = self
        while scope is not None:
            if value in scope.values:
                return scope.values[value]
            scope = scope.parent
        if value.const_value is None or value.producer() is not None:
            return None
        return self._weight(value, value.const_value)

    def value(self, value: onnx_ir.Value) -> FxValue:
        found = self.find(value)
        if found is None:
            raise InputError(f"value {value.name!r} is read and never computed")
        return found

    def _weight(self, value: onnx_ir.Value, tensor: onnx_ir.TensorProtocol) -> FxValue:
        """An initializer, registered when a tensor is first asked for."""
        if tensor.dtype not in TORCH_TYPES:
            raise InputError(f"initializer {value.name!r}: element type {tensor.dtype.name} has no torch type")
        scope = self
        while scope.parent is not None:
            scope = scope.parent
        sizes = tuple(d for d in tensor.shape if isinstance(d, int))
        made = FxValue(
            scope.builder, self.widened(tensor.dtype), constant=tensor, name=value.name or "weight", sizes=sizes
        )
        scope.values[value] = made
        return made

    # -- graphs ------------------------------------------------------------------------------------------------------

    def run(self, graph: onnx_ir.Graph) -> None:
        if self.depth > _MAX_DEPTH:
            raise InputError(f"functions and bodies are nested more than {_MAX_DEPTH} deep")
        for node in graph:
            self._node(node)

    def inline(self, graph: onnx_ir.Graph, inputs: Sequence[FxValue]) -> list[FxValue]:
        """The nodes of a body in this graph."""
        scope = Scope(self.emission, self.builder, self.imports, self.parameters, self)
        scope.values.update(zip(graph.inputs, inputs, strict=True))
        meta = self.builder.meta
        scope.run(graph)
        self.builder.meta = meta
        return [scope.value(v) for v in graph.outputs]

    def bodies(self, graphs: Sequence[tuple[onnx_ir.Graph, Sequence[tuple[str, DataType | None, Any]]]]) -> Bodies:
        """Subgraphs as modules of their own; what they read from outside becomes their last inputs."""
        made = []
        for graph, typed in graphs:
            builder = Builder(self.builder.parameters, self.builder)
            scope = Scope(self.emission, builder, self.imports, self.parameters, self)
            own = [builder.placeholder(_identifier(name or "input")) for name, _, _ in typed]
            for value, node, (_, dtype, sizes) in zip(graph.inputs, own, typed, strict=True):
                scope.values[value] = FxValue(builder, dtype, node, sizes=sizes)
            scope.run(graph)
            results = [scope.value(v) for v in graph.outputs]
            builder.graph.output(tuple(builder.tensor(r) for r in results))
            made.append((builder, own, results))
        operands = list(dict.fromkeys(node for builder, _, _ in made for node in builder.lifted))
        modules = [self._body_module(builder, own, operands) for builder, own, _ in made]
        return Bodies(modules, operands, [results for _, _, results in made])

    def _body_module(self, builder: Builder, own: Sequence[fx.Node], operands: Sequence[fx.Node]) -> fx.Node:
        """Its own inputs first, then all operands, also those that this one does not read."""
        ordered, taken = fx.Graph(), set[str]()
        mapping: dict[fx.Node, Any] = {node: ordered.placeholder(_unique(node.name, taken)) for node in own}
        for operand in operands:
            made = ordered.placeholder(_unique(operand.name, taken))
            if operand in builder.lifted:
                mapping[builder.lifted[operand]] = made
        ordered.output(ordered.graph_copy(builder.graph, mapping))
        name = f"body_{self.emission.n_bodies}"
        self.emission.n_bodies += 1
        self.emission.holder.add_module(name, fx.GraphModule(self.emission.holder, ordered))
        return self.builder.attribute(name)

    # -- nodes -------------------------------------------------------------------------------------------------------

    def _node(self, node: onnx_ir.Node) -> None:
        inputs = [None if v is None or v in self.absent else self.value(v) for v in node.inputs]
        while inputs and inputs[-1] is None:
            inputs.pop()
        attributes = self._attributes(node)
        function = self.emission.functions.get(node.op_identifier())
        if function is not None:
            results: Sequence[Output] = self._function(function, inputs, attributes, node)
        else:
            self.builder.meta = _meta(node)
            self.builder.fresh.clear()
            results = self._apply(Call(self, node, inputs, attributes))
        self._bind(node, results, inputs, attributes)

    def _attributes(self, node: onnx_ir.Node) -> dict[str, onnx_ir.Attr]:
        """With the parameters of the function around filled in."""
        found = {}
        for name, attribute in node.attributes.items():
            if attribute.is_ref():
                given = self.parameters.get(attribute.ref_attr_name or "")
                if given is None or given.value is None:
                    continue
                attribute = onnx_ir.Attr(name, given.type, given.value)
            found[name] = attribute
        return found

    def _apply(self, call: Call) -> Sequence[Output]:
        node = call.source
        if node.domain in DEFAULT_DOMAINS:
            followed = follow(call)
            if followed is not None:
                return followed
        rule = RULES.get(node.domain, {}).get(node.op_type)
        if rule is None:
            body = standard_body(call)
            if body is None:
                raise InputError(
                    "the operator has no torch form", where=describe(node), remedy="this model cannot be emitted"
                )
            return self._function(body, call.inputs, call.attributes, node)
        made = rule(call)
        if isinstance(made, (list, tuple)):
            return made
        return [made]

    def _function(
        self,
        function: onnx_ir.Function,
        inputs: Sequence[FxValue | None],
        attributes: Mapping[str, onnx_ir.Attr],
        node: onnx_ir.Node,
    ) -> list[FxValue]:
        defaults = {n: a for n, a in function.attributes.items() if a.value is not None}
        scope = Scope(self.emission, self.builder, function.opset_imports, {**defaults, **attributes}, self)
        for value, given in zip(function.inputs, inputs, strict=False):
            if given is not None:
                scope.values[value] = given
        scope.absent = {v for v in function.inputs if v not in scope.values}
        scope.run(function.graph)
        return [scope.value(v) for v in function.outputs]

    # -- results -----------------------------------------------------------------------------------------------------

    def _bind(
        self,
        node: onnx_ir.Node,
        results: Sequence[Output],
        inputs: Sequence[FxValue | None],
        attributes: Mapping[str, onnx_ir.Attr],
    ) -> None:
        facts: list[tuple[DataType | None, Sizes | None]] | None = None
        for index, (output, result) in enumerate(zip(node.outputs, results, strict=False)):
            if result is None:
                continue
            if isinstance(result, FxValue) and result.sizes is not None and result.dtype is not None:
                self.values[output] = result
                continue
            if facts is None:
                facts = self._facts(node, inputs, attributes)
            dtype, sizes = facts[index]
            self.values[output] = self._value(output, result, dtype, sizes)
        first = next((r for r in results if r is not None), None)
        made = first.node if isinstance(first, FxValue) else first
        if isinstance(made, fx.Node) and made in self.builder.fresh:
            made._rename(re.sub(r"\W", "_", node.name or node.op_type, flags=re.ASCII))

    def _value(self, output: onnx_ir.Value, result: Output, dtype: DataType | None, sizes: Sizes | None) -> FxValue:
        name = output.name or ""
        if isinstance(result, FxValue):
            if result.dtype is None:
                result.dtype = dtype
            if result.sizes is None:
                result.sizes = sizes
            return result
        if isinstance(result, np.ndarray):
            return FxValue(self.builder, dtype or DataType.BOOL, elements=result, name=name, sizes=result.shape)
        return FxValue(self.builder, dtype, result, name=name, sizes=sizes)

    def _facts(
        self, node: onnx_ir.Node, inputs: Sequence[FxValue | None], attributes: Mapping[str, onnx_ir.Attr]
    ) -> list[tuple[DataType | None, Sizes | None]]:
        """Element type and dims of each output: by the operator's rules, else the record's type and rank."""
        types: list[DataType | None] = [None] * len(node.outputs)
        shapes: Sequence[Sizes | None] = [None] * len(node.outputs)
        if node.op_type in SHAPE_RULES and node.domain in DEFAULT_DOMAINS and not direct_subgraphs(node):
            stand_in = _stand_in(node, inputs, attributes)
            types = infer_types(stand_in, [None if v is None else v.dtype for v in inputs])
            contents = [None if v is None else self._content(v) for v in inputs]
            dims = [None if v is None else v.sizes for v in inputs]
            shapes = infer(ShapeOperands(stand_in, contents, dims, self.emission.unknowns))
        found = []
        for output, dtype, sizes in zip(node.outputs, types, shapes, strict=True):
            if sizes is None and output.shape is not None and isinstance(output.type, onnx_ir.TensorType | None):
                sizes = tuple(self.emission.unknowns.fresh() for _ in output.shape)
            found.append((self.widened(dtype or output.dtype), sizes))
        return found

    def _content(self, value: FxValue) -> Integers | None:
        elements = self.builder.elements(value) if value.dtype in FOLLOWED else None
        if elements is None or value.dtype is None:
            return None
        flat = [int(e) if isinstance(e, int) else None for e in elements.reshape(-1).tolist()]
        return Integers(object_array(flat, elements.shape), value.dtype)


def _stand_in(
    node: onnx_ir.Node, inputs: Sequence[FxValue | None], attributes: Mapping[str, onnx_ir.Attr]
) -> onnx_ir.Node:
    """A node apart from the model with its attributes filled in, for rules that are given a node."""
    values = [
        None if v is None else onnx_ir.Value(type=None if v.dtype is None else onnx_ir.TensorType(v.dtype))
        for v in inputs
    ]
    return onnx_ir.Node(node.domain, node.op_type, values, list(attributes.values()), num_outputs=len(node.outputs))


def _meta(node: onnx_ir.Node) -> dict[str, Any]:
    """Where a torch node came from."""
    kept = {key: node.metadata_props[key] for key in (SCOPE_KEY, FX_KEY) if key in node.metadata_props}
    return {"opgraft.node": node.name or "", **kept}


def _identifier(name: str) -> str:
    made = re.sub(r"\W", "_", name, flags=re.ASCII) or "value"
    return f"_{made}" if made[0].isdigit() or keyword.iskeyword(made) or made == "self" else made


def _unique(name: str, taken: set[str]) -> str:
    number, made = 1, name
    while made in taken:
        made = f"{name}_{number}"
        number += 1
    taken.add(made)
    return made
