"""Patterns: the left-hand side of a rewrite written as an expression, with `check` and `rewrite` beside it."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx_ir
from opgraft.ir.program import DEFAULT_DOMAINS, constant_array
from opgraft.passes._pass import NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass

# Max and Min are not among them: of zeros of different sign the runtime returns the first or the second operand.
COMMUTATIVE = frozenset(
    {
        "Add",
        "Mul",
        "And",
        "Or",
        "Xor",
        "Equal",
        "Sum",
        "Mean",
        "BitwiseAnd",
        "BitwiseOr",
        "BitwiseXor",
    }
)


@dataclass(frozen=True, eq=False)
class Variable:
    """Matches any value; the same variable twice must be the same value."""

    name: str


@dataclass(frozen=True, eq=False)
class Scalar:
    """Matches a constant whose elements all equal `number`, exactly."""

    number: float


@dataclass(frozen=True, eq=False)
class Operation:
    """Matches the first output of a node; `attributes` must be equal when given."""

    op_type: str
    operands: tuple[Expression, ...]
    attributes: tuple[tuple[str, Any], ...]
    domain: str


Expression = Variable | Scalar | Operation


class PatternBuilder:
    """`p.Add(p.MatMul(x, w), b)` builds the expression; numbers stand for constants of that number."""

    def __getattr__(self, op_type: str) -> Any:
        def make(*operands: Expression | float, domain: str = "", **attributes: Any) -> Operation:
            wrapped = tuple(Scalar(float(o)) if isinstance(o, (int, float)) else o for o in operands)
            return Operation(op_type, wrapped, tuple(attributes.items()), domain)

        return make


@dataclass
class Match:
    """A match: the value of each variable and the nodes in it, root first."""

    values: dict[str, onnx_ir.Value]
    nodes: tuple[onnx_ir.Node, ...]


class PatternPass(NodePass):
    """A pass in three methods that share one list of variables: `pattern`, `check`, `rewrite`.

    Inner nodes of a match may have other users; `require_single_use` refuses those matches, for rewrites that would
    otherwise compute twice.
    """

    require_single_use = True

    @property
    def anchors(self) -> list[tuple[str, str]]:
        root = _expression(type(self), self)
        domains = DEFAULT_DOMAINS if root.domain in DEFAULT_DOMAINS else (root.domain,)
        return [(domain, root.op_type) for domain in domains]

    @abstractmethod
    def pattern(self, p: PatternBuilder, *variables: Any) -> Operation: ...

    def check(self, match: Match, **variables: onnx_ir.Value) -> NoMatch | None:
        """Conditions that the expression does not say."""
        return None

    @abstractmethod
    def rewrite(self, op: Rewriter, **variables: onnx_ir.Value) -> onnx_ir.Value: ...

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        expression = _expression(type(self), self)
        miss = NoMatch("operands do not have the pattern's form", node)
        for match in _Matcher(node.graph).matches(expression, node):
            outside = _used_outside(match) if self.require_single_use else None
            if outside is not None:
                miss = NoMatch("an inner result has other users", outside)
                continue
            refused = self.check(match, **match.values)
            if refused is not None:
                miss = refused
                continue
            return [self.rewrite(op, **match.values)]
        return miss


@cache
def _expression(cls: type[PatternPass], instance: PatternPass) -> Operation:
    names = list(inspect.signature(cls.pattern).parameters)[2:]
    return instance.pattern(PatternBuilder(), *(Variable(n) for n in names))


def _used_outside(match: Match) -> onnx_ir.Value | None:
    inside = set(match.nodes)
    for node in match.nodes[1:]:
        for output in node.outputs:
            if output.is_graph_output() or any(use.node not in inside for use in output.uses()):
                return output
    return None


# Steps of one match. Patterns of a dozen operators take some tens; only a graph made to have exponentially many
# readings of a pattern gets here.
_MAX_STEPS = 10_000

_State = tuple[dict[str, onnx_ir.Value], tuple[onnx_ir.Node, ...]]


class _Matcher:
    """Finds the readings of one expression at one node.

    Operands of commutative operators are tried in both orders where they are met: no pattern is ever multiplied out.
    What cannot match whatever the variables stand for is found out once per expression and value.
    """

    def __init__(self, graph: object) -> None:
        self._graph = graph
        self._possible: dict[tuple[int, onnx_ir.Value], bool] = {}
        self.steps = 0

    def matches(self, expression: Operation, root: onnx_ir.Node) -> Iterator[Match]:
        for values, nodes in self._match_node(expression, root, {}, ()):
            yield Match(values, nodes)

    def _match_value(
        self,
        expression: Expression,
        value: onnx_ir.Value | None,
        values: dict[str, onnx_ir.Value],
        nodes: tuple[onnx_ir.Node, ...],
    ) -> Iterator[_State]:
        if value is None:
            return
        if isinstance(expression, Variable):
            bound = values.get(expression.name)
            if bound is None:
                yield {**values, expression.name: value}, nodes
            elif bound is value:
                yield values, nodes
        elif isinstance(expression, Scalar):
            if _holds(value, expression.number):
                yield values, nodes
        elif self._is_possible(expression, value):
            producer = value.producer()
            if producer is not None:
                yield from self._match_node(expression, producer, values, nodes)

    def _match_node(
        self,
        expression: Operation,
        node: onnx_ir.Node,
        values: dict[str, onnx_ir.Value],
        nodes: tuple[onnx_ir.Node, ...],
    ) -> Iterator[_State]:
        for inputs in _orders(expression, node):
            yield from self._match_operands(expression.operands, inputs, values, (*nodes, node))

    def _match_operands(
        self,
        operands: tuple[Expression, ...],
        inputs: list[onnx_ir.Value | None],
        values: dict[str, onnx_ir.Value],
        nodes: tuple[onnx_ir.Node, ...],
    ) -> Iterator[_State]:
        self.steps += 1
        if self.steps > _MAX_STEPS:
            return
        if not operands:
            yield values, nodes
            return
        for bound, seen in self._match_value(operands[0], inputs[0], values, nodes):
            yield from self._match_operands(operands[1:], inputs[1:], bound, seen)

    def _is_possible(self, expression: Expression, value: onnx_ir.Value | None) -> bool:
        """Whether `value` has the form of `expression` when every variable may be anything."""
        if value is None or isinstance(expression, Variable):
            return value is not None
        key = (id(expression), value)
        known = self._possible.get(key)
        if known is None:
            self.steps += 1
            known = self._possible[key] = self._has_form(expression, value)
        return known

    def _has_form(self, expression: Expression, value: onnx_ir.Value) -> bool:
        if isinstance(expression, Scalar):
            return _holds(value, expression.number)
        producer = value.producer()
        if producer is None or value is not producer.outputs[0] or not isinstance(expression, Operation):
            return False
        if producer.graph is not self._graph:
            return False  # computed once outside, not in every iteration of this graph
        return any(
            all(self._is_possible(operand, v) for operand, v in zip(expression.operands, inputs, strict=True))
            for inputs in _orders(expression, producer)
        )


def _orders(expression: Operation, node: onnx_ir.Node) -> Iterator[list[onnx_ir.Value | None]]:
    """The inputs of `node` as they can stand for the operands of `expression`; none when the node itself does not."""
    if node.op_type != expression.op_type:
        return
    if node.domain != expression.domain and not (
        node.domain in DEFAULT_DOMAINS and expression.domain in DEFAULT_DOMAINS
    ):
        return
    for name, wanted in expression.attributes:
        attribute = node.attributes.get(name)
        if attribute is None or attribute.is_ref() or attribute.value != wanted:
            return
    inputs = list(node.inputs)
    while inputs and inputs[-1] is None:
        inputs.pop()
    if len(inputs) != len(expression.operands):
        return
    yield inputs
    if len(inputs) == 2 and node.op_type in COMMUTATIVE and inputs[0] is not inputs[1]:
        yield inputs[::-1]


def _holds(value: onnx_ir.Value, number: float) -> bool:
    """Whether `value` is a constant all of whose elements are `number`, exactly."""
    array = constant_array(value)
    return array is not None and bool(array.size) and bool((array == number).all())
