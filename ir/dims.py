"""Arithmetic on symbolic dimensions: integer polynomials over named dims, plus floor division and maximum.

A `Size` is a plain `int` when everything is known and a `Dim` otherwise; the operators of both mix. A `Dim`
is a sum of integer multiples of monomials; the atoms of a monomial are names ("batch") and the two operations
that polynomials are not closed under, `a // b` and `max(a, b)`. Named dims stand for integers >= 0 (a cache
starts empty).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import TypeAlias

from opgraft.ir.errors import UsageError


@dataclass(frozen=True)
class _Quotient:
    numerator: Size
    denominator: Size

    def __str__(self) -> str:
        return f"({_operand_text(self.numerator)}//{_operand_text(self.denominator)})"


@dataclass(frozen=True)
class _Maximum:
    left: Size
    right: Size

    def __str__(self) -> str:
        return f"max({self.left}, {self.right})"


_Atom: TypeAlias = "str | _Quotient | _Maximum"
_Monomial: TypeAlias = "tuple[tuple[_Atom, int], ...]"


class Dim:
    """A non-constant integer expression, immutable and compared by its canonical terms."""

    def __init__(self, terms: Mapping[_Monomial, int]) -> None:
        """For this module: use `dim`, `parse_dim` or arithmetic, which return an int where one is known."""
        self._terms = terms

    @cached_property
    def _hash(self) -> int:
        return hash(frozenset(self._terms.items()))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Dim) and self._terms == other._terms)

    def __add__(self, other: Size) -> Size:
        return add_all((self, other)) if isinstance(other, int | Dim) else NotImplemented

    __radd__ = __add__

    def __neg__(self) -> Size:
        return Dim({monomial: -factor for monomial, factor in self._terms.items()})

    def __sub__(self, other: Size) -> Size:
        return add_all((self, -other)) if isinstance(other, int | Dim) else NotImplemented

    def __rsub__(self, other: int) -> Size:
        return add_all((-self, other))

    def __mul__(self, other: Size) -> Size:
        if isinstance(other, int):
            return _canonical({monomial: factor * other for monomial, factor in self._terms.items()})
        if not isinstance(other, Dim):
            return NotImplemented
        terms: dict[_Monomial, int] = {}
        for left, left_factor in self._terms.items():
            for right, right_factor in other._terms.items():
                monomial = _times(left, right)
                terms[monomial] = terms.get(monomial, 0) + left_factor * right_factor
        return _canonical(terms)

    __rmul__ = __mul__

    def __floordiv__(self, other: Size) -> Size:
        return floor_divide(self, other) if isinstance(other, int | Dim) else NotImplemented

    def __rfloordiv__(self, other: int) -> Size:
        return floor_divide(other, self)

    def __str__(self) -> str:
        by_degree = sorted(self._terms, key=lambda term: (-sum(power for _, power in term), str(term)))
        text = " + ".join(_term_text(monomial, self._terms[monomial]) for monomial in by_degree)
        return text.replace("+ -", "- ")

    __repr__ = __str__

    @property
    def is_name(self) -> bool:
        """Whether the expression is one name and nothing else."""
        return len(self._terms) == 1 and len(self.names) == 1 and self == dim(next(iter(self.names)))

    @property
    def is_monomial(self) -> bool:
        """Whether the expression is one product of names: it is zero only where one of them is."""
        return len(self._terms) == 1 and all(isinstance(atom, str) for monomial in self._terms for atom, _ in monomial)

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of all dims the expression depends on."""
        found: set[str] = set()
        for monomial in self._terms:
            for atom, _ in monomial:
                if isinstance(atom, str):
                    found.add(atom)
                else:
                    for part in vars(atom).values():
                        found |= names_of(part)
        return frozenset(found)


Size: TypeAlias = "int | Dim"


def dim(name: str) -> Dim:
    """The named dimension itself."""
    return Dim({((name, 1),): 1})


def names_of(size: Size) -> frozenset[str]:
    return size.names if isinstance(size, Dim) else frozenset()


def evaluate(size: Size, bindings: Mapping[str, int]) -> int:
    """The number that `size` is under `bindings`.

    Raises UsageError when a dim has no value.
    """
    if isinstance(size, int):
        return size
    total = 0
    for monomial, factor in size._terms.items():
        for atom, power in monomial:
            factor *= _evaluate_atom(atom, bindings) ** power
        total += factor
    return total


def add_all(sizes: Iterable[Size]) -> Size:
    """The sum, in time linear in the number of terms."""
    constant = 0
    terms: dict[_Monomial, int] = {}
    for size in sizes:
        if isinstance(size, int):
            constant += size
        else:
            for monomial, factor in size._terms.items():
                terms[monomial] = terms.get(monomial, 0) + factor
    if constant:
        terms[()] = terms.get((), 0) + constant
    return _canonical(terms)


def multiply_all(sizes: Iterable[Size]) -> Size:
    """The product; 1 for no factors."""
    product: Size = 1
    for size in sizes:
        product = product * size
    return product


def floor_divide(numerator: Size, denominator: Size) -> Size:
    """`numerator // denominator`, with every term the denominator divides taken out exactly."""
    if isinstance(numerator, int) and isinstance(denominator, int):
        return numerator // denominator
    if denominator == 0:
        raise ZeroDivisionError("a dimension divided by 0")
    terms, by = _terms_of(numerator), _terms_of(denominator)
    exact: dict[_Monomial, int] = {}
    rest: dict[_Monomial, int] = {}
    for monomial, factor in terms.items():
        quotient = _divide_term(monomial, factor, by)
        if quotient is None:
            rest[monomial] = factor
        else:
            exact[quotient[0]] = quotient[1]
    shared = gcd(*rest.values(), *by.values())
    remainder = _canonical({monomial: factor // shared for monomial, factor in rest.items()})
    divisor = _canonical({monomial: factor // shared for monomial, factor in by.items()})
    if isinstance(remainder, int) and isinstance(divisor, int):
        return _canonical(exact) + remainder // divisor
    if remainder == 0:
        return _canonical(exact)
    return _canonical(exact) + Dim({((_Quotient(remainder, divisor), 1),): 1})


def ceil_divide(numerator: Size, denominator: Size) -> Size:
    return -floor_divide(-numerator, denominator)


def maximum(left: Size, right: Size) -> Size:
    """`max(left, right)`, decided where the difference has one sign for all dims >= 0."""
    difference = left - right
    if never_negative(difference):
        return left
    if never_negative(-difference):
        return right
    first, second = sorted((left, right), key=str)
    return Dim({((_Maximum(first, second), 1),): 1})


def minimum(left: Size, right: Size) -> Size:
    """`min(left, right)`, decided where `maximum` is."""
    return -maximum(-left, -right)


def minimum_operands(size: Size) -> tuple[Size, Size] | None:
    """The two sizes that an undecided `minimum` is of; None for another expression."""
    if isinstance(size, int) or len(size._terms) != 1:
        return None
    ((monomial, factor),) = size._terms.items()
    if factor != -1 or len(monomial) != 1:
        return None
    atom, power = monomial[0]
    return (-atom.left, -atom.right) if isinstance(atom, _Maximum) and power == 1 else None


def _canonical(terms: dict[_Monomial, int]) -> Size:
    if 0 in terms.values():
        terms = {monomial: factor for monomial, factor in terms.items() if factor}
    if not terms:
        return 0
    if len(terms) == 1 and () in terms:
        return terms[()]
    return Dim(terms)


def _times(left: _Monomial, right: _Monomial) -> _Monomial:
    if not left or not right:
        return left or right
    powers = dict(left)
    for atom, power in right:
        powers[atom] = powers.get(atom, 0) + power
    return tuple(sorted(powers.items(), key=lambda item: str(item[0])))


def _terms_of(size: Size) -> Mapping[_Monomial, int]:
    return size._terms if isinstance(size, Dim) else {(): size}


def _divide_term(monomial: _Monomial, factor: int, by: Mapping[_Monomial, int]) -> tuple[_Monomial, int] | None:
    """factor*monomial divided exactly by a divisor of one term; None where a remainder is possible."""
    if len(by) != 1:
        return None
    (divisor, divisor_factor), *_ = by.items()
    powers = dict(monomial)
    for atom, power in divisor:
        powers[atom] = powers.get(atom, 0) - power
    if factor % divisor_factor or any(power < 0 for power in powers.values()):
        return None
    kept = tuple((atom, power) for atom, power in powers.items() if power)
    return kept, factor // divisor_factor


def never_negative(size: Size) -> bool:
    """True only if `size` >= 0 whatever the dims (>= 0) are; False means undecided."""
    return all(_term_never_negative(monomial, factor) for monomial, factor in _terms_of(size).items())


def _term_never_negative(monomial: _Monomial, factor: int) -> bool:
    if factor >= 0:
        return all(_atom_never_negative(atom) for atom, _ in monomial)
    # A minimum is written -max(-a, -b).
    smaller = minimum_operands(Dim({monomial: -1}))
    return smaller is not None and all(map(never_negative, smaller))


def _atom_never_negative(atom: _Atom) -> bool:
    if isinstance(atom, str):
        return True
    if isinstance(atom, _Quotient):
        return never_negative(atom.numerator) and never_negative(atom.denominator)
    return never_negative(atom.left) or never_negative(atom.right)


def _evaluate_atom(atom: _Atom, bindings: Mapping[str, int]) -> int:
    if isinstance(atom, str):
        if atom not in bindings:
            known = ", ".join(sorted(bindings)) or "none"
            raise UsageError(f"dimension {atom!r} has no value", remedy=f"bind it; bound: {known}")
        return bindings[atom]
    if isinstance(atom, _Quotient):
        return evaluate(atom.numerator, bindings) // evaluate(atom.denominator, bindings)
    return max(evaluate(atom.left, bindings), evaluate(atom.right, bindings))


def _operand_text(size: Size) -> str:
    return str(size) if isinstance(size, int) or size.is_name else f"({size})"


def _term_text(monomial: _Monomial, factor: int) -> str:
    parts = [str(atom) if power == 1 else f"{atom}**{power}" for atom, power in monomial]
    if factor == -1 and parts:
        return "-" + "*".join(parts)
    return "*".join(([str(factor)] if factor != 1 or not parts else []) + parts)
