"""Models near those of the goldens: the same graphs with attributes, constants, operands and interfaces changed.

A pass that reads its conditions too loosely rewrites some of them wrongly. Most mutants mean something else than the
original and many nothing at all: those that the runtime rejects are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.shape_inference
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, helper

Random = np.random.Generator
OPSETS = (11, 13, 14, 16, 18, 19, 20, 21, 22, 23)
MAX_MUTATED_ELEMENTS = 64


def mutate(model: ModelProto, rng: Random) -> tuple[ModelProto, dict[str, Any], str]:
    """A mutant of one to three mutations, inputs that it has beyond the original's, and their names."""
    mutant = ModelProto()
    mutant.CopyFrom(model)
    given: dict[str, Any] = {}
    names = []
    # In the order of the list: shape inference, which the first one needs, is native code and takes no nonsense.
    for number in sorted(rng.integers(len(MUTATIONS), size=int(rng.integers(1, 4)))):
        more = MUTATIONS[number](mutant, rng)
        if more is not None:
            given |= more
            names.append(MUTATIONS[number].__name__.strip("_").replace("_", " "))
    _forget_declared(mutant)
    return mutant, given, ", ".join(names)


def _forget_declared(model: ModelProto) -> None:
    """What the original declares of inner values and outputs may be a lie about the mutant."""
    del model.graph.value_info[:]
    for function in model.functions:
        del function.value_info[:]
    for value in model.graph.output:
        if value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.ClearField("shape")


def declare_shapes(model: ModelProto) -> ModelProto:
    """The shapes that inference finds, for a mutant that the runtime takes."""
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except Exception:  # noqa: BLE001 - shapes stay unknown
        return model


def _pick(items: Sequence[Any], rng: Random) -> Any:
    return items[int(rng.integers(len(items)))] if len(items) else None


def _expose_results(model: ModelProto, rng: Random) -> dict[str, Any] | None:
    """Inner results become outputs: they must not vanish, and nodes have another user."""
    graph = model.graph
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # noqa: BLE001 - no types, no outputs
        return None
    taken = {v.name for v in graph.output}
    inner = [v for v in inferred.value_info if v.name in {o for n in graph.node for o in n.output} - taken]
    if not inner:
        return None
    chosen = inner if rng.random() < 0.3 else [_pick(inner, rng)]
    front = bool(rng.random() < 0.5)
    outputs = [*chosen, *graph.output] if front else [*graph.output, *chosen]
    copies = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in outputs]
    del graph.output[:]
    graph.output.extend(copies)
    return {}


def _initializer_as_default(model: ModelProto, rng: Random) -> dict[str, Any] | None:
    """An initializer that callers may override, and do: no constant."""
    tensor = _pick(_numeric(model.graph), rng)
    if tensor is None or any(v.name == tensor.name for v in model.graph.input):
        return None
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    array = onnx.numpy_helper.to_array(tensor)
    if array.dtype.kind == "f" and rng.random() < 0.7:
        return {tensor.name: (array * 2 + 1).astype(array.dtype)}
    return {} if rng.random() < 0.5 else {tensor.name: array}


def _initializer_as_input(model: ModelProto, rng: Random) -> dict[str, Any] | None:
    tensor = _pick(_numeric(model.graph), rng)
    if tensor is None or any(v.name == tensor.name for v in model.graph.input):
        return None
    array = onnx.numpy_helper.to_array(tensor)
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model.graph.initializer.remove(tensor)
    return {tensor.name: array}


def _numeric(graph: GraphProto) -> list[onnx.TensorProto]:
    return [t for t in graph.initializer if t.data_type != onnx.TensorProto.STRING]


def _change_attribute(model: ModelProto, rng: Random) -> dict[str, Any] | None:
    kinds = (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT)
    places = [(n, a) for n in _nodes(model) for a in n.attribute if a.type in kinds and not a.ref_attr_name]
    place = _pick(places, rng)
    if place is None:
        return None
    node, attribute = place
    if rng.random() < 0.15:
        node.attribute.remove(attribute)
    elif attribute.type == AttributeProto.INT:
        attribute.i = _another_int(attribute.i, rng)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = float(_pick((0.0, -0.0, 1.0, -1.0, attribute.f * 2, float("inf"), 1e-20), rng))
    else:
        attribute.ints[:] = _other_ints(list(attribute.ints), rng)
    return {}


def _another_int(number: int, rng: Random) -> int:
    return int(_pick((number + 1, number - 1, -number, 0, 1, -1, 2), rng))


def _other_ints(numbers: list[int], rng: Random) -> list[int]:
    if numbers and rng.random() < 0.6:
        place = int(rng.integers(len(numbers)))
        numbers[place] = _another_int(numbers[place], rng)
    elif rng.random() < 0.7:
        rng.shuffle(numbers)
    else:
        numbers = numbers[:-1] if rng.random() < 0.5 else [*numbers, 1]
    return numbers


def _change_constant(model: ModelProto, rng: Random) -> dict[str, Any] | None:
    holders = [t for t in _numeric(model.graph) if _n_elements(t) <= MAX_MUTATED_ELEMENTS]
    for node in _nodes(model):
        holders += [a.t for a in node.attribute if a.type == AttributeProto.TENSOR and not a.ref_attr_name]
    tensor = _pick(holders, rng)
    if tensor is None or tensor.data_type == onnx.TensorProto.STRING:
        return None
    array = np.array(onnx.numpy_helper.to_array(tensor))
    if rng.random() < 0.25:
        array = _other_rank(array, rng)
    elif array.size:
        flat = array.reshape(-1)
        place = int(rng.integers(flat.size))
        flat[place] = _another_number(flat[place], array.dtype, rng)
        if array.dtype.kind == "f" and rng.random() < 0.4:
            flat[:] = flat[place]
    changed = onnx.numpy_helper.from_array(array, tensor.name)
    tensor.CopyFrom(changed)
    return {}


def _n_elements(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims))


def _other_rank(array: np.ndarray, rng: Random) -> np.ndarray:
    if array.size == 1 and rng.random() < 0.5:
        return array.reshape(_pick(((), (1,), (1, 1), (1, 1, 1, 1, 1)), rng))
    return array[None] if rng.random() < 0.7 else array[..., None]


def _another_number(number: Any, dtype: np.dtype[Any], rng: Random) -> Any:
    if dtype.kind == "b":
        return not number
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        other = _pick((int(number) + 1, int(number) - 1, -int(number), 0, 1, -1, 2, info.max, info.min), rng)
        return min(max(other, int(info.min)), int(info.max))
    if dtype.kind == "f":
        return dtype.type(_pick((0.0, -0.0, 1.0, -1.0, 0.5, np.nan, np.inf, -np.inf, 1e30, 1e-30), rng))
    return number


def _swap_operands(model: ModelProto, rng: Random) -> dict[str, Any] | None:
    node = _pick([n for n in _nodes(model) if len(n.input) > 1], rng)
    if node is None:
        return None
    left, right = rng.choice(len(node.input), 2, replace=False)
    node.input[left], node.input[right] = node.input[right], node.input[left]
    return {}


def _rewire(model: ModelProto, rng: Random) -> dict[str, Any] | None:
    """A node reads another value: branches meet, results get several users or none."""
    graph = model.graph
    number = int(rng.integers(len(graph.node))) if len(graph.node) else -1
    if number < 0 or not graph.node[number].input:
        return None
    known = [v.name for v in graph.input] + [t.name for t in graph.initializer]
    known += [o for n in graph.node[:number] for o in n.output if o]
    graph.node[number].input[int(rng.integers(len(graph.node[number].input)))] = _pick(known, rng)
    return {}


def _repeat_node(model: ModelProto, rng: Random) -> dict[str, Any] | None:
    """f(x) twice, one result for a later user or an output of its own."""
    graph = model.graph
    numbers = [i for i, n in enumerate(graph.node) if len(n.output) == 1]
    number = _pick(numbers, rng)
    if number is None:
        return None
    node = graph.node[number]
    twin = NodeProto()
    twin.CopyFrom(node)
    twin.output[0] = f"{node.output[0]}_twin"
    twin.name = f"{node.name}_twin" if node.name else ""
    users = [(n, i) for n in graph.node[number + 1 :] for i, name in enumerate(n.input) if name == node.output[0]]
    user = _pick(users, rng)
    if user is not None:
        user[0].input[user[1]] = twin.output[0]
    else:
        same = next((v for v in graph.output if v.name == node.output[0]), None)
        if same is None:
            return None
        graph.output.add().CopyFrom(same)
        graph.output[-1].name = twin.output[0]
    nodes = list(graph.node)
    nodes.insert(number + 1, twin)
    del graph.node[:]
    graph.node.extend(nodes)
    return {}


def _chain_operator(model: ModelProto, rng: Random) -> dict[str, Any] | None:
    """A node is applied to its own result once more, where its types allow that."""
    graph = model.graph
    numbers = [i for i, n in enumerate(graph.node) if len(n.output) == 1 and n.input]
    number = _pick(numbers, rng)
    if number is None:
        return None
    node = graph.node[number]
    first = NodeProto()
    first.CopyFrom(node)
    first.output[0] = f"{node.output[0]}_first"
    first.name = f"{node.name}_first" if node.name else ""
    node.input[0] = first.output[0]
    nodes = list(graph.node)
    nodes.insert(number, first)
    del graph.node[:]
    graph.node.extend(nodes)
    return {}


def _forget_shapes(model: ModelProto, rng: Random) -> dict[str, Any] | None:
    """Dims of inputs become symbolic, or the rank unknown."""
    graph = model.graph
    del graph.value_info[:]
    forget_rank = bool(rng.random() < 0.3)
    for number, value in enumerate([*graph.input, *graph.output]):
        if value.type.WhichOneof("value") != "tensor_type" or not value.type.tensor_type.HasField("shape"):
            continue
        if forget_rank:
            value.type.tensor_type.ClearField("shape")
        else:
            for index, dim in enumerate(value.type.tensor_type.shape.dim):
                dim.dim_param = f"dim_{number}_{index}"
    return {}


def _other_opset(model: ModelProto, rng: Random) -> dict[str, Any] | None:
    for imported in model.opset_import:
        if imported.domain in ("", "ai.onnx"):
            imported.version = int(_pick(OPSETS, rng))
            for function in model.functions:
                for inner in function.opset_import:
                    inner.version = imported.version if inner.domain in ("", "ai.onnx") else inner.version
            return {}
    return None


def _drop_operand(model: ModelProto, rng: Random) -> dict[str, Any] | None:
    node = _pick([n for n in _nodes(model) if len(n.input) > 1], rng)
    if node is None:
        return None
    place = int(rng.integers(1, len(node.input)))
    if place == len(node.input) - 1:
        del node.input[place]
    else:
        node.input[place] = ""
    return {}


def _nodes(model: ModelProto) -> list[NodeProto]:
    return [*model.graph.node, *(n for f in model.functions for n in f.node)]


MUTATIONS: tuple[Callable[[ModelProto, Random], dict[str, Any] | None], ...] = (
    _expose_results,
    _initializer_as_default,
    _initializer_as_input,
    _change_attribute,
    _change_attribute,
    _change_constant,
    _change_constant,
    _swap_operands,
    _rewire,
    _repeat_node,
    _chain_operator,
    _forget_shapes,
    _other_opset,
    _drop_operand,
)
