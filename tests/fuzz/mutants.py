"""Wrong versions of a pass: one small change of its code, as a programmer's slip would be.

comparison      ==, <, in ...        turned round, or off by its equality
connective      and                  or
negation        not x                x
number          n                    n + 1 or n - 1
arithmetic      +, *                 -, //
guard           if c: return NoMatch nothing
arms            a if c else b        b if c else a
operands        op.f(a, b)           op.f(b, a)
attribute       op.f(a, k=v)         op.f(a)
bound           min, any ...         max, all ...
"""

from __future__ import annotations

import ast
import copy
import sys
import types
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
from opgraft.passes._registry import builtin_modules

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
}
_BOUNDS = {"min": "max", "max": "min", "any": "all", "all": "any"}
# Arguments of the rewriter that say what is known of a value, and change no result.
_HINTS = {"like", "shape", "dtype", "n_outputs", "domain", "hint"}
# Passes that are one call: the module that the call leads to is their code too.
CODE_ELSEWHERE = {
    "fuse-reduce-squeeze": "opgraft.passes.simplify.fuse_reduce_unsqueeze",
    "infer-shapes": "opgraft.ir.shape_rules_view",
}
Edit = Callable[[], None]


@dataclass(frozen=True)
class Mutant:
    """One change in the module of a pass."""

    pass_name: str
    number: int
    """Of the place, in the order of the code."""
    kind: str
    line: int
    text: str
    """That line, and which one of equal lines it is."""
    before: str
    after: str
    module: str

    @property
    def label(self) -> str:
        place = self.pass_name
        if self.module == CODE_ELSEWHERE.get(self.pass_name):
            place = f"{place} ({self.module.rpartition('.')[2]})"
        return f"{place}:{self.line} {self.kind}: {self.before} -> {self.after}"

    @property
    def key(self) -> str:
        """The same while the code at the place is: without the number of the line."""
        return f"{self.pass_name}: {self.text}: {self.before} -> {self.after}"


@dataclass
class _Place:
    kind: str
    node: ast.AST
    edit: Edit


def mutants(pass_name: str) -> Iterator[Mutant]:
    """Every mutant of a pass in an order drawn from its name: kinds in turns, so that the first few differ."""
    yield from _of_module(pass_name, builtin_modules()[pass_name])
    if pass_name in CODE_ELSEWHERE:
        yield from _of_module(pass_name, CODE_ELSEWHERE[pass_name])


def _of_module(pass_name: str, module: str) -> Iterator[Mutant]:
    source = _source(module)
    by_kind: dict[str, list[int]] = {}
    places = list(_places(ast.parse(source)))
    for index in np.random.default_rng(zlib.crc32(pass_name.encode())).permutation(len(places)):
        by_kind.setdefault(places[int(index)].kind, []).append(int(index))
    while any(by_kind.values()):
        for number in [numbers.pop() for numbers in by_kind.values() if numbers]:
            before = ast.unparse(places[number].node)
            tree, place = _mutated(source, number)
            after = ast.unparse(place.node)
            if before != after and _compiles(tree):
                line = getattr(place.node, "lineno", 0)
                texts = _line_text(source, line), _short(before), _short(after)
                yield Mutant(pass_name, number, place.kind, line, *texts, module)


def install(mutant: Mutant) -> None:
    """Put the mutant in the place of the pass, in this process. What others imported from its module stays, but for
    code that is elsewhere, whose functions are changed for all."""
    name = mutant.module
    tree, _ = _mutated(_source(name), mutant.number)
    original = import_module(name)
    module = types.ModuleType(name)
    module.__file__ = original.__file__
    if name in CODE_ELSEWHERE.values():
        exec(compile(ast.fix_missing_locations(tree), name, "exec"), module.__dict__)
        for function in vars(original).values():
            if isinstance(function, types.FunctionType) and function.__module__ == name:
                function.__code__ = getattr(module, function.__name__).__code__
        return
    sys.modules[name] = module
    exec(compile(ast.fix_missing_locations(tree), name, "exec"), module.__dict__)


def _source(module: str) -> str:
    file = import_module(module).__file__
    if file is None:
        raise ValueError(f"{module} has no source")
    return Path(file).read_text()


def _mutated(source: str, number: int) -> tuple[ast.Module, _Place]:
    tree = ast.parse(source)
    place = list(_places(tree))[number]
    place.edit()
    return tree, place


def _compiles(tree: ast.Module) -> bool:
    try:
        compile(ast.fix_missing_locations(copy.deepcopy(tree)), "mutant", "exec")
    except (SyntaxError, ValueError):
        return False
    return True


def _line_text(source: str, line: int) -> str:
    lines = [text.strip() for text in source.splitlines()]
    text = lines[line - 1]
    place = lines[:line].count(text)
    return f"{text} (#{place})" if lines.count(text) > 1 else text


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 90 else text[:87] + "..."


def _places(tree: ast.Module) -> Iterator[_Place]:
    """Every change that could be made, in the order of the code."""
    pending: list[ast.AST] = list(reversed(tree.body))
    # What `run` returns is only how many rewrites it says it did.
    runs = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "run"]
    reported = {id(n) for run in runs for n in ast.walk(run) if isinstance(n, ast.Return)}
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom) or _is_text(node) or _is_limit(node) or id(node) in reported:
            continue
        yield from _edits(node)
        children = [c for c in ast.iter_child_nodes(node) if not _is_annotation(node, c) and not _is_option(node, c)]
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            children = [node.value]
        # The text of a NoMatch decides nothing, nor does what the report says.
        pending += reversed([] if _is_no_match(node) or _is_report(node) else children)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_limit(node: ast.AST) -> bool:
    """How much a pass takes on: what it does within is right with any."""
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and "MAX_" in t.id for t in node.targets)


def _is_annotation(parent: ast.AST, child: ast.AST) -> bool:
    return child is getattr(parent, "annotation", None) or child is getattr(parent, "returns", None)


def _is_option(parent: ast.AST, child: ast.AST) -> bool:
    """Options, declarations and their checks: which rewrites are wanted, not whether they are right."""
    checks = isinstance(child, ast.FunctionDef) and child.name == "__post_init__"
    return isinstance(parent, ast.ClassDef) and (checks or isinstance(child, ast.AnnAssign))


def _is_no_match(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "NoMatch"


def _is_report(node: ast.AST) -> bool:
    reports = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    return reports and node.func.attr in ("applied", "missed")


def _edits(node: ast.AST) -> Iterator[_Place]:
    if isinstance(node, ast.Compare):
        for other in _COMPARISONS.get(type(node.ops[0]), ()):
            yield _Place("comparison", node, lambda other=other: node.ops.__setitem__(0, other()))
    elif isinstance(node, ast.BoolOp) and not all(map(_asks_for_none, node.values)):
        other_op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield _Place("connective", node, lambda: setattr(node, "op", other_op))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield _Place("negation", node, lambda: _drop_not(node))
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and type(node.slice.value) is int:
        # Not one less: the last of one operand is its first.
        index = node.slice
        yield _Place("number", node, lambda: setattr(index, "value", index.value + 1))
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        for step in (1, -1):
            yield _Place("number", node, lambda step=step: setattr(node, "value", node.value + step))
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        wrong = _ARITHMETIC[type(node.op)]
        yield _Place("arithmetic", node, lambda: setattr(node, "op", wrong()))
    elif isinstance(node, ast.If) and any(isinstance(s, ast.Return) and _is_no_match(s.value) for s in node.body):
        yield _Place("guard", node, lambda: setattr(node, "test", ast.Constant(False)))
    elif isinstance(node, ast.IfExp):
        yield _Place("arms", node, lambda: _swap_arms(node))
    elif isinstance(node, ast.Call):
        yield from _call_edits(node)


def _drop_not(node: ast.UnaryOp) -> None:
    """`not x` becomes `not not x`: the tree has no place for x alone."""
    node.operand = ast.UnaryOp(ast.Not(), node.operand)


def _asks_for_none(node: ast.AST) -> bool:
    """`x is None`: of several such, joined, most only tell the type checker what is known."""
    right = node.comparators[0] if isinstance(node, ast.Compare) else None
    return isinstance(right, ast.Constant) and right.value is None


def _swap_arms(node: ast.IfExp) -> None:
    node.body, node.orelse = node.orelse, node.body


def _call_edits(node: ast.Call) -> Iterator[_Place]:
    if isinstance(node.func, ast.Name) and node.func.id in _BOUNDS:
        name = node.func
        yield _Place("bound", node, lambda: setattr(name, "id", _BOUNDS[name.id]))
    makes_node = (
        isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) and node.func.value.id == "op"
    )
    if not makes_node:
        return
    operands = node.args
    for argument in node.args:
        if isinstance(argument, ast.List):
            operands = argument.elts
    if len(operands) > 1 and not isinstance(operands[0], ast.Starred) and not isinstance(operands[1], ast.Starred):
        yield _Place("operands", node, lambda: operands.__setitem__(slice(0, 2), operands[1::-1]))
    for keyword in node.keywords:
        if keyword.arg is not None and keyword.arg not in _HINTS:
            yield _Place("attribute", node, lambda keyword=keyword: node.keywords.remove(keyword))
