"""Goldens: what a pass makes of a graph, as text in ONNX's own syntax, executed on both sides.

One file per pass, `<pass-name>.txt`:

    === case: short name {option=1}
    --- inputs                      (optional) fixed values of inputs, where drawn ones would not be accepted
    shape = [2, -1]
    --- before
    <ir_version: 10, opset_import: ["" : 21]> f (float[N, 4] x) => (float[N, 4] y)
    <float[4, 64] w = ["location": "random"]> { ... }
    --- after                       written by `pytest --update-goldens`
    ...
    === near miss: short name       the pass must leave this graph as it is
    --- reason                      (optional) part of the expected NoMatch
    --- before
    ...

Lines from `#` on are comments. Initializers above 16 elements are `["location": "random"]` (normal numbers) or
`["location": "random-positive"]` (0.5 to 1.5), drawn from a seed and their name; new ones are printed as their hash.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes  # noqa: F401 - registers the small floating-point types
import numpy as np
import onnx
import onnx.checker
import onnx.numpy_helper
import onnx.parser
import onnx.printer
import onnx.shape_inference
import onnx_ir
from opgraft.ir.capture_onnx import capture_onnx
from opgraft.ir.compare import float32_error, same_bits, within_tolerance
from opgraft.ir.inputs import float_array, integer_domain, required_inputs
from opgraft.ir.program import Program
from opgraft.ir.save import model_bytes
from opgraft.passes._pass import Contract, PassContext
from opgraft.passes._pipeline import Pipeline
from opgraft.passes.opset.schemas import NEWEST_OPSET

sys.path.insert(0, str(Path(__file__).parent))
from golden_execution import Float64, kernels, load, run_model, run_session

MAX_PRINTED_ELEMENTS = 16
SEEDS = (0, 1)
# What the symbolic dims of a model are bound to, in order of their appearance: all different, with one, and equal.
SIZES = ((2, 3, 5, 7), (1, 4, 1, 6), (4, 4, 4, 4))
STYLES = ("random", "signed zeros", "extreme", "not finite")


@dataclass
class Golden:
    """One case or near miss of a file."""

    file: Path
    kind: str
    name: str
    options: str
    sections: dict[str, str] = field(default_factory=dict)

    @property
    def pass_name(self) -> str:
        return self.file.stem

    @property
    def pipeline(self) -> str:
        return self.pass_name + self.options

    @property
    def label(self) -> str:
        return f"{self.pass_name}: {self.name}"


_TITLE = re.compile(r"=== (case|near miss): (.*?)\s*(\{.*\})?$")


def read_goldens(file: Path) -> list[Golden]:
    """The cases of a file in order. Raises ValueError naming the line that is not part of the format."""
    goldens: list[Golden] = []
    section = ""
    for number, line in enumerate(file.read_text().splitlines(), 1):
        title = _TITLE.match(line)
        if title:
            goldens.append(Golden(file, title[1], title[2], title[3] or ""))
            section = ""
        elif line.startswith("---") and goldens:
            section = line[3:].strip()
            if section not in ("inputs", "reason", "before", "after"):
                raise ValueError(f"{file.name}:{number}: unknown section {section!r}")
            goldens[-1].sections[section] = ""
        elif section:
            goldens[-1].sections[section] += line + "\n"
        elif line.strip() and not line.startswith("#"):
            raise ValueError(f"{file.name}:{number}: text outside a section: {line!r}")
    for golden in goldens:
        golden.sections = {k: v.strip("\n") for k, v in golden.sections.items()}
        if not golden.sections.get("before"):
            raise ValueError(f"{file.name}: {golden.name!r} has no '--- before'")
    return goldens


def write_goldens(file: Path, goldens: list[Golden]) -> None:
    """Write the file again with comments and order kept, its sections as they are in `goldens`."""
    lines = file.read_text().splitlines()
    head = lines[: next(i for i, x in enumerate(lines) if x.startswith("==="))]
    for golden in goldens:
        head.append(f"=== {golden.kind}: {golden.name}" + (f" {golden.options}" if golden.options else ""))
        for name in ("inputs", "reason", "before", "after"):
            if name in golden.sections:
                head += [f"--- {name}", golden.sections[name]]
        head.append("")
    file.write_text("\n".join(head).rstrip("\n") + "\n")


def parse_model(text: str, seed: int) -> onnx.ModelProto:
    """The model of a section, its random initializers drawn."""
    model = onnx.parser.parse_model("\n".join(line.partition("#")[0] for line in text.splitlines()))
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            drawn = _draw(tensor, tensor.external_data[0].value, seed)
            tensor.CopyFrom(onnx_ir.to_proto(onnx_ir.Tensor(drawn, name=tensor.name)))
    return model


def _draw(tensor: onnx.TensorProto, how: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())])
    dtype = onnx_ir.DataType(tensor.data_type).numpy()
    if how == "random-positive":
        return (rng.random(tuple(tensor.dims)) + 0.5).astype(dtype)
    if how != "random":
        raise ValueError(f"initializer {tensor.name!r}: location {how!r} is not random or random-positive")
    if dtype.kind in "iub":
        return rng.integers(0, 8, size=tuple(tensor.dims)).astype(dtype)
    return rng.standard_normal(tuple(tensor.dims)).astype(dtype)


def print_model(program: Program, drawn: dict[str, str]) -> str:
    """The text of a program; `drawn` says how unchanged large initializers were made."""
    model = onnx.ModelProto.FromString(model_bytes(program))
    declared = [info for info in model.graph.value_info if info.name not in {t.name for t in model.graph.initializer}]
    del model.graph.value_info[:]
    model.graph.value_info.extend(declared)
    for tensor in model.graph.initializer:
        if int(np.prod(tensor.dims)) > MAX_PRINTED_ELEMENTS:
            digest = hashlib.sha256(onnx.numpy_helper.to_array(tensor).tobytes()).hexdigest()[:8]
            _refer(tensor, drawn.get(f"{tensor.name} {digest}", f"hash {digest}"))
    for key in ("producer_name", "producer_version"):
        model.ClearField(key)
    return "\n".join(line.rstrip() for line in onnx.printer.to_text(model).strip().splitlines())


def _refer(tensor: onnx.TensorProto, text: str) -> None:
    kept = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
    kept.data_location = onnx.TensorProto.EXTERNAL
    kept.external_data.add(key="location", value=text)
    tensor.CopyFrom(kept)


def drawn_initializers(text: str, seed: int) -> dict[str, str]:
    """`name digest` -> how it was drawn."""
    source = onnx.parser.parse_model("\n".join(line.partition("#")[0] for line in text.splitlines()))
    how = {t.name: t.external_data[0].value for t in source.graph.initializer if t.external_data}
    found = {}
    for tensor in parse_model(text, seed).graph.initializer:
        digest = hashlib.sha256(onnx.numpy_helper.to_array(tensor).tobytes()).hexdigest()[:8]
        if tensor.name in how:
            found[f"{tensor.name} {digest}"] = how[tensor.name]
    return found


@dataclass
class Result:
    """What the pass did to a golden's model."""

    before: Program
    after: Program
    context: PassContext
    drawn: dict[str, str]
    """How the initializers of the original were drawn, for `print_model`."""

    @property
    def text(self) -> str:
        return print_model(self.after, self.drawn)


def evaluate(model: bytes) -> dict[str, np.ndarray]:
    """The constant evaluator: the reference executor without inputs."""
    return run_model(model, {})


def apply_pass(golden: Golden, seed: int = 0) -> Result:
    """Run the golden's pass alone, to its fixpoint."""
    text = golden.sections["before"]
    program = capture_onnx(parse_model(text, seed))
    before = program.clone()
    context = PassContext(program, evaluate=evaluate, newest_opset=NEWEST_OPSET, kernels=kernels, keep_near_misses=True)
    Pipeline.parse(golden.pipeline).run(program, context)
    result = Result(before, program, context, drawn_initializers(text, seed))
    check_result(result, golden)
    return result


def check_result(result: Result, golden: Golden) -> None:
    """The result is a valid model with consistent shapes, and the pass has nothing left to do in it."""
    before, data = model_bytes(result.before), model_bytes(result.after)
    # What the original does not pass (unknown operators, functions of other versions) says nothing about the pass.
    if _passes(before, infer=False):
        onnx.checker.check_model(data)
    if _passes(before, infer=True):
        onnx.shape_inference.infer_shapes(data, check_type=True, strict_mode=True)
    again = capture_onnx(data)
    context = PassContext(again, evaluate=evaluate, newest_opset=NEWEST_OPSET, kernels=kernels)
    Pipeline.parse(golden.pipeline).run(again, context)
    if context.rewrites:
        sites = ", ".join(r.site for r in context.rewrites)
        raise AssertionError(f"a second run of {golden.pass_name} still rewrites {sites}")


def _passes(model: bytes, *, infer: bool) -> bool:
    try:
        if infer:
            onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        else:
            onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def draw_inputs(program: Program, fixed: str, seed: int) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Every style at every binding of the symbolic dims; `fixed` holds lines `name = numbers`."""
    given = {
        name.strip(): ast.literal_eval(numbers.strip())
        for name, _, numbers in (line.partition("=") for line in fixed.splitlines() if line.strip())
    }
    values = required_inputs(program)
    symbolic = any(not isinstance(d, int) for v in values for d in v.shape or ())
    for sizes in SIZES if symbolic else SIZES[:1]:
        for style in STYLES:
            rng = np.random.default_rng([seed, *sizes, STYLES.index(style)])
            bound: dict[str, int] = {}
            arrays = {}
            for value in values:
                name = value.name or ""
                dims = [
                    d if isinstance(d, int) else bound.setdefault(str(d), sizes[len(bound) % len(sizes)])
                    for d in value.shape or ()
                ]
                if name in given:
                    arrays[name] = np.asarray(given[name], dtype=value.dtype.numpy())
                else:
                    arrays[name] = _draw_input(value, tuple(dims), style, rng)
            yield f"seed {seed}, {style}, sizes {sizes if symbolic else 'static'}", arrays


def _draw_input(value: onnx_ir.Value, dims: tuple[int, ...], style: str, rng: np.random.Generator) -> np.ndarray:
    dtype = value.dtype
    if dtype == onnx_ir.DataType.STRING:
        return rng.choice(np.array(["", "a", "bc"], dtype=object), size=dims)
    if dtype == onnx_ir.DataType.BOOL:
        return rng.integers(0, 2, size=dims).astype(bool)
    if dtype.is_integer():
        domain = integer_domain(value)
        low, high = (-3 if dtype.is_signed() else 0, 5) if domain.is_flag else (domain.low, domain.high)
        return rng.integers(low, high, size=dims).astype(dtype.numpy())
    return float_array(dims, style, rng).astype(dtype.numpy())


def differences(golden: Golden, contract: Contract) -> list[str]:
    """Where the two sides compute something else, over all seeds, styles and sizes."""
    runs = [run for seed in SEEDS for run in _runs(golden, contract, seed)]
    if not runs:
        raise AssertionError("the original accepts none of the drawn inputs; fix some with '--- inputs'")
    found = []
    for run in runs:
        if contract is Contract.NUMERIC:
            # A few numbers are a poor estimate of a rounding error: it is the largest over all runs of one magnitude.
            errors = {n: max(r.errors.get(n, 0.0) for r in runs if r.is_extreme == run.is_extreme) for n in run.errors}
            wrong = within_tolerance(run.expected, run.actual, errors)
        else:
            wrong = same_bits(run.expected, run.actual)
        found += [f"{run.label}: {difference}" for difference in wrong]
    return found


@dataclass
class _Run:
    label: str
    is_extreme: bool
    expected: dict[str, np.ndarray]
    actual: dict[str, np.ndarray]
    errors: dict[str, float]
    """Per output, the original's own error in float32."""


def _runs(golden: Golden, contract: Contract, seed: int) -> Iterator[_Run]:
    result = apply_pass(golden, seed)
    original, candidate = load(model_bytes(result.before)), load(model_bytes(result.after))
    wide = Float64(result.before) if contract is Contract.NUMERIC else None
    for label, inputs in draw_inputs(result.before, golden.sections.get("inputs", ""), seed):
        try:
            expected = run_session(original, inputs)
        except Exception:  # noqa: BLE001 - sizes that the original does not take are no evidence
            continue
        errors = float32_error(expected, wide.run(inputs)) if wide is not None else {}
        yield _Run(label, "extreme" in label, expected, run_session(candidate, inputs), errors)
