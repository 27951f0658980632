"""What emitted modules call for control flow, sequences (Python lists) and optionals (a value or None)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def branch(condition: Any, then: Callable[..., Any], otherwise: Callable[..., Any], operands: Sequence[Any]) -> Any:
    """One of two graphs. A condition on sizes is Python's `if`, which tracing turns into a guard; one on data is
    `torch.cond` when traced, which asks that both sides give tensors of the same shapes."""
    if isinstance(condition, Tensor):
        if torch.compiler.is_compiling():
            return torch.cond(condition.reshape(()), then, otherwise, tuple(operands))
        condition = bool(condition)
    return then(*operands) if condition else otherwise(*operands)


def loop(
    limit: Any,
    condition: Any,
    body: Callable[..., Any],
    carried: Sequence[Any],
    blanks: Sequence[tuple[Sequence[int], torch.dtype]],
    operands: Sequence[Any],
) -> list[Any]:
    """Loop whose end only a run tells. The body gives the condition, the carried values, what is collected; `blanks`
    are what is collected in no step."""
    values: list[Any] = list(carried)
    collected: list[list[Any]] = [[] for _ in blanks]
    step, device = 0, _device_of((*carried, *operands))
    while (limit is None or step < limit) and (condition is None or bool(condition)):
        results = body(torch.tensor(step, device=device), torch.tensor(True, device=device), *values, *operands)
        condition = results[0]
        values = list(results[1 : 1 + len(values)])
        for items, item in zip(collected, results[1 + len(values) :], strict=True):
            items.append(item)
        step += 1
    return values + [
        torch.stack(items) if items else torch.empty(list(shape), dtype=dtype, device=device)
        for items, (shape, dtype) in zip(collected, blanks, strict=True)
    ]


def scan(
    body: Callable[..., Any],
    states: Sequence[Any],
    inputs: Sequence[Tensor],
    input_axes: Sequence[int],
    input_backwards: Sequence[int],
    output_axes: Sequence[int],
    output_backwards: Sequence[int],
    operands: Sequence[Any],
) -> list[Any]:
    """Scan: the body on each slice of the inputs in turn."""
    values: list[Any] = list(states)
    slices = []
    for x, axis, backwards in zip(inputs, input_axes, input_backwards, strict=True):
        parts = list(x.unbind(axis))
        slices.append(parts[::-1] if backwards else parts)
    collected: list[list[Any]] = [[] for _ in output_axes]
    for step in range(len(slices[0])):
        results = body(*values, *(parts[step] for parts in slices), *operands)
        values = list(results[: len(values)])
        for items, item in zip(collected, results[len(values) :], strict=True):
            items.append(item)
    stacked = [
        torch.stack(items[::-1] if backwards else items, axis)
        for items, axis, backwards in zip(collected, output_axes, output_backwards, strict=True)
    ]
    return values + stacked


# -- sequences ---------------------------------------------------------------------------------------------------------


def make_list(*items: Any) -> list[Any]:
    return list(items)


def list_insert(items: Sequence[Any], item: Any, position: int | None) -> list[Any]:
    made = list(items)
    made.insert(len(made) if position is None else position + len(made) if position < 0 else position, item)
    return made


def list_erase(items: Sequence[Any], position: int | None) -> list[Any]:
    made = list(items)
    del made[-1 if position is None else position]
    return made


def list_length(items: Sequence[Any]) -> Tensor:
    return aten.scalar_tensor.default(len(items), dtype=torch.int64, device=_device_of(items))


def concatenate(items: Sequence[Tensor], axis: int, new_axis: bool) -> Tensor:
    return torch.stack(list(items), axis) if new_axis else torch.cat(list(items), axis)


def split_to_list(x: Tensor, sizes: Any, axis: int, keep: bool) -> list[Tensor]:
    """Parts of given sizes, or of one size; without `keep`, single slices without their axis."""
    if sizes is None:
        return list(x.split(1, axis)) if keep else list(x.unbind(axis))
    return list(x.split(sizes, axis))


def has_element(value: Any) -> Tensor:
    return aten.scalar_tensor.default(value is not None, dtype=torch.bool, device=_device_of((value,)))


def _device_of(values: Sequence[Any]) -> torch.device | None:
    """Where the first tensor is."""
    return next((v.device for v in values if isinstance(v, Tensor)), None)


def map_lists(
    body: Callable[..., Any], inputs: Sequence[Any], n_outputs: int, operands: Sequence[Any]
) -> list[list[Any]]:
    """The lists of what the body gives for each item."""
    collected: list[list[Any]] = [[] for _ in range(n_outputs)]
    for step in range(len(inputs[0])):
        results = body(*(x if isinstance(x, Tensor) else x[step] for x in inputs), *operands)
        for items, item in zip(collected, results, strict=True):
            items.append(item)
    return collected
