"""Pipelines: passes in order, as text or objects.

simplify                                   a named pipeline
fold-constants, eliminate-dead-code        in this order
(eliminate-identity, compose-casts)        together, until none applies
fuse-conv-batch-norm{option=1, other=a}    with options
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from opgraft.ir.errors import ContractError, UsageError
from opgraft.ir.program import Program
from opgraft.passes._pass import Pass, PassContext
from opgraft.passes._registry import make_pass
from opgraft.passes._worklist import NodePass, run_group


@dataclass(frozen=True)
class Group:
    """Node passes that run together to their common fixpoint."""

    passes: tuple[NodePass, ...]

    @property
    def name(self) -> str:
        return f"({', '.join(p.name for p in self.passes)})"

    @property
    def text(self) -> str:
        return f"({', '.join(p.text for p in self.passes)})"


Stage = Pass | Group


@dataclass
class StageResult:
    """What one stage did."""

    name: str
    n_rewrites: int
    seconds: float


class Instrument:
    """Sees a pipeline run from outside: override what is of interest. Passes know nothing of instruments."""

    def before_stage(self, stage: Stage, program: Program, context: PassContext) -> None: ...

    def after_stage(self, stage: Stage, program: Program, context: PassContext, result: StageResult) -> bool | None:
        """Return True to stop the pipeline here."""
        return None


@dataclass
class Pipeline:
    """Stages in order. `Pipeline.parse(text)` or `Pipeline([FoldConstants(), Group((...))])`."""

    stages: list[Stage]
    instruments: list[Instrument] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._check_order()

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """Raises UsageError on unknown names, unknown options and unbalanced brackets."""
        return cls(_Parser(text).stages())

    @property
    def passes(self) -> list[Pass]:
        return [p for stage in self.stages for p in (stage.passes if isinstance(stage, Group) else (stage,))]

    def _check_order(self) -> None:
        seen: set[str] = set()
        listed = [p.name for p in self.passes]
        for stage in self.stages:
            members = stage.passes if isinstance(stage, Group) else (stage,)
            seen.update(p.name for p in members)
            for pass_ in members:
                late = [n for n in pass_.after if n in listed and n not in seen]
                if late:
                    raise UsageError(f"pass {pass_.name!r} must run after {', '.join(late)}", remedy="reorder them")

    def check_needs(self, context: PassContext) -> None:
        """Everything that any pass needs, before any of them runs. Raises UsageError."""
        for pass_ in self.passes:
            for need in pass_.needs:
                if need == "evaluate" and context.evaluate is None:
                    raise UsageError(
                        f"pass {pass_.name!r} needs a constant evaluator", remedy="pass evaluate= in PassContext"
                    )
                opset = re.fullmatch(r"opset>=(\d+)", need)
                if opset and context.program.opset < int(opset[1]):
                    raise UsageError(
                        f"pass {pass_.name!r} needs opset {opset[1]}, the model has {context.program.opset}",
                        remedy=f"upgrade-opset{{version={opset[1]}}} first",
                    )

    def run(self, program: Program, context: PassContext | None = None) -> list[StageResult]:
        """Run every stage on `program`, in place."""
        context = context or PassContext(program)
        if context.program is not program:
            raise ContractError("the context belongs to another program")
        self.check_needs(context)
        results = []
        for stage in self.stages:
            for instrument in self.instruments:
                instrument.before_stage(stage, program, context)
            start = time.perf_counter()
            count = _run_stage(stage, program, context)
            result = StageResult(stage.name, count, time.perf_counter() - start)
            results.append(result)
            if any(i.after_stage(stage, program, context, result) for i in self.instruments):
                break
        return results

    def __str__(self) -> str:
        """The text that parses into these stages."""
        return ", ".join(stage.text for stage in self.stages)


def _run_stage(stage: Stage, program: Program, context: PassContext) -> int:
    if isinstance(stage, Group):
        return run_group(stage.passes, program, context)
    if stage.name in context.disabled:
        return 0
    start = time.perf_counter()
    count = stage.run(program, context)
    if not isinstance(stage, NodePass):
        seconds = context.facts.setdefault("seconds", {})
        seconds[stage.name] = seconds.get(stage.name, 0.0) + time.perf_counter() - start
    return count


_TOKEN = re.compile(r"\s*([(),{}=]|[^\s(),{}=]+)")

NAMED: dict[str, Callable[[], Iterable[Stage]]] = {}


def named_pipeline(name: str) -> Callable[[Callable[[], Iterable[Stage]]], Callable[[], Iterable[Stage]]]:
    """Register a function that returns stages under a name usable in pipeline text."""

    def register(function: Callable[[], Iterable[Stage]]) -> Callable[[], Iterable[Stage]]:
        NAMED[name] = function
        return function

    return register


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = _TOKEN.findall(text)
        self.at = 0

    def _peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        self.at += 1
        return token

    def _expect(self, token: str) -> None:
        found = self._next()
        if found != token:
            raise UsageError(f"expected {token!r}, found {found or 'the end'!r}", where=f"pipeline {self.text!r}")

    def stages(self) -> list[Stage]:
        import opgraft.passes.pipelines  # noqa: F401 - fills NAMED

        stages: list[Stage] = []
        while self._peek():
            if self._peek() == "(":
                stages.append(self._group())
            else:
                stages += self._named_or_pass()
            if self._peek():
                self._expect(",")
        return stages

    def _group(self) -> Group:
        self._expect("(")
        members: list[NodePass] = []
        while self._peek() != ")":
            for stage in self._named_or_pass():
                if not isinstance(stage, NodePass):
                    raise UsageError(f"{stage.name!r} cannot be in a group", where=f"pipeline {self.text!r}")
                members.append(stage)
            if self._peek() != ")":
                self._expect(",")
        self._expect(")")
        return Group(tuple(members))

    def _named_or_pass(self) -> Sequence[Stage]:
        name = self._next()
        if not re.fullmatch(r"[a-z0-9-]+", name):
            raise UsageError(f"expected a pass, found {name or 'the end'!r}", where=f"pipeline {self.text!r}")
        if name in NAMED and self._peek() != "{":
            return list(NAMED[name]())
        return [make_pass(name, self._options())]

    def _options(self) -> dict[str, str]:
        options: dict[str, str] = {}
        if self._peek() != "{":
            return options
        self._expect("{")
        while self._peek() != "}":
            key = self._next()
            self._expect("=")
            options[key] = self._next()
            if self._peek() != "}":
                self._expect(",")
        self._expect("}")
        return options
