"""The ONNX backend tests as cases, and five forms of each.

    as is              the recorded model
    initializers       its inputs baked in, so that constants can be folded
    doubled            the graph twice side by side; the copies share inputs, weights and constants
    function           the graph as the body of a model-local function
    control flow       the graph in both branches of an If, or in the body of a Loop, reading outer values

Variants of a form (own data input or a shared one, attributes as parameters, a constant condition ...) follow
from the test's name, so that each test always has the same five models.
"""

from __future__ import annotations

import random
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TypeProto, ValueInfoProto, helper
from opgraft.passes.opset.convert import convert_opset

sys.path.insert(0, str(Path(__file__).parent))
import opset_backend as backend

NEWEST_IR_VERSION = 13
"""The newest file format that the runtime reads. Newer stamps are set back: the operators are what is tested."""
OLDEST_OPSET = 7
"""Capture refuses older models; ours are raised to `RAISED_OPSET` by the opset conversion first."""
RAISED_OPSET = 17
FUNCTION_DOMAIN = "test.functions"
WIDE_TYPES = frozenset(
    onnx.TensorProto.DataType.Value(n)
    for n in (
        *("FLOAT", "FLOAT16", "DOUBLE", "BOOL", "STRING"),
        *("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"),
    )
)
"""Element types for which the runtime has every kernel that the forms need around a case."""

Feed = dict[str, Any]


@dataclass
class Case:
    """A model and sets of inputs; the first set comes with the outputs that it must give."""

    name: str
    kind: str
    model: ModelProto
    feeds: list[Feed]
    expected: list[Any] | None = None
    rtol: float = 1e-3
    atol: float = 1e-7
    pipelines: tuple[str, ...] = ("optimize",)
    """Run one after the other."""
    error_feeds: list[Feed] = field(default_factory=list)
    """Further inputs, as far as the model takes them, from which the original's own error is estimated."""

    def variant(self, number: int, salt: str = "") -> int:
        """A number below `number`, the same for the same test."""
        return zlib.crc32(f"{self.name} {salt}".encode()) % number


@dataclass
class Form:
    """A case in one form."""

    name: str
    variant: str
    model: ModelProto
    feeds: list[Feed]
    unwrap: Callable[[dict[str, Any]], list[list[Any]]] = field(default=lambda outputs: [list(outputs.values())])
    """The outputs of the form as lists of outputs of the original, one list per copy."""


class NotApplicable(Exception):
    """The case cannot be brought into this form: why."""


# -- cases -----------------------------------------------------------------------------------------------------------


def load_cases(*, light: bool = True) -> list[Case]:
    """Every backend test of the installed onnx package. The node tests are generated; their numbers are seeded."""
    cases: dict[tuple[str, str], Case] = {}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        state, python_state = np.random.get_state(), random.getstate()
        np.random.seed(0)
        random.seed(0)
        try:
            found = [*backend.installed_file_cases(), *backend.installed_node_cases()]
        finally:
            np.random.set_state(state)
            random.setstate(python_state)
    for case in found:
        if not case.skipped:
            folder, _, name = case.name.rpartition("/")
            cases.setdefault((name, case.key), _from_backend(case, name, folder or "node"))
    found_names: set[str] = set()
    for one in cases.values():
        # Two models may have the same name: recorded long ago, and generated for the newest operators.
        one.name = one.name if one.name not in found_names else f"{one.name} (generated)"
        found_names.add(one.name)
    return [*cases.values(), *(light_cases() if light else ())]


def _from_backend(case: backend.Case, name: str, kind: str) -> Case:
    model = ModelProto()
    model.CopyFrom(case.model)
    model.ir_version = min(model.ir_version, NEWEST_IR_VERSION)
    if _opset(model) < OLDEST_OPSET:
        raised = onnx_ir.from_proto(_plain(model))
        if not convert_opset(raised, RAISED_OPSET).refusals:
            model = onnx_ir.to_proto(raised)
    names = [v.name for v in required_inputs(model)]
    feeds = [{n: _fed(v) for n, v in zip(names, given, strict=False)} for given, _ in case.data_sets]
    return Case(name, kind, model, feeds, case.data_sets[0][1], case.rtol, case.atol)


def _fed(value: Any) -> Any:
    return np.asarray(value) if isinstance(value, np.generic | int | float | bool | str) else value


def light_cases() -> Iterator[Case]:
    """The real architectures in the onnx package, their weights made by ConstantOfShape; inputs as its runner's."""
    root = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    for path in sorted(root.glob("*.onnx")):
        model = onnx.load(path)
        feed = {}
        for value in required_inputs(model):
            dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
            n_elements = int(np.prod(dims))
            feed[value.name] = (np.arange(n_elements).reshape(dims) / n_elements).astype(np.float32)
        expected = onnx.numpy_helper.to_array(onnx.load_tensor(str(path.with_name(f"{path.stem}_output_0.pb"))))
        yield Case(path.stem, "light", model, [feed], [expected])


def required_inputs(model: ModelProto) -> list[ValueInfoProto]:
    """Graph inputs that a caller must give."""
    names = {t.name for t in model.graph.initializer} | {t.values.name for t in model.graph.sparse_initializer}
    return [v for v in model.graph.input if v.name not in names]


def adversarial_feeds(feed: Feed) -> list[tuple[str, Feed]]:
    """The same inputs, the first of type float with signed zeros, then with NaN and infinities."""
    name = next((n for n, v in feed.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f" and v.size), None)
    if name is None:
        return []
    zeros, special = feed[name].copy(order="C"), feed[name].copy(order="C")
    zeros.reshape(-1)[::2] = 0.0
    zeros.reshape(-1)[::4] = -0.0
    for index, number in enumerate((np.nan, np.inf, -np.inf, -0.0)):
        special.reshape(-1)[index * special.size // 4] = number
    return [("signed zeros", {**feed, name: zeros}), ("not finite", {**feed, name: special})]


# -- forms -----------------------------------------------------------------------------------------------------------


def as_is(case: Case) -> Form:
    return Form("as is", "", case.model, case.feeds)


def with_initializers(case: Case) -> Form:
    """Every input of the first data set becomes an initializer; sequences and optionals are made from some."""
    model = _plain(case.model)
    inputs = {v.name: v for v in model.graph.input if v.name in case.feeds[0]} if case.feeds else {}
    if not inputs:
        raise NotApplicable("the model has no inputs")
    kept = [v for v in model.graph.input if v.name not in inputs]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    made: list[NodeProto] = []
    for name, value in inputs.items():
        made += _bake(model.graph, value, case.feeds[0][name])
    _prepend(model.graph, made)
    return Form("initializers", "", model, [{}])


def doubled(case: Case) -> Form:
    """Two copies that share every input but the first as a weight; half of the tests give the second its own data."""
    model = _plain(case.model)
    _produce_outputs(model.graph)
    graph = model.graph
    inputs = list(graph.input)
    own_data = bool(case.variant(2, "own data")) and bool(inputs)
    baked = {v.name: case.feeds[0][v.name] for v in inputs[1:] if v.name in case.feeds[0]} if case.feeds else {}
    shared = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    shared |= {v.name for v in inputs[1:]} | ({v.name for v in inputs[:1]} if not own_data else set())
    # What Constant nodes hold is shared as well: the second copy reads the first's.
    results = {v.name for v in graph.output}
    constants = [n for n in graph.node if n.op_type == "Constant" and n.domain == "" and n.output[0] not in results]
    shared |= {o for n in constants for o in n.output}
    copy = _renamed(graph, "form_second_", shared)
    copied = [n for n in copy.node if not (n.op_type == "Constant" and n.output[0] in shared)]
    result = GraphProto(name="doubled")
    result.initializer.extend(graph.initializer)
    result.sparse_initializer.extend(graph.sparse_initializer)
    result.node.extend(graph.node)
    result.node.extend(copied)
    result.input.extend(v for v in inputs if v.name not in baked)
    result.input.extend(v for v in copy.input if v.name not in shared)
    result.value_info.extend(graph.value_info)
    result.value_info.extend(v for v in copy.value_info if v.name.startswith("form_second_"))
    _prepend(result, [n for v in inputs if v.name in baked for n in _bake(result, v, baked[v.name])])
    wrapped = _behind_unsqueeze(result, [*graph.output, *copy.output], _opset(model))
    model.graph.CopyFrom(result)
    _import_default(model)
    feeds = [_doubled_feed(f, baked, inputs, own_data) for f in case.feeds] or [{}]
    return Form("doubled", "own data" if own_data else "shared data", model, feeds, _halves(wrapped))


def _doubled_feed(feed: Feed, baked: Feed, inputs: Sequence[ValueInfoProto], own_data: bool) -> Feed:
    given = {n: v for n, v in feed.items() if n not in baked}
    if own_data and inputs[0].name in feed:
        given[f"form_second_{inputs[0].name}"] = feed[inputs[0].name]
    return given


def _halves(wrapped: list[bool]) -> Callable[[dict[str, Any]], list[list[Any]]]:
    def unwrap(outputs: dict[str, Any]) -> list[list[Any]]:
        values = [v[0] if inner else v for v, inner in zip(outputs.values(), wrapped, strict=True)]
        values = [np.asarray(v, dtype=object) if isinstance(v, str) else v for v in values]
        half = len(values) // 2
        return [values[:half], values[half:]]

    return unwrap


def _behind_unsqueeze(graph: GraphProto, outputs: Sequence[ValueInfoProto], opset: int) -> list[bool]:
    """Both copies' outputs pass through Unsqueeze with one shared constant: two equal nodes of which each is a graph
    output could not be merged. Returns which outputs do; sequences, optionals and rare element types stay."""
    wrapped = []
    for value in outputs:
        wrapped.append(_is_wide(value))
        info = graph.output.add()
        info.CopyFrom(value)
        if not wrapped[-1]:
            continue
        info.name = f"{value.name}_form_unsqueezed"
        if info.type.tensor_type.HasField("shape"):
            dims = list(value.type.tensor_type.shape.dim)
            del info.type.tensor_type.shape.dim[:]
            info.type.tensor_type.shape.dim.add(dim_value=1)
            info.type.tensor_type.shape.dim.extend(dims)
        if opset >= 13:
            graph.node.append(helper.make_node("Unsqueeze", [value.name, "form_axes"], [info.name]))
        else:
            graph.node.append(helper.make_node("Unsqueeze", [value.name], [info.name], axes=[0]))
    if opset >= 13 and any(wrapped):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([0], np.int64), "form_axes"))
    return wrapped


def in_function(case: Case) -> Form:
    """The graph as a function; for half of the tests numbers among the attributes become parameters of it."""
    model = _plain(case.model)
    graph = model.graph
    _produce_outputs(graph)
    _import_default(model)
    body = [*_constants(graph), *graph.node]
    function = onnx.FunctionProto(domain=FUNCTION_DOMAIN, name="Body")
    function.input.extend(v.name for v in graph.input)
    function.output.extend(v.name for v in graph.output)
    function.node.extend(body)
    function.value_info.extend(graph.value_info)
    function.opset_import.extend(model.opset_import)
    call = helper.make_node("Body", function.input, function.output, domain=FUNCTION_DOMAIN)
    parametric = bool(case.variant(2, "parameters")) and _parametrize(function, call)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid(FUNCTION_DOMAIN, 1))
    for field_name in ("node", "initializer", "sparse_initializer", "value_info"):
        graph.ClearField(field_name)
    graph.node.append(call)
    # Functions exist in the file format from version 8, their value_info from version 10.
    model.ir_version = max(model.ir_version, 10)
    return Form("function", "parameters" if parametric else "plain", model, case.feeds or [{}])


def _parametrize(function: onnx.FunctionProto, call: NodeProto) -> bool:
    kinds = (AttributeProto.INT, AttributeProto.FLOAT, AttributeProto.INTS, AttributeProto.FLOATS)
    for number, node in enumerate(function.node):
        for attribute in node.attribute if node.op_type != "Constant" else ():
            if attribute.type not in kinds:
                continue
            name = f"parameter_{number}_{attribute.name}"
            given = call.attribute.add()
            given.CopyFrom(attribute)
            given.name = name
            reference = AttributeProto(name=attribute.name, type=attribute.type, ref_attr_name=name)
            attribute.CopyFrom(reference)
            function.attribute.append(name)
    return bool(function.attribute)


def in_control_flow(case: Case) -> Form:
    """The graph in an If (fed condition: both branches run; or a constant one) or in a Loop of one and two rounds."""
    model = _plain(case.model)
    _produce_outputs(model.graph)
    _import_default(model)
    # Only tensors can be stacked over rounds, and Loop needs a carried value before opset 11.
    can_loop = all(map(_is_wide, model.graph.output)) and _opset(model) >= 11
    variant = ("if", "constant if", "loop", "constant loop")[case.variant(4 if can_loop else 2, "control flow")]
    build = _in_loop if "loop" in variant else _in_if
    inner = bool(case.variant(2, "inner initializers"))
    return build(case, model, constant="constant" in variant, inner_initializers=inner)


def _in_if(case: Case, model: ModelProto, *, constant: bool, inner_initializers: bool) -> Form:
    graph = model.graph
    branches = [_body(graph, prefix, inner_initializers) for prefix in ("form_then_", "form_else_")]
    outputs = [v.name for v in graph.output]
    node = helper.make_node("If", ["form_condition"], outputs, then_branch=branches[0], else_branch=branches[1])
    _surround(graph, node, inner_initializers)
    if constant:
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "form_condition"))
        feeds = case.feeds or [{}]
    else:
        graph.input.append(helper.make_tensor_value_info("form_condition", onnx.TensorProto.BOOL, []))
        feeds = [{**f, "form_condition": np.array(c)} for f in case.feeds or [{}] for c in (True, False)]
    return Form("control flow", "constant if" if constant else "if", model, feeds)


def _in_loop(case: Case, model: ModelProto, *, constant: bool, inner_initializers: bool) -> Form:
    graph = model.graph
    body = _body(graph, "form_body_", inner_initializers)
    body.input.append(helper.make_tensor_value_info("form_round", onnx.TensorProto.INT64, []))
    body.input.append(helper.make_tensor_value_info("form_go_on", onnx.TensorProto.BOOL, []))
    body.node.append(helper.make_node("Identity", ["form_go_on"], ["form_goes_on"]))
    results = list(body.output)
    del body.output[:]
    body.output.append(helper.make_tensor_value_info("form_goes_on", onnx.TensorProto.BOOL, []))
    body.output.extend(results)
    node = helper.make_node("Loop", ["form_rounds", "form_always"], [v.name for v in graph.output], body=body)
    _surround(graph, node, inner_initializers)
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "form_always"))
    for value in graph.output:
        if value.type.tensor_type.HasField("shape"):
            dims = list(value.type.tensor_type.shape.dim)
            del value.type.tensor_type.shape.dim[:]
            value.type.tensor_type.shape.dim.add()
            value.type.tensor_type.shape.dim.extend(dims)
    if constant:
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(1, np.int64), "form_rounds"))
        feeds = case.feeds or [{}]
    else:
        graph.input.append(helper.make_tensor_value_info("form_rounds", onnx.TensorProto.INT64, []))
        feeds = [{**f, "form_rounds": np.array(n, np.int64)} for f in case.feeds or [{}] for n in (1, 2)]
    return Form("control flow", "constant loop" if constant else "loop", model, feeds, _rounds)


def _rounds(outputs: dict[str, Any]) -> list[list[Any]]:
    n_rounds = {len(v) for v in outputs.values()}
    return [[np.asarray(v[i], dtype=v.dtype) for v in outputs.values()] for i in range(min(n_rounds))]


FORMS: dict[str, Callable[[Case], Form]] = {
    "as is": as_is,
    "initializers": with_initializers,
    "doubled": doubled,
    "function": in_function,
    "control flow": in_control_flow,
}


# -- graph surgery ---------------------------------------------------------------------------------------------------


def _plain(model: ModelProto) -> ModelProto:
    """A copy whose initializers are no inputs, in a file format that allows this."""
    copy = ModelProto()
    copy.CopyFrom(model)
    inputs = required_inputs(copy)
    del copy.graph.input[:]
    copy.graph.input.extend(inputs)
    copy.ir_version = max(copy.ir_version, 8)
    return copy


def _opset(model: ModelProto) -> int:
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 21)


def _is_wide(value: ValueInfoProto) -> bool:
    return value.type.WhichOneof("value") == "tensor_type" and value.type.tensor_type.elem_type in WIDE_TYPES


def _import_default(model: ModelProto) -> None:
    if not any(o.domain in ("", "ai.onnx") for o in model.opset_import):
        model.opset_import.append(helper.make_opsetid("", 21))


def _prepend(graph: GraphProto, nodes: Sequence[NodeProto]) -> None:
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def _bake(graph: GraphProto, value: ValueInfoProto, given: Any) -> list[NodeProto]:
    """Initializers that hold `given`, and nodes that make sequences or optionals of them."""
    return _bake_as(graph, value.name, value.type, given)


def _bake_as(graph: GraphProto, name: str, kind: TypeProto, given: Any) -> list[NodeProto]:
    which = kind.WhichOneof("value")
    if which == "tensor_type" and given is not None:
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(given), name))
        return []
    if which == "sequence_type":
        if not len(given):
            dtype = kind.sequence_type.elem_type.tensor_type.elem_type
            return [helper.make_node("SequenceEmpty", [], [name], dtype=dtype)]
        parts = [f"{name}_{i}" for i in range(len(given))]
        nodes = [
            n
            for part, element in zip(parts, given, strict=True)
            for n in _bake_as(graph, part, kind.sequence_type.elem_type, element)
        ]
        return [*nodes, helper.make_node("SequenceConstruct", parts, [name])]
    if which == "optional_type":
        inner = kind.optional_type.elem_type
        if given is None:
            return [helper.make_node("Optional", [], [name], type=inner)]
        return [*_bake_as(graph, f"{name}_some", inner, given), helper.make_node("Optional", [f"{name}_some"], [name])]
    raise NotApplicable(f"input {name!r} is a {which}")


def _produce_outputs(graph: GraphProto) -> None:
    """Outputs that are inputs, initializers or listed twice pass through Identity: bodies need names of their own."""
    produced = {o for n in graph.node for o in n.output}
    for value in graph.output:
        if value.name in produced:
            produced.discard(value.name)
        else:
            graph.node.append(helper.make_node("Identity", [value.name], [f"{value.name}_form_copied"]))
            value.name = f"{value.name}_form_copied"


def _constants(graph: GraphProto) -> list[NodeProto]:
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in graph.initializer]
    for tensor in graph.sparse_initializer:
        nodes.append(helper.make_node("Constant", [], [tensor.values.name], sparse_value=tensor))
    return nodes


def _body(graph: GraphProto, prefix: str, inner_initializers: bool) -> GraphProto:
    """The graph as a body: reads the outer inputs (and initializers, unless it has its own)."""
    keep = {v.name for v in graph.input}
    if not inner_initializers:
        keep |= {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    body = _renamed(graph, prefix, keep)
    body.ClearField("input")
    body.name = f"{prefix}graph"
    if not inner_initializers:
        body.ClearField("initializer")
        body.ClearField("sparse_initializer")
    return body


def _surround(graph: GraphProto, node: NodeProto, inner_initializers: bool) -> None:
    for field_name in ("node", "value_info", *(("initializer", "sparse_initializer") if inner_initializers else ())):
        graph.ClearField(field_name)
    graph.node.append(node)


def _renamed(graph: GraphProto, prefix: str, keep: set[str]) -> GraphProto:
    """A copy in which every name that the graph or a graph inside it defines has a prefix, except those to keep."""
    names = {n: f"{prefix}{n}" for n in _defined(graph) if n not in keep}
    copy = GraphProto()
    copy.CopyFrom(graph)
    _rename(copy, names, prefix)
    return copy


def nodes_of(model: ModelProto) -> Iterator[NodeProto]:
    """Every node, in bodies and functions too."""
    pending = [*model.graph.node, *(n for f in model.functions for n in f.node)]
    while pending:
        node = pending.pop()
        yield node
        pending += [n for inner in _graphs(node) for n in inner.node]


def is_random(node: NodeProto) -> bool:
    """Whether what the node gives depends on how many others drew before it."""
    training = node.op_type == "Dropout" and len(node.input) > 2
    return training or node.op_type.startswith("Random") or node.op_type in ("Multinomial", "Bernoulli")


def _defined(graph: GraphProto) -> Iterator[str]:
    yield from (v.name for v in graph.input)
    yield from (t.name for t in graph.initializer)
    yield from (t.values.name for t in graph.sparse_initializer)
    for node in graph.node:
        yield from (o for o in node.output if o)
        for inner in _graphs(node):
            yield from _defined(inner)


def _graphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def _rename(graph: GraphProto, names: dict[str, str], prefix: str) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for tensor in graph.sparse_initializer:
        tensor.values.name = names.get(tensor.values.name, tensor.values.name)
    for node in graph.node:
        node.name = f"{prefix}{node.name}" if node.name else ""
        node.input[:] = [names.get(i, i) for i in node.input]
        node.output[:] = [names.get(o, o) for o in node.output]
        for inner in _graphs(node):
            _rename(inner, names, prefix)
