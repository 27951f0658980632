"""Capture of PyTorch modules: `torch.export`, then the ONNX exporter, into `onnx_ir`, never through protobuf.

The module given is never changed: capture works on a copy that shares its parameters, in eval mode. The
initializers of the graph share the parameters' memory too, so further training changes the captured weights.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import onnx_ir as ir
from opgraft.ir.capture_torch_dims import (
    DeclaredDim,
    bind_call,
    complete_dynamic_shapes,
    declared_dims,
    name_symbolic_dims,
    separate_aliases,
)
from opgraft.ir.capture_torch_export import export_program, translate_program, unit_size_warnings
from opgraft.ir.capture_torch_names import (
    flatten_call,
    program_interface,
    rename_interface,
    result_names,
    separate_outputs,
)
from opgraft.ir.capture_torch_reference import (
    CallLayout,
    Reference,
    copy_module,
    make_reference,
    require_torch,
    to_numpy,
)
from opgraft.ir.capture_torch_repair import repair_masked_rows, repair_missing_bias, repair_narrowed_numbers
from opgraft.ir.errors import InputError, UsageError
from opgraft.ir.normalize_export import SCOPE_KEY, model_graphs, normalize_export, strip_debug_info

if TYPE_CHECKING:
    import torch

_RANDOM_OPERATORS = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
)


@dataclass(frozen=True)
class TorchCapture:
    """A torch module as a graph, with the module itself as its reference."""

    model: ir.Model
    reference: Reference
    """The torch module in its own precision: graph input name -> array, to graph output name -> array."""
    reference_float64: Reference
    """The same with every float tensor, constant and cast in float64 (on a copy, made at the first call)."""
    example_inputs: dict[str, np.ndarray]
    """Keyed by graph input name; doubled along dynamic dims where the example given had size 1."""
    warnings: tuple[str, ...]


def capture_torch(
    module: torch.nn.Module | torch.export.ExportedProgram,
    example_args: Any = (),
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    opset: int | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    keep_debug_info: bool = False,
) -> TorchCapture:
    """Capture a Module, an `fx.GraphModule` or an ExportedProgram (as it is, with its dynamic shapes).

    `example_args` is a tuple of positional arguments, one tensor, or a mapping of argument names (which are
    passed by keyword). `dynamic_shapes` is what `torch.export` takes, plain strings allowed for dims,
    and may leave out arguments: `{"input_ids": {0: "batch", 1: "seq"}}`; equal strings are one dim. For an
    ExportedProgram it is only checked and used for names. `opset` None is the exporter's default (20 in torch
    2.13); the lowest it writes is 18.

    Raises:
        InputError: torch cannot export the module; the message carries its reason and a remedy.
        UsageError: names, shapes or examples that do not fit the module, an opset PyTorch cannot write.
        MissingExtraError: torch or onnxscript is not installed.
    """
    require_torch()
    source = _open_source(module, example_args, dict(example_kwargs or {}), dynamic_shapes)
    translation = translate_program(source.program, opset)
    model, notes = translation.model, translation.warnings
    repair_masked_rows(model)
    repair_narrowed_numbers(model)
    repair_missing_bias(model)
    normalize_export(model)
    separate_outputs(model.graph)
    input_leaves, result_paths = program_interface(source.program)
    leaf_values = dict(zip(input_leaves, model.graph.inputs, strict=True))
    notes.extend(name_symbolic_dims(model, source.declared, leaf_values))
    if input_names is None:
        input_names = [value.name or "" for value in model.graph.inputs]
    if output_names is None:
        output_names = result_names(result_paths.values(), taken=input_names)
    rename_interface(model, input_names, output_names)
    layout = CallLayout(
        leaves=source.leaves,
        spec=source.program.call_spec.in_spec,
        input_leaves=dict(zip(input_names, input_leaves, strict=True)),
        output_leaves=dict(zip(output_names, result_paths, strict=True)),
    )
    if not keep_debug_info:
        strip_debug_info(model)
    is_stateful = translation.changes_buffers
    return TorchCapture(
        model=model,
        reference=make_reference(source.module, layout, restore_buffers=is_stateful),
        reference_float64=make_reference(source.module, layout, double=True, restore_buffers=is_stateful),
        example_inputs={name: to_numpy(source.leaves[leaf]).copy() for name, leaf in layout.input_leaves.items()},
        warnings=(*source.warnings, *notes, *_graph_warnings(model)),
    )


def load_torch_file(path: str | os.PathLike[str]) -> NoReturn:
    """Refuse a torch file without opening it: PyTorch has no way to load one that cannot run code.

    `torch.load` unpickles `.pt`, `.pth` and `.bin`. `torch.export.load` (2.13) unpickles the example inputs
    of a `.pt2` archive with `weights_only=True`, but on any failure again without that guard; tensors,
    constants and custom objects marked as pickled come without it from the start; symbolic dims go through
    `sympify`, which evaluates Python; and compiled libraries inside are loaded.

    Raises:
        InputError: always, with what to do instead.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".pt2":
        how = "module = torch.export.load(path)"
    elif suffix == ".safetensors":
        raise InputError("weights without a graph", where=str(path), remedy="build the module and pass it")
    else:
        how = "build the module, module.load_state_dict(torch.load(path, weights_only=True))"
    raise InputError(
        "loading a torch file unpickles it, which can run any code in it; opgraft does not",
        where=str(path),
        remedy=f"if you trust the file, load it in Python yourself ({how}) and pass the module",
    )


@dataclass(frozen=True)
class _Source:
    """What is exported: the program, the module that is its reference, and the examples both take."""

    program: torch.export.ExportedProgram
    module: torch.nn.Module
    leaves: Sequence[Any]
    declared: Sequence[DeclaredDim]
    warnings: Sequence[str]


def _open_source(module: Any, args: Any, kwargs: dict[str, Any], dynamic_shapes: Any) -> _Source:
    import torch

    if isinstance(module, torch.export.ExportedProgram):
        return _open_program(module, args, kwargs, dynamic_shapes)
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError("TorchScript modules cannot be exported", remedy="pass the module it was made from")
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"expected a torch Module, GraphModule or ExportedProgram, not {type(module).__name__}")
    return _open_module(module, args, kwargs, dynamic_shapes)


def _open_program(
    program: torch.export.ExportedProgram, args: Any, kwargs: dict[str, Any], dynamic_shapes: Any
) -> _Source:
    # Guards would refuse sizes that the graph computes correctly, 1 above all.
    module = copy_module(program.module(check_guards=False))
    args = _as_arguments(module, args, kwargs)
    if not args and not kwargs:
        if program.example_inputs is None:
            raise UsageError("the ExportedProgram holds no example inputs", remedy="give example_args")
        args, kwargs = program.example_inputs
    bind_call(module, args, kwargs)
    leaves = flatten_call(program, args, kwargs)
    declared: list[DeclaredDim] = []
    if dynamic_shapes is not None:
        shapes = complete_dynamic_shapes(module, args, kwargs, dynamic_shapes)
        declared = declared_dims(module, args, kwargs, shapes)
    return _Source(program, module, leaves, declared, ())


def _open_module(module: torch.nn.Module, args: Any, kwargs: dict[str, Any], dynamic_shapes: Any) -> _Source:
    args = _as_arguments(module, args, kwargs)
    args, kwargs = separate_aliases(args, kwargs)
    bind_call(module, args, kwargs)
    warnings = []
    if any(part.training for part in module.modules()):
        warnings.append("the module was in training mode; captured in eval mode (yours is left as it was)")
    copied = copy_module(module)
    try:
        copied.eval()
    except NotImplementedError:  # the GraphModule of an ExportedProgram has no modes
        for part in copied.modules():
            part.training = False
    shapes = None
    declared: list[DeclaredDim] = []
    if dynamic_shapes is not None:
        shapes = complete_dynamic_shapes(copied, args, kwargs, dynamic_shapes)
        declared = declared_dims(copied, args, kwargs, shapes)
    program, notes = export_program(copied, args, kwargs, shapes, declared)
    leaves = flatten_call(program, *program.example_inputs)
    given = flatten_call(program, args, kwargs)
    if any(new is not old for new, old in zip(leaves, given, strict=True)):
        notes.extend(unit_size_warnings(copied, program, args, kwargs))
    return _Source(program, copied, leaves, declared, (*warnings, *notes))


def _as_arguments(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Positional arguments from a tuple, list or one value; a mapping of argument names goes to `kwargs`."""
    if isinstance(args, (tuple, list)):
        return tuple(args)
    if isinstance(args, Mapping):
        parameters = inspect.signature(module.forward).parameters.values()
        is_open = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
        if is_open or set(args) <= {parameter.name for parameter in parameters}:
            kwargs.update(args)
            return ()
    return (args,)


def _graph_warnings(model: ir.Model) -> list[str]:
    found = [
        f"input {value.name!r} is not used by the graph"
        for value in model.graph.inputs
        if not value.uses() and not value.is_graph_output()
    ]
    random_nodes = [node for graph in model_graphs(model) for node in graph if _is_random(node)]
    if random_nodes:
        scope = random_nodes[0].metadata_props.get(SCOPE_KEY) or "the module itself"
        names = ", ".join(sorted({node.op_type for node in random_nodes}))
        found.append(f"the graph draws random numbers ({names} in {scope}): it cannot be compared with the module")
    return found


def _is_random(node: ir.Node) -> bool:
    if node.op_type in _RANDOM_OPERATORS:
        return True
    if node.op_type != "Dropout" or len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    training = ir.convenience.get_const_tensor(node.inputs[2])
    return training is None or bool(training.numpy())
