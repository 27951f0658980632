"""Checks on a `ModelProto` before the IR sees it: names, scopes, order, imports, operators, tensors, types.

One walk over the messages, linear in their number. The IR resolves names silently and reports damage by exceptions of
many kinds, so everything that can be wrong is found here, where the place in the file is still known. What is legal but
has no place in the IR is made regular on the way: sparse tensors become dense, negative dims unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import onnx
from onnx import AttributeProto
from opgraft.ir.errors import InputError
from opgraft.ir.sparse import dense_tensor
from opgraft.ir.validate_functions import (
    INVALID,
    FunctionKey,
    check_no_files,
    check_recursion,
    check_text,
    check_texts,
    function_keys,
    read_imports,
)
from opgraft.ir.validate_operator import Signatures, check_attributes, check_operands
from opgraft.ir.validate_tensor import check_tensor
from opgraft.ir.validate_type import check_value_infos

OLDEST_OPSET = 7
# The runtime's own operators, which it takes without an import; there is one version.
_RUNTIME_DOMAIN = "com.microsoft"
# Protobuf's own limit on nested messages is 100, three for each subgraph.
_MAX_NESTING = 64


@dataclass
class Findings:
    """What the walk saw that decides which further steps a model needs."""

    is_unsorted: bool = False
    has_subgraphs: bool = False
    has_devices: bool = False
    """Whether a node says on which devices it runs."""
    has_files: bool = False
    """Whether a tensor lies in a file, the model's own or another."""
    has_texts: bool = False
    """Whether there are doc strings or metadata besides the model's own."""
    kept_types: dict[str, onnx.TypeProto] = field(default_factory=dict)
    """Value of the main graph -> its type, where the IR has none like it (maps, opaque types)."""

    @property
    def is_plain(self) -> bool:
        """Whether the nodes are in order and hold nothing but operands and attributes without graphs."""
        return not (self.is_unsorted or self.has_subgraphs or self.has_devices)


@dataclass
class _Scope:
    """Names of one graph, seen from inside it and from its subgraphs."""

    defined: set[str]
    """All names, wherever they are defined."""
    ready: set[str]
    """Those defined before the node at hand."""


def check_proto(proto: onnx.ModelProto, where: str) -> Findings:
    """Raises InputError when the model is invalid; makes it regular where it is only unusual."""
    if not proto.HasField("graph"):
        raise InputError("the model has no graph", where=where, remedy="is this an ONNX model?")
    if proto.ir_version <= 0:
        raise InputError("the model has no IR version", where=where, remedy="is this an ONNX model?")
    if not proto.opset_import:
        raise InputError("the model imports no operator set", where=where, remedy="set opset_import")
    imports = read_imports(proto.opset_import, where)
    opset = imports.get("", OLDEST_OPSET)
    if opset < OLDEST_OPSET:
        raise InputError(
            f"operator set {opset} is older than {OLDEST_OPSET}",
            where=where,
            remedy="export the model again with a newer opset",
        )
    for text in (proto.producer_name, proto.producer_version, proto.domain, proto.doc_string):
        check_text(text, where)
    for entry in proto.metadata_props:
        check_text(entry.key, where)
        check_text(entry.value, where)
    walk = _Walk(function_keys(proto, where))
    n_imports = len(imports)
    walk.graph(proto.graph, [], where, _Context(imports, Signatures(opset), in_function=False))
    if len(imports) > n_imports:
        proto.opset_import.add(domain=_RUNTIME_DOMAIN, version=imports[_RUNTIME_DOMAIN])
    calls: dict[FunctionKey, set[FunctionKey]] = {}
    for function in proto.functions:
        key = (function.domain, function.name, function.overload)
        calls[key] = walk.function(function, f"{where}: function {function.name}", imports)
    check_recursion(calls, where)
    for configuration in proto.configuration:
        check_texts(configuration, where)
    for training in proto.training_info:
        check_texts(training, where)
        check_no_files(training, where)
    return walk.findings


@dataclass
class _Context:
    imports: dict[str, int]
    signatures: Signatures
    in_function: bool
    calls: set[FunctionKey] = field(default_factory=set)


class _Walk:
    """The walk over the main graph and the functions, with what it found."""

    def __init__(self, functions: set[FunctionKey]) -> None:
        self.functions = functions
        self.findings = Findings()

    def function(self, function: onnx.FunctionProto, where: str, outer_imports: dict[str, int]) -> set[FunctionKey]:
        """Check a function body; returns the functions it calls."""
        imports = read_imports(function.opset_import, where) or outer_imports
        inputs = list(function.input)
        _check_names("input", inputs, where)
        context = _Context(imports, Signatures(imports.get("", OLDEST_OPSET)), in_function=True)
        scope = self._nodes(function.node, inputs, [], where, context)
        for name in function.output:
            if name not in scope.defined:
                raise InputError(f"output {name!r} is produced by nothing", where=where, remedy=INVALID)
        for name in function.attribute:
            check_text(name, where)
        for default in function.attribute_proto:
            check_texts(default, where)
            check_no_files(default, where)
        self._texts(function, where)
        check_value_infos(function.value_info, where, None)
        return context.calls

    def graph(self, graph: onnx.GraphProto, outer: list[_Scope], where: str, context: _Context) -> None:
        """Check a graph that sees the names of `outer`, and its subgraphs."""
        if len(outer) > _MAX_NESTING:
            raise InputError(f"subgraphs are nested deeper than {_MAX_NESTING}", where=where, remedy=INVALID)
        check_text(graph.name, where)
        self._texts(graph, where)
        for annotation in graph.quantization_annotation:
            check_texts(annotation, where)
        for sparse in graph.sparse_initializer:
            graph.initializer.append(dense_tensor(sparse, where))
        graph.ClearField("sparse_initializer")
        inputs = [info.name for info in graph.input]
        initializers = [tensor.name for tensor in graph.initializer]
        _check_names("input", inputs, where)
        _check_names("initializer", initializers, where)
        for tensor in graph.initializer:
            self.findings.has_files |= check_tensor(tensor, where)
            self._texts(tensor, where)
        kept = self.findings.kept_types if not (outer or context.in_function) else None
        for infos in (graph.input, graph.output, graph.value_info):
            self.findings.has_texts |= check_value_infos(infos, where, kept)
        scope = self._nodes(graph.node, [*inputs, *initializers], outer, where, context)
        for info in graph.output:
            if info.name not in scope.defined:
                raise InputError(f"output {info.name!r} is produced by nothing", where=where, remedy=INVALID)

    def _nodes(
        self, nodes: Sequence[onnx.NodeProto], given: list[str], outer: list[_Scope], where: str, context: _Context
    ) -> _Scope:
        """Check the nodes of one graph, whose inputs and initializers are `given`."""
        outputs = [list(node.output) for node in nodes]
        ready = set(given)
        scope = _Scope(ready | _defined(outputs, ready, where), ready)
        scopes = [*outer, scope]
        for node, names in zip(nodes, outputs, strict=True):
            inputs = list(node.input)
            for name in inputs:
                if name not in ready and name:
                    self._resolve(name, scopes, node, where)
            self._node(node, len(inputs), len(names), where, context)
            if node.attribute:
                self._attributes(node, scopes, where, context)
            ready.update(names)
        return scope

    def _resolve(self, name: str, scopes: list[_Scope], node: onnx.NodeProto, where: str) -> None:
        """Find a name that the node's own graph has not defined yet."""
        for scope in reversed(scopes):
            if name in scope.ready:
                return
            if name in scope.defined:
                self.findings.is_unsorted = True
                return
        check_text(name, where)
        raise InputError(f"input {name!r} is defined nowhere", where=f"{where}: {_node_name(node)}", remedy=INVALID)

    def _node(self, node: onnx.NodeProto, n_inputs: int, n_outputs: int, where: str, context: _Context) -> None:
        op_type, domain = node.op_type, node.domain
        if not type(op_type) is type(domain) is type(node.name) is str:
            raise _refused_text(where)
        if not op_type:
            raise InputError("a node has no operator", where=f"{where}: {_node_name(node)}", remedy=INVALID)
        if domain == "ai.onnx":
            domain = ""
        if domain not in context.imports:
            self._import(domain, node, where, context)
        if node.doc_string or node.metadata_props:
            self._texts(node, where)
        if node.device_configurations:
            self.findings.has_devices = True
            for configuration in node.device_configurations:
                check_texts(configuration, where)
        if node.overload:
            check_text(node.overload, where)
        if self.functions:
            key = (domain, op_type, node.overload)
            if key in self.functions:
                context.calls.add(key)
                return
        signature = None if domain else context.signatures.get(op_type)
        if signature is not None:
            check_operands(node, n_inputs, n_outputs, signature, where)
            if signature.required or node.attribute:
                check_attributes(node, signature, where)

    def _import(self, domain: str, node: onnx.NodeProto, where: str, context: _Context) -> None:
        """The runtime's own domain needs no import in a graph; any other does."""
        if domain == _RUNTIME_DOMAIN and not context.in_function:
            context.imports[domain] = 1
            return
        raise InputError(
            f"domain {domain or 'ai.onnx'!r} of operator {node.op_type} is not imported",
            where=f"{where}: {_node_name(node)}",
            remedy="add it to opset_import",
        )

    def _attributes(self, node: onnx.NodeProto, scopes: list[_Scope], where: str, context: _Context) -> None:
        seen = set()
        for attribute in node.attribute:
            check_text(attribute.name, where)
            if attribute.name in seen:
                raise _refused_attribute(node, attribute, where, "is there twice")
            seen.add(attribute.name)
            if attribute.doc_string:
                check_text(attribute.doc_string, where)
                self.findings.has_texts = True
            kind = attribute.type
            if attribute.ref_attr_name:
                check_text(attribute.ref_attr_name, where)
                if not context.in_function:
                    raise _refused_attribute(node, attribute, where, "refers to a function's, but this is no function")
            elif kind in _SIMPLE_TYPES:
                continue
            elif kind == AttributeProto.TENSOR:
                self.findings.has_files |= check_tensor(attribute.t, f"{where}: {_node_name(node)}")
            elif kind == AttributeProto.GRAPH:
                self.findings.has_subgraphs = True
                self.graph(attribute.g, scopes, f"{where}: {_node_name(node)}", context)
            else:
                self._rare_attribute(node, attribute, scopes, where, context)

    def _rare_attribute(
        self, node: onnx.NodeProto, attribute: AttributeProto, scopes: list[_Scope], where: str, context: _Context
    ) -> None:
        inside = f"{where}: {_node_name(node)}"
        if attribute.type == AttributeProto.TENSORS:
            for tensor in attribute.tensors:
                self.findings.has_files |= check_tensor(tensor, inside)
        elif attribute.type == AttributeProto.GRAPHS:
            self.findings.has_subgraphs = True
            for graph in attribute.graphs:
                self.graph(graph, scopes, inside, context)
        elif attribute.type == AttributeProto.STRINGS:
            for text in attribute.strings:
                try:
                    text.decode()
                except UnicodeDecodeError:
                    raise _refused_attribute(node, attribute, where, "is no UTF-8") from None
        elif attribute.type == AttributeProto.SPARSE_TENSOR and node.op_type == "Constant" and attribute.name:
            dense = dense_tensor(attribute.sparse_tensor, inside)
            attribute.Clear()
            attribute.name, attribute.type = "value", AttributeProto.TENSOR
            attribute.t.CopyFrom(dense)
        elif attribute.type not in (AttributeProto.TYPE_PROTO, AttributeProto.TYPE_PROTOS):
            raise _refused_attribute(node, attribute, where, "has no type, or one that is not supported")

    def _texts(self, item: Any, where: str) -> None:
        """Doc strings and metadata of a graph, node, function or tensor must be UTF-8."""
        if item.doc_string:
            check_text(item.doc_string, where)
            self.findings.has_texts = True
        for entry in item.metadata_props:
            check_text(entry.key, where)
            check_text(entry.value, where)
            self.findings.has_texts = True


_SIMPLE_TYPES = (
    AttributeProto.INT,
    AttributeProto.INTS,
    AttributeProto.FLOAT,
    AttributeProto.FLOATS,
    AttributeProto.STRING,
)


def _defined(outputs: list[list[str]], given: set[str], where: str) -> set[str]:
    """The names that nodes define, each once and none of them `given`."""
    names = [name for name in chain.from_iterable(outputs) if name]
    if any(kind is not str for kind in set(map(type, names))):
        raise _refused_text(where)
    defined = set(names)
    if len(defined) == len(names) and given.isdisjoint(defined):
        return defined
    seen = set(given)
    for name in names:
        if name in seen:
            raise InputError(f"{name!r} is defined twice", where=where, remedy=INVALID)
        seen.add(name)
    return defined


def _refused_text(where: str) -> InputError:
    return InputError("a node has a name that is no UTF-8", where=where, remedy="the file is damaged")


def _refused_attribute(node: onnx.NodeProto, attribute: AttributeProto, where: str, what: str) -> InputError:
    return InputError(f"attribute {attribute.name!r} {what}", where=f"{where}: {_node_name(node)}", remedy=INVALID)


def _node_name(node: onnx.NodeProto) -> str:
    return f"node {node.name!r}" if node.name else f"{node.op_type} node"


def _check_names(kind: str, names: list[str], where: str) -> None:
    if len(set(names)) != len(names):
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise InputError(f"{kind} {name!r} is defined twice", where=where, remedy=INVALID)
            seen.add(name)
    for name in names:
        if type(name) is not str:
            check_text(name, where)
        if not name:
            raise InputError(f"an {kind} has no name", where=where, remedy=INVALID)
