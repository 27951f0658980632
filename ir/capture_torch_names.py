"""Inputs and outputs of a captured graph: their places in the module's arguments and results, their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from opgraft.ir.errors import UsageError
from opgraft.ir.normalize_export import graph_values, model_graphs

if TYPE_CHECKING:
    import torch


def flatten_call(program: torch.export.ExportedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The leaves of a call in the order of the program's inputs; keyword arguments may come in any order."""
    from torch.utils import _pytree

    keyword_spec = program.call_spec.in_spec.children()[1]
    order = [name for name in keyword_spec.context if name in kwargs]
    flattened = _pytree.tree_flatten((tuple(args), {name: kwargs[name] for name in order}))
    leaves: list[Any] = flattened[0]
    spec = flattened[1]
    n_positional = program.call_spec.in_spec.children()[0].num_children
    if len(order) != len(kwargs) or spec != program.call_spec.in_spec:
        raise UsageError(
            "the examples have another structure than those the program was exported with",
            remedy=f"it takes {n_positional} positional arguments, keywords {list(keyword_spec.context)}",
        )
    return leaves


def program_interface(program: torch.export.ExportedProgram) -> tuple[list[int], dict[int, tuple[Any, ...]]]:
    """Which leaves of the arguments are graph inputs, and which of the result are outputs, with their paths.

    The rest are Python constants of the trace, and None.
    """
    from torch.export import graph_signature

    signature = program.graph_signature
    constant = graph_signature.ConstantArgument
    inputs = [spec for spec in signature.input_specs if spec.kind == graph_signature.InputKind.USER_INPUT]
    outputs = [spec for spec in signature.output_specs if spec.kind == graph_signature.OutputKind.USER_OUTPUT]
    paths = list(_leaf_paths(program.call_spec.out_spec))
    input_leaves = [index for index, spec in enumerate(inputs) if not isinstance(spec.arg, constant)]
    results = {i: paths[i] for i, spec in enumerate(outputs) if not isinstance(spec.arg, constant)}
    return input_leaves, results


def _leaf_paths(spec: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Path of every leaf of a pytree spec; keys where the node's context lists them, positions elsewhere."""
    if spec.is_leaf():
        yield prefix
        return
    keys: Any = spec.context
    if hasattr(keys, "_fields"):  # a namedtuple's context is its class
        keys = keys._fields
    elif isinstance(keys, list) and keys and isinstance(keys[0], list):  # dataclass: [fields, None fields]
        keys = keys[0]
    children = spec.children()
    named = isinstance(keys, (list, tuple)) and len(keys) == len(children) and all(isinstance(k, str) for k in keys)
    for index, child in enumerate(children):
        yield from _leaf_paths(child, (*prefix, keys[index] if named else index))


def result_names(paths: Iterable[Sequence[Any]], taken: Iterable[str]) -> list[str]:
    """One name per result from its path in the module's return value: its key or field, else its position.

    A lone tensor is "output", a tuple "output_0", "output_1"; {"a": (x, y)} gives "a_0", "a_1". A name that
    is `taken` gets a number.
    """
    used = set(taken)
    names = []
    for path in paths:
        keys = [str(key) for key in path]
        if not keys or keys[0].isdigit():
            keys.insert(0, "output")
        names.append(re.sub(r"[^\w.]", "_", "_".join(keys)))
    return [_fresh(name, used) for name in names]


def separate_outputs(graph: ir.Graph) -> None:
    """Put an Identity behind every output that is an input, an initializer or another output as well.

    Each output can then be named without renaming something else.
    """
    seen: set[int] = set()
    for index, value in enumerate(list(graph.outputs)):
        if value.producer() is not None and id(value) not in seen:
            seen.add(id(value))
            continue
        copy = ir.Value(shape=value.shape, type=value.type)
        graph.append(ir.Node("", "Identity", [value], outputs=[copy], name=f"node_output_{index}"))
        graph.outputs[index] = copy


def rename_interface(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Rename graph inputs and outputs; whatever else bears such a name gives way."""
    wanted: list[tuple[ir.Value, str]] = []
    graph = model.graph
    for kind, values, given in (("input", graph.inputs, inputs), ("output", graph.outputs, outputs)):
        if len(given) != len(values):
            raise UsageError(
                f"{kind}_names has {len(given)} names for {len(values)} {kind}s",
                remedy=f"the {kind}s are: {', '.join(value.name or '?' for value in values)}",
            )
        wanted.extend(zip(values, given, strict=True))
    final = {id(value): name for value, name in wanted}
    names = set(final.values())
    if len(names) != len(final):
        raise UsageError("input and output names must differ", remedy=f"given: {', '.join(final.values())}")
    others = [value for graph in model_graphs(model) for value in graph_values(graph) if id(value) not in final]
    taken = names | {value.name or "" for value in [*others, *model.graph.inputs, *model.graph.outputs]}
    for value in others:
        if value.name in names:
            value.name = _fresh(value.name, taken)
    # In two steps, since names may be exchanged between values.
    for index, (value, _) in enumerate(wanted):
        value.name = _fresh(f"opgraft_renamed_{index}", taken)
    for value, name in wanted:
        value.name = name


def _fresh(name: str, taken: set[str]) -> str:
    """`name`, with a number behind it where it is taken; the result counts as taken."""
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate
