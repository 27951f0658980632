"""`torch.export` and the ONNX exporter behind one call each, their messages reduced to what helps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from opgraft.ir.capture_torch_dims import DeclaredDim, double_unit_dims, export_dims
from opgraft.ir.capture_torch_reference import copy_module, quiet_torch
from opgraft.ir.errors import InputError, UsageError

if TYPE_CHECKING:
    import torch

# What the exporter writes itself (onnxscript 0.7.2). Outside, it asks the ONNX C++ converter, and where that
# gives up it returns operators of one version labelled with another, without an error.
LOWEST_OPSET, HIGHEST_OPSET = 18, 25

_MAX_REASON_CHARS = 240
# What torch raises for a dim that was declared dynamic and cannot be, or over which it stumbles itself.
_CONSTRAINT_ERRORS = ("UserError", "ConstraintViolationError", "ValueError", "AssertionError")

# Part of the exporter's message -> what to do. The first that matches is given.
_REMEDIES = (
    (
        "data-dependent",
        "make the control flow exportable: torch.cond or torch.where instead of `if` on tensor values",
    ),
    ("spec mismatch", "pass example_args and example_kwargs as forward() takes them"),
    (
        "unsupported input type",
        "register the type with torch.utils._pytree; for a KV cache pass use_cache=False",
    ),
    ("unsupported output type", "return tensors, tuples or dicts; for a KV cache pass use_cache=False"),
    ("cache_utils.", "pass use_cache=False: a KV cache is no tensor"),
    (
        "not a known type",
        "return tensors, tuples or dicts, or register the class with torch.export.register_dataclass",
    ),
    ("Must provide a tree_name", "torch cannot declare dims of **kwargs: name these arguments in forward()"),
    ("register_dataclass", "register the dataclass with torch.export.register_dataclass"),
    ("scaled_dot_product", 'load the model with attn_implementation="eager"'),
    ("Cannot view a tensor", 'load the model with attn_implementation="eager"'),
    (
        "No ONNX function found",
        "replace the operator by others: it has no ONNX form, or not for these dtypes",
    ),
    ("No decompositions registered", "replace the operator by others: it has no ONNX form"),
    (
        "Constraints violated",
        "give an example with size 2 or more along each dynamic dim, or declare it static",
    ),
    ("positional argument", "check example_args and example_kwargs against forward()"),
    ("unexpected keyword", "check example_args and example_kwargs against forward()"),
)
_DEFAULT_REMEDY = "the module must pass torch.export.export first; torch.export.draft_export lists every obstacle"


@dataclass(frozen=True)
class Translation:
    """An ONNX graph, whether the program writes to buffers, and warnings on what the graph leaves out."""

    model: ir.Model
    changes_buffers: bool
    warnings: list[str]


def export_program(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    shapes: Mapping[str, Any] | None,
    declared: Sequence[DeclaredDim],
) -> tuple[torch.export.ExportedProgram, list[str]]:
    """`torch.export` as declared; where the module does not allow that, dims relaxed, which is a warning."""
    from torch.utils import _pytree

    if shapes is None:
        return _export_once(module, args, kwargs, None), []
    leaves, spec = _pytree.tree_flatten((args, dict(kwargs)))
    doubled = double_unit_dims(leaves, declared)
    is_doubled = any(new is not old for new, old in zip(doubled, leaves, strict=True))
    examples = [_pytree.tree_unflatten(doubled, spec)] if is_doubled else []
    examples.append((args, dict(kwargs)))
    failures: list[InputError] = []
    for example, relaxed in [(example, relaxed) for example in examples for relaxed in (False, True)]:
        try:
            program = _export_once(module, example[0], example[1], export_dims(shapes, relaxed=relaxed))
        except InputError as error:
            failures.append(error)
            if example is examples[-1] and type(error.__cause__).__name__ not in _CONSTRAINT_ERRORS:
                break
        else:
            return program, [_relaxed_warning(failures[0])] if relaxed else []
    raise failures[-1]


def _export_once(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dims: Mapping[str, Any] | None
) -> torch.export.ExportedProgram:
    import torch

    try:
        with torch.no_grad(), quiet_torch():
            return torch.export.export(module, args, dict(kwargs), dynamic_shapes=dims, strict=False)
    except Exception as error:
        raise export_error(error, "torch.export failed", type(module).__name__) from error


def translate_program(program: torch.export.ExportedProgram, opset: int | None) -> Translation:
    """The ONNX graph of an exported program, not optimized.

    The exporter's own optimizer is left off: it copies every weight to transpose it, merges equal
    initializers and loses their names, and folds constants by other kernels than the reference executor's.
    """
    import torch

    if opset is not None and not LOWEST_OPSET <= opset <= HIGHEST_OPSET:
        raise UsageError(
            f"PyTorch exports to opset {LOWEST_OPSET} to {HIGHEST_OPSET}, not {opset}",
            remedy=f"capture at opset {min(max(opset, LOWEST_OPSET), HIGHEST_OPSET)} and convert the result",
        )
    program, notes = _without_constant_outputs(program)
    try:
        with torch.no_grad(), quiet_torch():
            exported = torch.onnx.export(program, (), dynamo=True, opset_version=opset, optimize=False, verbose=False)
    except Exception as error:
        raise export_error(error, "translation to ONNX failed", "torch.onnx.export") from error
    model: ir.Model = exported.model
    written = model.opset_imports.get("")
    if opset is not None and written != opset:
        # The exporter then has mixed operators of two versions: the model would be invalid.
        raise UsageError(f"this PyTorch cannot export to opset {opset}", remedy="ask for a lower one")
    mutated = list(exported.exported_program.graph_signature.buffers_to_mutate.values())
    notes.extend(f"forward() changes buffer {name!r}: the graph computes a first call only" for name in mutated)
    return Translation(model, bool(mutated), notes)


def _without_constant_outputs(
    program: torch.export.ExportedProgram,
) -> tuple[torch.export.ExportedProgram, list[str]]:
    """Python numbers among the outputs stop the ONNX exporter; None it skips, so they become None."""
    import torch

    def output_node(candidate: torch.export.ExportedProgram) -> Any:
        return next(node for node in reversed(candidate.graph.nodes) if node.op == "output")

    constants = [a for a in output_node(program).args[0] if a is not None and not isinstance(a, torch.fx.Node)]
    if not constants:
        return program, []
    with torch.no_grad(), quiet_torch():
        program = program.run_decompositions({})  # a new program: the one given stays as it is
    node = output_node(program)
    node.args = (tuple(a if isinstance(a, torch.fx.Node) else None for a in node.args[0]),)
    shown = ", ".join(map(repr, constants))
    return program, [f"outputs that are constants of the trace are dropped: {shown}"]


def unit_size_warnings(
    module: torch.nn.Module,
    program: torch.export.ExportedProgram,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> list[str]:
    """Does the program, traced with doubled examples, still compute the examples as given, with size 1?

    torch.export promises that only for sizes from 2 up: code may branch on `x.shape[0] == 1`.
    """
    import torch
    from torch.utils import _pytree

    traced = copy_module(program.module(check_guards=False))
    try:
        with torch.no_grad():
            wanted = _pytree.tree_leaves(copy_module(module)(*args, **kwargs))
            found = _pytree.tree_leaves(traced(*args, **kwargs))
    except Exception as error:  # noqa: BLE001 - the user's code runs here: whatever it raises is the finding
        return [f"the captured graph may not run with size 1 ({type(error).__name__}: {_essence(str(error))})"]
    for want, got in zip(wanted, found, strict=True):
        if not isinstance(want, torch.Tensor) or not want.dtype.is_floating_point:
            continue
        # Same operators on the same inputs: what is left is the rounding of other kernel shapes, well below
        # 1e-3 of the largest element; another branch of the code is off by orders of magnitude more.
        scale = float(want.abs().max()) if want.numel() else 0.0
        if want.shape != got.shape or not torch.allclose(want, got, rtol=0.0, atol=1e-3 * scale, equal_nan=True):
            return ["the module computes something else where a dynamic dim has size 1; the graph holds from 2 up"]
    return []


def export_error(error: Exception, what: str, where: str) -> InputError:
    """The exporter's exception as one line: its innermost reason, and a remedy where one is known."""
    chain = [error]
    while isinstance(chain[-1].__cause__, Exception) and len(chain) < 20:
        chain.append(chain[-1].__cause__)
    texts = [str(link) for link in reversed(chain)]
    remedy = next((fix for sign, fix in _REMEDIES if any(sign in text for text in texts)), _DEFAULT_REMEDY)
    innermost = chain[-1]
    return InputError(f"{what}: {type(innermost).__name__}: {_essence(str(innermost))}", where=where, remedy=remedy)


def _essence(text: str) -> str:
    """The first paragraph of a message on one line, without colours, file names and advice on logging."""
    text = re.sub(r"\x1b?\[\d+m", "", text).strip().split("\n\n")[0].split(" If you're using")[0]
    lines = [line.strip() for line in text.splitlines()]
    text = " ".join(line for line in lines if line and not line.startswith(("File ", "Caused by", "For more ")))
    text = re.sub(r"(?:/[\w.+@-]+){2,}/?", "...", text).replace(
        'For more information, run with TORCH_LOGS="+dynamic".', ""
    )
    return text[:_MAX_REASON_CHARS].rstrip(" .") + ("..." if len(text) > _MAX_REASON_CHARS else "")


def _relaxed_warning(error: InputError) -> str:
    reason = error.what.removeprefix("torch.export failed: ")
    return f"dynamic_shapes could not be kept as declared: {reason}"
