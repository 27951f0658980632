"""Relations of matrix products, einsums, convolutions' channels and everything else that sums products."""

from __future__ import annotations

from opgraft.ir.axes.rule import AxisRule, NodeAxes

_UNKNOWN = "the shape is not known"


def relate_matmul(n: NodeAxes, left: range, right: range, outs: range) -> None:
    """`[..., M, K] x [..., K, N] -> [..., M, N]`, with vectors as numpy.matmul takes them."""
    left_batch, right_batch = left[:-2], right[:-2]
    rows = left[-2:-1] if len(left) > 1 else range(0)
    columns = right[-1:] if len(right) > 1 else range(0)
    batch = outs[: len(outs) - len(rows) - len(columns)]
    n.broadcast(left_batch, batch)
    n.broadcast(right_batch, batch)
    n.all_same(rows, outs[len(batch) : len(batch) + len(rows)])
    n.all_same(columns, outs[len(batch) + len(rows) :])
    n.contracted(left[-1], right[-2] if len(right) > 1 else right[-1])


def _matmul_at(left_position: int, right_position: int) -> AxisRule:
    def rule(n: NodeAxes) -> None:
        left, right, outs = n.operand(left_position), n.operand(right_position), n.output()
        if not left or not right or outs is None:
            n.opaque(_UNKNOWN)
            return
        relate_matmul(n, left, right, outs)

    return rule


def _gemm(n: NodeAxes) -> None:
    left, right, outs = n.operand(0), n.operand(1), n.output()
    if left is None or right is None or outs is None or len(left) != 2 or len(right) != 2:
        n.opaque(_UNKNOWN)
        return
    rows, inner = (1, 0) if n.int_attribute("transA", 0) else (0, 1)
    columns, other = (0, 1) if n.int_attribute("transB", 0) else (1, 0)
    n.same(left[rows], outs[0])
    n.same(right[columns], outs[1])
    n.contracted(left[inner], right[other])
    bias = n.operand(2)
    if bias is not None:
        n.broadcast(bias, outs)


def _fused_matmul(n: NodeAxes) -> None:
    """com.microsoft FusedMatMul: the last two dims of each operand may be swapped."""
    left, right, outs = n.operand(0), n.operand(1), n.output()
    if n.int_attribute("transBatchA", 0) or n.int_attribute("transBatchB", 0) or not left or not right or outs is None:
        n.opaque("batch dims are transposed" if left else _UNKNOWN)
        return
    a, b = list(left), list(right)
    if n.int_attribute("transA", 0) and len(a) > 1:
        a[-2:] = a[:-3:-1]
    if n.int_attribute("transB", 0) and len(b) > 1:
        b[-2:] = b[:-3:-1]
    n.broadcast(a[:-2], outs[:-2])
    n.broadcast(b[:-2], outs[:-2])
    n.same(a[-2], outs[-2])
    n.same(b[-1], outs[-1])
    n.contracted(a[-1], b[-2])


def _einsum(n: NodeAxes) -> None:
    outs = n.output()
    operands = [n.operand(i) for i in range(len(n.node.inputs))]
    terms = _einsum_terms(n, [None if o is None else len(o) for o in operands])
    if outs is None or terms is None or len(terms[-1]) != len(outs):
        n.opaque(_UNKNOWN)
        return
    where = dict(zip(terms[-1], outs, strict=True))
    summed: dict[str, list[int]] = {}
    for numbers, letters in zip(operands, terms[:-1], strict=True):
        for number, letter in zip(numbers or (), letters, strict=True):
            if letter in where:
                n.aligned(number, where[letter])
            else:
                summed.setdefault(letter, []).append(number)
    for numbers_of_letter in summed.values():
        first, *others = numbers_of_letter
        for other in others:
            n.contracted(first, other)
        if not others:
            n.reduced(first)


def _einsum_terms(n: NodeAxes, ranks: list[int | None]) -> list[list[str]] | None:
    """The letters of every operand and of the result; an ellipsis becomes letters of its own, counted from the last."""
    equation = n.text_attribute("equation", "").replace(" ", "")
    left, arrow, right = equation.partition("->")
    names = left.split(",")
    if len(names) != len(ranks):
        return None
    terms: list[list[str]] = []
    longest = 0
    for name, rank in zip(names, ranks, strict=True):
        if rank is None:
            return None
        n_hidden = rank - len(name.replace("...", ""))
        if n_hidden < 0 or (n_hidden and "..." not in name):
            return None
        longest = max(longest, n_hidden)
        terms.append(_with_hidden(name, n_hidden))
    if not arrow:
        letters = left.replace("...", "").replace(",", "")
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    return [*terms, _with_hidden(right, longest)]


def _with_hidden(term: str, n_hidden: int) -> list[str]:
    before, dots, after = term.partition("...")
    return [*before, *(f"...{i}" for i in range(n_hidden, 0, -1) if dots), *after]


CONTRACTION_AXIS_RULES: dict[str, AxisRule] = {
    "MatMul": _matmul_at(0, 1),
    "MatMulInteger": _matmul_at(0, 1),
    "QLinearMatMul": _matmul_at(0, 3),
    "Gemm": _gemm,
    "Einsum": _einsum,
}
CONTRIB_CONTRACTION_AXIS_RULES: dict[str, AxisRule] = {
    "FusedMatMul": _fused_matmul,
    "TransposeMatMul": _fused_matmul,
    "MatMulIntegerToFloat": _matmul_at(0, 1),
}
