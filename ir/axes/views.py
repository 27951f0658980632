"""Relate the dims on both sides of a change of radix: reshapes, and what contains one."""

from __future__ import annotations

from collections.abc import Sequence

from opgraft.ir.axes.digits import Digit, digits_of
from opgraft.ir.axes.graph import Kind, Part, Relation
from opgraft.ir.axes.rule import NodeAxes
from opgraft.ir.dims import multiply_all


def relate_view(n: NodeAxes, ins: Sequence[int], outs: Sequence[int]) -> None:
    """`outs` hold the elements of `ins` in the same order."""
    if not _may_fit(n, ins, outs):
        n.opaque("the two sides of this reshape hold different numbers of elements")
        return
    digits, ins_left, outs_left = digits_of(n.sizes(ins), n.sizes(outs))
    for digit in digits:
        source, target = ins[digit.source], outs[digit.target]
        if digit.size == n.size(source) == n.size(target):
            n.same(source, target)
        else:
            n.part(source, target, Part(digit.in_stride, digit.out_stride, digit.size))
    atoms = [_atom(n, ins, outs, digit) for digit in digits]
    _record_splits(n, ins, digits, atoms)
    _record_merges(n, outs, digits, atoms)
    for i in ins_left:
        for o in outs_left:
            n.scrambled(ins[i], outs[o])
    related = {d.target for d in digits} | (set(outs_left) if ins_left else set())
    for o, target in enumerate(outs):
        if o not in related:
            n.created(target, "a dim of size 1")


def _may_fit(n: NodeAxes, ins: Sequence[int], outs: Sequence[int]) -> bool:
    """Whether there are sizes, none of them zero, with which both sides hold as many elements.

    Exporters do write reshapes that cannot run; what such a graph means is not to be guessed.
    """
    excess = multiply_all(n.sizes(ins)) - multiply_all(n.sizes(outs))
    return not excess if isinstance(excess, int) else not excess.is_monomial


def _atom(n: NodeAxes, ins: Sequence[int], outs: Sequence[int], digit: Digit) -> int:
    """The dim that is just this digit: one of either side, or a new one between them."""
    source, target = ins[digit.source], outs[digit.target]
    if digit.size == n.size(source):
        return source
    if digit.size == n.size(target):
        return target
    atom = n.graph.add_digit(n.graph.axes[target].value, digit.size)
    n.part(source, atom, Part(digit.in_stride, 1, digit.size))
    n.part(atom, target, Part(1, digit.out_stride, digit.size))
    return atom


def _record_splits(n: NodeAxes, ins: Sequence[int], digits: list[Digit], atoms: list[int]) -> None:
    for i, source in enumerate(ins):
        mine = [atom for digit, atom in zip(digits, atoms, strict=True) if digit.source == i]
        if len(mine) < 2:
            continue
        n.digits.split(source, mine)
        for composition in n.digits.compositions(source):
            _restore(n, composition, mine)


def _restore(n: NodeAxes, parts: Sequence[int], targets: Sequence[int]) -> None:
    """The dims `parts`, which were merged before, against the `targets` that come out of the merged dim."""
    digits, _, _ = digits_of(n.sizes(parts), n.sizes(targets))
    for digit in digits:
        part, target = parts[digit.source], targets[digit.target]
        if digit.size == n.size(part) == n.size(target):
            n.graph.relate(Relation(Kind.RESTORED, part, target, n.node))
            n.digits.inherit(part, target)
        else:
            n.part(part, target, Part(digit.in_stride, digit.out_stride, digit.size, through=True))
    for position, part in enumerate(parts):
        mine = [d for d in digits if d.source == position]
        if len(mine) > 1 and all(d.size == n.size(targets[d.target]) for d in mine):
            n.digits.split(part, [targets[d.target] for d in mine])
    atoms = [_restored_atom(n, parts[d.source], targets[d.target], d) for d in digits]
    _record_merges(n, targets, digits, atoms)


def _restored_atom(n: NodeAxes, part: int, target: int, digit: Digit) -> int:
    """As `_atom`, for a dim that was merged before; one that is no whole dim of either is left as the target."""
    return part if digit.size == n.size(part) else target


def _record_merges(n: NodeAxes, outs: Sequence[int], digits: list[Digit], atoms: list[int]) -> None:
    for o, target in enumerate(outs):
        mine = [atom for digit, atom in zip(digits, atoms, strict=True) if digit.target == o]
        if len(mine) < 2 or target in mine:
            continue
        for whole in n.digits.merge(mine, target):
            n.graph.relate(Relation(Kind.RESTORED, whole, target, n.node))
