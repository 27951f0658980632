"""Views of small integer tensors: the same elements in another shape or order."""

from __future__ import annotations

from collections.abc import Sequence

from opgraft.ir.integer_contents import Integers, Operands


def _reshaped(operands: Operands, shape: Sequence[int]) -> Integers | None:
    content = operands.content(0)
    if content is None:
        return None
    try:
        return Integers(content.elements.reshape(tuple(shape)), content.dtype)
    except ValueError:
        return None


def reshape(operands: Operands) -> Integers | None:
    content, target = operands.content(0), operands.numbers(1)
    if content is None or target is None:
        return None
    if not operands.int_attribute("allowzero", 0):
        lengths = content.elements.shape
        if any(t == 0 and i >= len(lengths) for i, t in enumerate(target)):
            return None
        target = [lengths[i] if t == 0 else t for i, t in enumerate(target)]
    return _reshaped(operands, target)


def squeeze(operands: Operands) -> Integers | None:
    content, axes = operands.content(0), operands.ints("axes", 1)
    if content is None or (axes is None and operands.is_present(1)):
        return None
    lengths = content.elements.shape
    if axes is None:
        return _reshaped(operands, [n for n in lengths if n != 1])
    dropped = {a % len(lengths) for a in axes if lengths}
    if any(lengths[a] != 1 for a in dropped):
        return None
    return _reshaped(operands, [n for i, n in enumerate(lengths) if i not in dropped])


def unsqueeze(operands: Operands) -> Integers | None:
    content, axes = operands.content(0), operands.ints("axes", 1)
    if content is None or axes is None:
        return None
    rank = content.elements.ndim + len(axes)
    added = {a % rank for a in axes if -rank <= a < rank}
    if len(added) != len(axes):
        return None
    lengths = iter(content.elements.shape)
    return _reshaped(operands, [1 if i in added else next(lengths) for i in range(rank)])


def transpose(operands: Operands) -> Integers | None:
    content, perm = operands.content(0), operands.node.attributes.get("perm")
    if content is None:
        return None
    order = list(perm.as_ints()) if perm is not None else list(range(content.elements.ndim))[::-1]
    if sorted(order) != list(range(content.elements.ndim)):
        return None
    return Integers(content.elements.transpose(order), content.dtype)
