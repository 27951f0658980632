"""What PyTorch's exporters leave behind, made regular: CastLike noise, bulky metadata, shared initializers.

Works on any `onnx_ir` model, so that a captured module and an `.onnx` file written by the exporter end alike.
Constant folding, Identity removal and common subexpressions are the business of the simplification passes.

Merged initializers. The exporter's own optimizer shares one tensor between all equal initializers: every
all-ones norm weight and every all-zero bias of a model may be one value with the name of an unrelated
parameter, and one small shape constant serves many places. Therefore no initializer may ever be edited in
place: a pass that changes a weight makes a new value for the one use it means. Names do not identify a module
either; the scope and the parameter names recorded here, per node, do.

Metadata written (all short):
    node   `opgraft.scope`        path of the module that computed it, "model.layers.0.self_attn.q_proj"
    node   `opgraft.fx`           name of the FX node it came from, "linear_3"
    node   `opgraft.parameters`   parameters it used in torch, where an initializer bears a stranger's name
    value  `opgraft.folded_from`  the parameters an initializer was folded from, where the exporter renamed it
    model  `opgraft.modules`      JSON object: scope -> class of the module
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, MutableMapping

import onnx_ir as ir
from onnx_ir.serde import TensorProtoTensor

SCOPE_KEY = "opgraft.scope"
FX_KEY = "opgraft.fx"
PARAMETERS_KEY = "opgraft.parameters"
FOLDED_KEY = "opgraft.folded_from"
MODULES_KEY = "opgraft.modules"

_EXPORTER_PREFIXES = ("pkg.torch.", "pkg.onnxscript.")
_MAX_METADATA_CHARS = 100_000  # longer than any scope list of a real model; a hostile file must not be parsed
_SIGNATURE_LINE = re.compile(r"^(\w+): (?:PARAMETER|BUFFER|CONSTANT_TENSOR) target='([^']*)'", re.MULTILINE)
_FX_ARGUMENT = re.compile(r"%(\w+)")
# An absolute path (POSIX with two components or more, or a drive letter) or a line of a stack trace. URLs do
# not match: there the slash follows a colon or another slash.
_MACHINE_TEXT = re.compile(
    r'File "|(?:site|dist)-packages|(?<![\w:/.])/[\w.+@-]+/[\w.+@/-]+|(?<![A-Za-z])[A-Za-z]:[\\/]\w'
)


def normalize_export(model: ir.Model) -> list[str]:
    """Replace CastLike where the dtype is known, report shared initializers; one note per kind of finding."""
    record_provenance(model)
    removed = changed = 0
    for graph in model_graphs(model):
        for node in list(graph):
            outcome = _lower_cast_like(node, graph)
            removed += outcome == "removed"
            changed += outcome == "cast"
    notes = []
    if removed or changed:
        notes.append(f"CastLike: {removed} without effect removed, {changed} made Cast")
    n_sizes = _fix_numeric_dims(model)
    if n_sizes:
        notes.append(f"{n_sizes} symbolic dims that are numbers made static")
    notes.extend(_shared_initializer_notes(model))
    return notes


def strip_debug_info(model: ir.Model) -> None:
    """Drop stack traces, absolute paths and the exporters' bulky metadata; keep compact module scopes.

    Other people's metadata and doc strings stay, unless they hold an absolute path or a stack trace.
    """
    record_provenance(model)
    _clean(model)
    for function in model.functions.values():
        _clean(function)
    for graph in model_graphs(model):
        if isinstance(graph, ir.Graph):
            _clean(graph)
        for value in graph_values(graph):
            _clean(value)
            # The exporter keeps live FX nodes here, and with them every fake tensor of the trace.
            value.meta.pop("node", None)
            if value.const_value is not None:
                _clean(value.const_value)
        for node in graph:
            _clean(node)
            node.meta.pop("node", None)
            for attribute in node.attributes.values():
                if attribute.doc_string and _MACHINE_TEXT.search(attribute.doc_string):
                    attribute.doc_string = None
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    _clean(attribute.as_tensor())


def record_provenance(model: ir.Model) -> None:
    """Condense the exporter's metadata into the `opgraft.*` keys above; does nothing the second time."""
    targets = _parameter_targets(model)
    modules: dict[str, str] = {}
    for graph in model_graphs(model):
        for node in graph:
            _record_scope(node, modules, torchscript=model.producer_name == "pytorch")
            _record_parameters(node, targets)
        for value in graph_values(graph):
            folded = _parse_names(value.metadata_props.get("pkg.onnxscript.optimizer.folded_from", ""))
            parameters = [name for name in folded if name in targets.values() and name != value.name]
            if parameters:
                value.metadata_props[FOLDED_KEY] = ",".join(parameters)
    if modules:
        model.metadata_props[MODULES_KEY] = json.dumps(modules, sort_keys=True, separators=(",", ":"))


def model_graphs(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    """The main graph, every subgraph, every function and the subgraphs of its body, each once."""
    roots: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for root in roots:
        yield root
        yield from root.subgraphs()


def graph_values(graph: ir.Graph | ir.Function) -> Iterator[ir.Value]:
    """Inputs, initializers and node outputs of one graph, without its subgraphs."""
    yield from graph.inputs
    if isinstance(graph, ir.Graph):
        yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _clean(item: ir.Model | ir.Graph | ir.Function | ir.Node | ir.Value | ir.TensorProtocol) -> None:
    metadata: MutableMapping[str, str] = item.metadata_props
    for key in [key for key, text in metadata.items() if _is_debug_entry(key, text)]:
        del metadata[key]
    if item.doc_string and _MACHINE_TEXT.search(item.doc_string):
        if isinstance(item, TensorProtoTensor):
            item.raw.ClearField("doc_string")
        else:
            item.doc_string = None


def _is_debug_entry(key: str, text: str) -> bool:
    if key.startswith("opgraft."):
        return False
    return key == "namespace" or key.startswith(_EXPORTER_PREFIXES) or bool(_MACHINE_TEXT.search(text or ""))


def _record_scope(node: ir.Node, modules: dict[str, str], *, torchscript: bool) -> None:
    """The exporter lists every enclosing scope and class, then FX node and target; keep the innermost."""
    if SCOPE_KEY in node.metadata_props:
        return
    scopes = _parse_names(node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
    classes = _parse_names(node.metadata_props.get("pkg.torch.onnx.class_hierarchy", ""))
    if scopes:
        *modules_entered, fx_name = scopes
        # Nodes that torch.export inserted itself (sizes, assertions) carry a placeholder for a scope.
        known = [scope for scope in modules_entered if not scope.startswith("_empty_nn_module_stack")]
        node.metadata_props[SCOPE_KEY] = known[-1] if known else ""
        node.metadata_props[FX_KEY] = fx_name
        if len(known) == len(modules_entered) == len(classes) - 1:
            modules.update(zip(known, classes, strict=False))
    elif torchscript and (node.name or "").startswith("/"):
        # The TorchScript exporter writes the scope into the node's name: /model/layers.0/self_attn/MatMul.
        node.metadata_props[SCOPE_KEY] = ".".join((node.name or "").split("/")[1:-1])


def _record_parameters(node: ir.Node, targets: dict[str, str]) -> None:
    text = node.metadata_props.get("pkg.torch.onnx.fx_node", "")
    own_names = {value.name for value in node.inputs if value is not None and value.is_initializer()}
    if not own_names or not text or len(text) > _MAX_METADATA_CHARS:
        return
    parameters = [targets[name] for name in _FX_ARGUMENT.findall(text) if name in targets]
    if parameters and not own_names <= set(parameters):
        node.metadata_props[PARAMETERS_KEY] = ",".join(dict.fromkeys(parameters))


def _parameter_targets(model: ir.Model) -> dict[str, str]:
    """FX placeholder name -> name of the parameter in the torch module, as far as the metadata still says."""
    signature = model.graph.metadata_props.get("pkg.torch.export.ExportedProgram.graph_signature", "")
    targets = dict(_SIGNATURE_LINE.findall(signature))
    for name, value in model.graph.initializers.items():
        placeholder = value.metadata_props.get("pkg.torch.onnx.original_node_name")
        if placeholder:
            targets.setdefault(placeholder, name)
    return targets


def _parse_names(text: str) -> list[str]:
    """A Python list of strings, as the exporter prints it; anything else is an empty list."""
    if not text or len(text) > _MAX_METADATA_CHARS:
        return []
    try:
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return []
    return names


def _lower_cast_like(node: ir.Node, graph: ir.Graph | ir.Function) -> str:
    """CastLike(x, like) -> x where the dtypes are equal, Cast(x) where only that of `like` is known."""
    if node.op_type != "CastLike" or node.domain not in ("", "ai.onnx") or len(node.inputs) != 2:
        return "kept"
    source, like = node.inputs
    target = _known_dtype(like)
    if source is None or target is None:
        return "kept"
    output = node.outputs[0]
    output.dtype = target
    node.resize_inputs(1)
    if _known_dtype(source) != target:
        node.op_type = "Cast"
        node.attributes["to"] = ir.AttrInt64("to", int(target))
        return "cast"
    if output.is_graph_output():
        # The output must keep its name; simplification decides whether the Identity can go.
        node.op_type = "Identity"
        node.attributes.clear()
        return "removed"
    ir.convenience.replace_all_uses_with(output, source)
    graph.remove(node, safe=True)
    return "removed"


def _known_dtype(value: ir.Value | None) -> ir.DataType | None:
    """Element type, also where the exporter left the value untyped but its producer tells."""
    if value is None or value.dtype is not None:
        return value.dtype if value is not None else None
    if value.const_value is not None:
        return value.const_value.dtype
    producer = value.producer()
    if producer is None or producer.domain not in ("", "ai.onnx"):
        return None
    if producer.op_type in ("Shape", "Size"):
        return ir.DataType.INT64
    if producer.op_type == "Cast" and not producer.attributes["to"].is_ref():
        return ir.DataType(producer.attributes["to"].as_int())
    if producer.op_type == "Constant":
        attribute = producer.attributes.get("value")
        if attribute is not None and not attribute.is_ref():
            return attribute.as_tensor().dtype
    if producer.op_type in ("Identity", "Squeeze", "Unsqueeze", "Reshape") and producer.inputs:
        return producer.inputs[0].dtype if producer.inputs[0] is not None else None
    return None


def _fix_numeric_dims(model: ir.Model) -> int:
    """A dim that the exporter specialised late stays symbolic, with its size for a name: "2" -> 2."""
    count = 0
    for graph in model_graphs(model):
        for value in graph_values(graph):
            if value.shape is None or value.shape.is_static():
                continue
            sizes = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
            numeric = [isinstance(size, str) and size.isdecimal() for size in sizes]
            if any(numeric):
                count += sum(numeric)
                value.shape = ir.Shape(
                    [int(size) if fix and size else size for fix, size in zip(numeric, sizes, strict=True)]
                )
    return count


def _shared_initializer_notes(model: ir.Model) -> list[str]:
    """One note each for parameters and for integer constants that serve more than one module."""
    shared: dict[str, list[str]] = {"parameters": [], "integer constants": []}
    for name, value in model.graph.initializers.items():
        users = _distinct(node.metadata_props.get(SCOPE_KEY) for node, _ in value.uses())
        if len(users) > 1:
            is_integer = value.dtype is not None and not value.dtype.is_floating_point()
            kind = "integer constants" if is_integer else "parameters"
            shared[kind].append(f"{name!r} by {', '.join(users[:3])}{', ...' if len(users) > 3 else ''}")
    return [
        f"{len(names)} {kind} shared between modules, for instance {names[0]}: clone before changing"
        for kind, names in shared.items()
        if names
    ]


def _distinct(scopes: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(scope for scope in scopes if scope))
