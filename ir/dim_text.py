"""Dimension names as written in models, read as expressions: "seq + 1", "2*heads", "floor(H/2 + 1/2)".

Exporters write what their symbolic engine prints; ONNX itself allows any string. What does not parse as
arithmetic on identifiers ("input_ids.0", "batch-size") is one name, whole.
"""

from __future__ import annotations

import ast
import re
from functools import lru_cache

from opgraft.ir.dims import Size, ceil_divide, dim, floor_divide, maximum

# A fraction while parsing: exporters write floor(H/2 + 1/2), whose parts are no integers.
_Fraction = tuple[Size, int]

_MAX_POWER = 8


@lru_cache(maxsize=4096)
def parse_dim(text: str) -> Size:
    """The expression that `text` spells, or the dim of that name."""
    # A hyphen without spaces joins words ("batch-size"); symbolic engines print subtraction with spaces.
    # Python would also read "1_0" and "0x1" as numbers; in a model they are names like "2d".
    if re.search(r"\w-\w|\b\d\w*[A-Za-z_]", text) or not text.isascii():
        return dim(text)
    try:
        value, denominator = _read(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError, ZeroDivisionError):
        return dim(text)
    # A dimension is a whole number, so a fraction left at the top divides exactly.
    return value if denominator == 1 else floor_divide(value, denominator)


def _read(node: ast.expr) -> _Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value, 1
    if isinstance(node, ast.Name):
        return dim(node.id), 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value, denominator = _read(node.operand)
        return -value, denominator
    if isinstance(node, ast.BinOp):
        return _read_binary(node)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return _read_call(node.func.id.lower(), [_read(argument) for argument in node.args])
    raise ValueError("not dimension arithmetic")


def _read_binary(node: ast.BinOp) -> _Fraction:
    (left, left_by), (right, right_by) = _read(node.left), _read(node.right)
    match node.op:
        case ast.Add():
            return left * right_by + right * left_by, left_by * right_by
        case ast.Sub():
            return left * right_by - right * left_by, left_by * right_by
        case ast.Mult():
            return left * right, left_by * right_by
        case ast.Div() if isinstance(right, int) and right > 0:
            return left * right_by, left_by * right
        case ast.FloorDiv():
            return floor_divide(left * right_by, right * left_by), 1
        case ast.Mod() if left_by == right_by == 1:
            return left - right * floor_divide(left, right), 1
        case ast.Pow() if isinstance(right, int) and right_by == 1 and 0 < right <= _MAX_POWER:
            power: Size = 1
            for _ in range(right):
                power = power * left
            return power, left_by**right
    raise ValueError("not dimension arithmetic")


def _read_call(name: str, arguments: list[_Fraction]) -> _Fraction:
    match name, arguments:
        case "floor", [(value, by)]:
            return floor_divide(value, by), 1
        case "ceil" | "ceiling", [(value, by)]:
            return ceil_divide(value, by), 1
        case "mod", [(left, 1), (right, 1)]:
            return left - right * floor_divide(left, right), 1
        case "max", [(left, 1), (right, 1)]:
            return maximum(left, right), 1
        case "min", [(left, 1), (right, 1)]:
            return -maximum(-left, -right), 1
    raise ValueError("not dimension arithmetic")
