"""Instruments of a pipeline: print, time, verify, dump, stop. Passes know nothing of them.

    Pipeline.parse("simplify", ...) with `pipeline.instruments = [Timing(), PrintGraph(file, only_changed=True)]`
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import onnx_ir
from opgraft.ir.errors import ContractError, UsageError
from opgraft.ir.program import Program
from opgraft.passes._pass import PassContext
from opgraft.passes._pipeline import Instrument, Stage, StageResult

# Larger tensors are printed as their shape: text is for reading, and must not read weights.
_MAX_PRINTED_ELEMENTS = 16


def program_text(program: Program) -> str:
    """The program in ONNX's textual syntax; of tensors above 16 elements only type and shape, their data unread."""
    import onnx.printer

    model = program.model.clone()
    copy = Program(model)
    for graph in copy.scopes():
        for value in graph.initializers.values():
            value.const_value = _elide(value.const_value)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if not attribute.is_ref() and attribute.type == onnx_ir.AttributeType.TENSOR:
                    tensor = _elide(attribute.as_tensor())
                    if tensor is not None:
                        node.attributes[name] = onnx_ir.AttrTensor(name, tensor)
    proto = onnx_ir.to_proto(model)
    initializers = {tensor.name for tensor in proto.graph.initializer}
    declared = [info for info in proto.graph.value_info if info.name not in initializers]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(declared)
    return "\n".join(line.rstrip() for line in onnx.printer.to_text(proto).splitlines()) + "\n"


def _elide(tensor: onnx_ir.TensorProtocol | None) -> onnx_ir.TensorProtocol | None:
    if tensor is None or tensor.size <= _MAX_PRINTED_ELEMENTS:
        return tensor
    shape = onnx_ir.Shape(d for d in tensor.shape if isinstance(d, int))
    return onnx_ir.ExternalTensor("elided", None, None, tensor.dtype, shape=shape, name=tensor.name or "")


@dataclass
class PrintGraph(Instrument):
    """Prints the graph before and after stages."""

    file: TextIO = field(default_factory=lambda: sys.stderr)
    only: str = ""
    """The name of the one stage to print around; every stage when empty."""
    only_changed: bool = True
    """Print only around stages that changed something."""
    _before: str = ""

    def before_stage(self, stage: Stage, program: Program, context: PassContext) -> None:
        if self.only in ("", stage.name):
            self._before = program_text(program)

    def after_stage(self, stage: Stage, program: Program, context: PassContext, result: StageResult) -> None:
        if self.only not in ("", stage.name):
            return
        after = program_text(program)
        if self.only_changed and after == self._before:
            return
        print(f"# before {stage.name}\n{self._before}\n# after {stage.name}\n{after}", file=self.file)


@dataclass
class Timing(Instrument):
    """Collects what each stage did and how long it took, in order."""

    results: list[StageResult] = field(default_factory=list)

    def after_stage(self, stage: Stage, program: Program, context: PassContext, result: StageResult) -> None:
        self.results.append(result)

    def table(self) -> str:
        """One line per stage: milliseconds, rewrites, name."""
        return "\n".join(f"{r.seconds * 1e3:9.2f} ms {r.n_rewrites:7d}  {r.name}" for r in self.results)


@dataclass
class VerifyEach(Instrument):
    """Compares the program before and after every stage that rewrote something.

    `compare(before, after)` returns what is wrong, or an empty text. Raises ContractError naming the stage.
    """

    compare: Callable[[Program, Program], str]
    _before: Program | None = None

    def before_stage(self, stage: Stage, program: Program, context: PassContext) -> None:
        self._before = program.clone()

    def after_stage(self, stage: Stage, program: Program, context: PassContext, result: StageResult) -> None:
        before, self._before = self._before, None
        if before is None or not result.n_rewrites:
            return
        wrong = self.compare(before, program)
        if wrong:
            raise ContractError(
                f"changes what the model computes: {wrong}", where=f"stage {stage.name}", remedy="disable the pass"
            )


@dataclass
class Dump(Instrument):
    """Writes the program after every stage that changed something: `<folder>/03-fold-constants.onnx.txt`."""

    folder: Path
    _count: int = 0

    def before_stage(self, stage: Stage, program: Program, context: PassContext) -> None:
        if self._count == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "00-input.onnx.txt").write_text(program_text(program))

    def after_stage(self, stage: Stage, program: Program, context: PassContext, result: StageResult) -> None:
        self._count += 1
        if not result.n_rewrites:
            return
        name = stage.name if "(" not in stage.name else "group"
        (self.folder / f"{self._count:02d}-{name}.onnx.txt").write_text(program_text(program))


@dataclass
class StopAfter(Instrument):
    """Ends the pipeline after the first stage that is, or holds, the pass of this name."""

    name: str

    def after_stage(self, stage: Stage, program: Program, context: PassContext, result: StageResult) -> bool:
        names = {p.name for p in getattr(stage, "passes", ())} | {stage.name}
        return self.name in names


def bisect_rewrites(is_right: Callable[[int], bool], n_rewrites: int) -> int:
    """The number of the first rewrite that makes the program wrong, counted from 1.

    `is_right(n)` runs the pipeline with `PassContext(max_rewrites=n)` and judges the result. Raises UsageError when
    the program is wrong without any rewrite, or right with all `n_rewrites` of them: then no rewrite is to blame.
    """
    if not is_right(0):
        raise UsageError("the program is wrong before the first rewrite", remedy="check the comparison itself")
    if is_right(n_rewrites):
        raise UsageError(f"the program is right after all {n_rewrites} rewrites", remedy="there is nothing to bisect")
    right, wrong = 0, n_rewrites
    while wrong - right > 1:
        middle = (right + wrong) // 2
        if is_right(middle):
            right = middle
        else:
            wrong = middle
    return wrong
