"""Dynamic dims of a torch capture: what the user declared, what `torch.export` is told, what came out.

`torch.export` treats 0 and 1 as constants: an example of batch 1 gives a graph for batch 1 only. Examples of
size 1 along a dim declared dynamic are therefore doubled first.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from opgraft.ir.errors import UsageError
from opgraft.ir.normalize_export import graph_values, model_graphs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DeclaredDim:
    """One axis of one example input that the user declared dynamic."""

    leaf: int
    """Index into the flattened (args, kwargs)."""
    path: str
    """For messages: "input_ids", "batch['mask']"."""
    axis: int
    name: str | None
    """None for Dim.AUTO and Dim.DYNAMIC."""
    max_size: int | None


def bind_call(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Parameter name -> value, as forward() sees the call: the structure of dynamic_shapes in torch."""
    try:
        return dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise UsageError(f"the examples do not fit {type(module).__name__}.forward: {error}") from error


def complete_dynamic_shapes(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic_shapes: Any
) -> dict[str, Any]:
    """Parameter name -> declaration, one entry for every argument given (None where nothing was declared).

    What forward() takes as `**kwargs` may be declared by its own name; it is nested as torch wants it.
    """
    bound = bind_call(module, args, kwargs)
    open_name = _variadic_name(module, inspect.Parameter.VAR_KEYWORD)
    extra = bound.get(open_name, {})
    known = f"the arguments are: {', '.join([name for name in bound if name != open_name] + list(extra))}"
    if isinstance(dynamic_shapes, Mapping):
        unknown = [name for name in dynamic_shapes if name not in bound and name not in extra]
        if unknown:
            what = f"dynamic_shapes names {', '.join(map(repr, unknown))}, which the examples do not contain"
            raise UsageError(what, remedy=known)
        shapes = {name: dynamic_shapes.get(name) for name in bound}
        if extra:
            nested = shapes[open_name] or {}
            shapes[open_name] = {name: dynamic_shapes.get(name, nested.get(name)) for name in extra}
        return shapes
    if not isinstance(dynamic_shapes, Sequence) or isinstance(dynamic_shapes, str):
        raise UsageError("dynamic_shapes must be a dict keyed by argument name, or a sequence by position")
    if len(dynamic_shapes) != len(bound):
        raise UsageError(f"dynamic_shapes has {len(dynamic_shapes)} entries for {len(bound)} arguments", remedy=known)
    return dict(zip(bound, dynamic_shapes, strict=True))


def declared_dims(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], shapes: Mapping[str, Any]
) -> list[DeclaredDim]:
    """The dynamic axes of `complete_dynamic_shapes`, matched with the flattened example tensors."""
    import torch
    from torch.utils import _pytree

    leaves, _ = _pytree.tree_flatten_with_path((args, dict(kwargs)))
    found = []
    for index, (path, leaf) in enumerate(leaves):
        if not isinstance(leaf, torch.Tensor):
            continue
        keys = _parameter_path(module, [_key_of(entry) for entry in path[1:]])
        label = str(keys[0]) + "".join(f"[{key!r}]" for key in keys[1:])
        for axis, dim in _axes(_look_up(shapes, keys)):
            if not -leaf.ndim <= axis < leaf.ndim:
                raise UsageError(f"dynamic_shapes declares axis {axis} of {label}, which has {leaf.ndim} dims")
            name = _identifier(dim) if isinstance(dim, str) else getattr(dim, "__name__", None)
            found.append(DeclaredDim(index, label, axis % leaf.ndim, name, _as_int(getattr(dim, "max", None))))
    return found


def export_dims(shapes: Mapping[str, Any], *, relaxed: bool) -> dict[str, Any]:
    """The declaration in the exporter's terms: equal strings become one shared Dim.

    `relaxed` turns every declared dim into Dim.AUTO, which lets the exporter fix or constrain it; what it did
    is then read off the graph and reported.
    """
    from torch.export import Dim

    shared: dict[str, Any] = {}

    def convert(dim: Any) -> Any:
        if not _is_dynamic(dim):
            return dim
        if relaxed:
            bounds = {key: _as_int(getattr(dim, key, None)) for key in ("min", "max")}
            limits = {key: bound for key, bound in bounds.items() if bound is not None}
            return Dim.AUTO(**limits) if limits else Dim.AUTO
        return shared.setdefault(_identifier(dim), Dim(_identifier(dim))) if isinstance(dim, str) else dim

    return {name: _map_dims(spec, convert) for name, spec in shapes.items()}


def double_unit_dims(leaves: Sequence[Any], declared: Sequence[DeclaredDim]) -> list[Any]:
    """The example leaves with every declared dim of size 1 repeated to size 2, where its bound allows."""
    import torch

    doubled = list(leaves)
    for dim in declared:
        tensor = doubled[dim.leaf]
        if tensor.ndim and tensor.shape[dim.axis] == 1 and (dim.max_size is None or dim.max_size >= 2):
            doubled[dim.leaf] = torch.cat([tensor, tensor], dim=dim.axis)
    return doubled


def separate_aliases(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same examples with every tensor an object of its own.

    torch.export (2.13) traces one tensor given for two arguments as one input: the model then silently ignores one.
    """
    import torch
    from torch.utils import _pytree

    leaves, spec = _pytree.tree_flatten((args, kwargs))
    seen: set[int] = set()
    for position, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor):
            if id(leaf) in seen:
                leaves[position] = leaf.clone()
            seen.add(id(leaf))
    separated: tuple[tuple[Any, ...], dict[str, Any]] = _pytree.tree_unflatten(leaves, spec)
    return separated


def name_symbolic_dims(
    model: ir.Model, declared: Sequence[DeclaredDim], input_of_leaf: Mapping[int, ir.Value]
) -> list[str]:
    """Give symbolic dims their declared names; warn of each declared one that is static or constrained."""
    names: dict[str, str] = {}
    warnings = []
    for dim in declared:
        value = input_of_leaf.get(dim.leaf)
        if value is None or value.shape is None:
            continue
        size = value.shape[dim.axis]
        where = f"input {value.name!r}, axis {dim.axis}" + (f" ({dim.name})" if dim.name else "")
        if isinstance(size, int):
            warnings.append(
                f"{where}: declared dynamic, but the captured graph is fixed to {size} "
                + ("(give an example with size 2 or more)" if size == 1 else "(fixed by its code or its export)")
            )
        elif size.value is None or not size.value.isidentifier():
            warnings.append(f"{where}: declared dynamic, but constrained to be {size.value}")
        elif dim.name is not None and names.setdefault(size.value, dim.name) != dim.name:
            warnings.append(f"{where}: the module needs it to equal {names[size.value]!r}")
    _rename_dims(model, {symbol: name for symbol, name in names.items() if symbol != name})
    return warnings


def _rename_dims(model: ir.Model, names: Mapping[str, str]) -> None:
    if not names:
        return
    symbol = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for graph in model_graphs(model):
        for value in graph_values(graph):
            if value.shape is None or value.shape.is_static():
                continue
            value.shape = ir.Shape(
                [
                    size if isinstance(size, int) else symbol.sub(lambda m: names[m[1]], size.value or "") or None
                    for size in value.shape
                ]
            )


def _variadic_name(module: torch.nn.Module, kind: Any) -> str:
    """Name of the *args or **kwargs parameter of forward(), "" where there is none."""
    parameters = inspect.signature(module.forward).parameters.values()
    return next((parameter.name for parameter in parameters if parameter.kind is kind), "")


def _parameter_path(module: torch.nn.Module, path: Sequence[Any]) -> list[Any]:
    """The path of a leaf in (args, kwargs), beginning with its parameter's name in place of a position."""
    top, rest = path[0], list(path[1:])
    parameters = inspect.signature(module.forward).parameters
    if isinstance(top, str):
        return [top, *rest] if top in parameters else [_variadic_name(module, inspect.Parameter.VAR_KEYWORD), *path]
    names = list(parameters)
    variadic = _variadic_name(module, inspect.Parameter.VAR_POSITIONAL)
    if variadic and top >= names.index(variadic):
        return [variadic, top - names.index(variadic), *rest]
    return [names[top], *rest]


def _key_of(entry: Any) -> Any:
    """The key of one step of a pytree path: list index, dict key or attribute name."""
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return str(entry)


def _look_up(spec: Any, keys: Sequence[Any]) -> Any:
    for key in keys:
        try:
            spec = spec[key]
        except (KeyError, IndexError, TypeError):
            return None
    return spec


def _axes(spec: Any) -> list[tuple[int, Any]]:
    """The dynamic axes of one tensor's declaration: {axis: dim} or a sequence with one dim per axis."""
    if isinstance(spec, Mapping):
        entries = [(axis, dim) for axis, dim in spec.items() if isinstance(axis, int)]
    elif isinstance(spec, Sequence) and not isinstance(spec, str):
        entries = list(enumerate(spec))
    else:
        return []
    return [(axis, dim) for axis, dim in entries if _is_dynamic(dim)]


def _is_dynamic(dim: Any) -> bool:
    from torch.export import Dim

    is_hint = type(dim) is type(Dim.AUTO) and dim != Dim.STATIC
    return isinstance(dim, str) or is_hint or isinstance(dim, Dim)


def _map_dims(spec: Any, convert: Callable[[Any], Any]) -> Any:
    if isinstance(spec, Mapping):
        return {key: _map_dims(entry, convert) for key, entry in spec.items()}
    if isinstance(spec, (list, tuple)):
        return type(spec)([_map_dims(entry, convert) for entry in spec])
    return convert(spec)


def _identifier(name: str) -> str:
    cleaned = re.sub(r"\W", "_", name) or "dim"
    return f"_{cleaned}" if cleaned[0].isdigit() else cleaned


def _as_int(bound: Any) -> int | None:
    """A finite bound; the exporter's "no bound" is an integer infinity of sympy, or None."""
    return bound if isinstance(bound, int) and bound < 2**62 else None
