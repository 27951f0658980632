"""The graphs of the goldens, and graphs near them, planted among random ones: what the passes look for."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from backend_forms import _rename, _renamed, is_random, nodes_of
from golden import Golden, parse_model, read_goldens
from golden_mutations import mutate
from onnx import ModelProto, ValueInfoProto
from opgraft.ir.capture_onnx import capture_onnx
from opgraft.ir.errors import OpgraftError
from opgraft.ir.inputs import integer_domain

from fuzz.draw import Draw
from fuzz.kernels import BOOL, FLOATS, INTEGERS, STRING, numpy_type
from fuzz.session import Feed, InProcess
from fuzz.values import Input, Shape, Unfit, Value

_SIZES = ((2, 3), (3, 5), (4, 2), (1, 4), (5, 1), (3, 3), (4, 4), (1, 1), (2, 6))
Bound = dict[str, tuple[int, int]]


@cache
def library() -> dict[str, tuple[Golden, ...]]:
    """Goldens by pass."""
    files = sorted((Path(__file__).parent.parent / "goldens").glob("*.txt"))
    return {file.stem: tuple(read_goldens(file)) for file in files}


def golden_opset(golden: Golden) -> int:
    """The default-domain opset that the golden is written in."""
    return max(int(version) for version in re.findall(r'"(?:ai\.onnx)?"\s*:\s*(\d+)', golden.sections["before"]))


def plant(d: Draw, pass_name: str, runner: InProcess, *, mutated: bool) -> None:
    """Add one golden's graph of this pass, its inputs tied to values of the graph where types and shapes fit.

    It is run by itself first: what the runtime refuses (a mutant, another opset) is not planted, and the shapes of
    its results become known.
    """
    goldens = library()[pass_name]
    golden = d.pick([g for g in goldens if g.kind == "case"] if d.chance(0.6) else goldens)
    model = parse_model(golden.sections["before"], int(d.integer(0, 1 << 30)))
    given: Feed = {}
    _set_opset(model, d.opset)
    if mutated:
        model, given, _ = mutate(model, d.rng)
        _set_opset(model, d.opset)
    if any(is_random(node) for node in nodes_of(model)) or model.graph.sparse_initializer:
        raise Unfit("random, or sparse")
    piece = _Piece(d, model, _fixed(golden) | given)
    piece.run(runner)
    piece.insert(golden.label)


def _set_opset(model: ModelProto, opset: int) -> None:
    for imports in (model.opset_import, *(f.opset_import for f in model.functions)):
        for entry in imports:
            if entry.domain in ("", "ai.onnx"):
                entry.version = opset


def _fixed(golden: Golden) -> Feed:
    lines = [line.partition("=") for line in golden.sections.get("inputs", "").splitlines() if line.strip()]
    return {name.strip(): ast.literal_eval(numbers.strip()) for name, _, numbers in lines}


class _Piece:
    """A model to be planted: its symbolic dims bound, inputs drawn, results known."""

    def __init__(self, d: Draw, model: ModelProto, fixed: Feed) -> None:
        self.d = d
        self.model = model
        self.prefix = d.name("g") + "_"
        self.bound: Bound = {}
        self.tied: dict[str, Value] = {}
        self.own: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.results: list[Value] = []
        defaults = {t.name for t in model.graph.initializer}
        self.inputs = [v for v in model.graph.input if v.name not in defaults or v.name in fixed]
        if any(v.type.WhichOneof("value") != "tensor_type" for v in (*model.graph.input, *model.graph.output)):
            raise Unfit("no tensors")
        for value in self.inputs:
            if value.name in fixed:
                array = np.asarray(fixed[value.name], dtype=numpy_type(value.type.tensor_type.elem_type))
                self._bind(value, (array.shape, array.shape))
                self.own[value.name] = (array, array)
        for value in self.inputs:
            if value.name not in self.own and value.type.tensor_type.elem_type in FLOATS and d.chance(0.7):
                self._tie(value)
        self._draw()

    def _bind(self, value: ValueInfoProto, shapes: tuple[Shape, Shape]) -> bool:
        dims = value.type.tensor_type.shape.dim
        if not value.type.tensor_type.HasField("shape"):
            return True
        if len(dims) != len(shapes[0]):
            return False
        found: Bound = {}
        for dim, pair in zip(dims, zip(*shapes, strict=True), strict=True):
            if dim.dim_param:
                if (self.bound | found).get(dim.dim_param, pair) != pair:
                    return False
                found[dim.dim_param] = pair
            elif dim.HasField("dim_value") and pair != (dim.dim_value, dim.dim_value):
                return False
        self.bound |= found
        return True

    def _tie(self, value: ValueInfoProto) -> None:
        dtype = value.type.tensor_type.elem_type
        fitting = [v for v in self.d.pool if v.dtype == dtype and not v.is_sequence and not v.is_empty]
        for index in self.d.rng.permutation(len(fitting)):
            candidate = fitting[int(index)]
            if value.type.tensor_type.HasField("shape") and self._bind(value, candidate.shapes):
                self.tied[value.name] = candidate
                return

    def _draw(self) -> None:
        """Inputs that nothing is tied to."""
        d = self.d
        waiting = [v for v in self.inputs if v.name not in self.own]
        if not waiting:
            return
        domains = {}
        try:
            domains = {v.name: integer_domain(v) for v in capture_onnx(self.model).graph.inputs}
        except OpgraftError:
            raise Unfit("capture refuses it") from None
        for value in waiting:
            shapes = self._shapes(value)
            dtype = value.type.tensor_type.elem_type
            if value.name in self.tied:
                shapes = self.tied[value.name].shapes
            arrays = []
            for shape in shapes:
                if dtype in INTEGERS:
                    domain = domains[value.name]
                    low, high = (-3 if numpy_type(dtype).kind == "i" else 0, 5) if domain.is_flag else (0, domain.high)
                    arrays.append(d.rng.integers(low, high, size=shape).astype(numpy_type(dtype)))
                else:
                    arrays.append(d.numbers(dtype, shape))
            self.own[value.name] = (arrays[0], arrays[1])

    def _shapes(self, value: ValueInfoProto) -> tuple[Shape, Shape]:
        pairs = []
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value"):
                pairs.append((dim.dim_value, dim.dim_value))
            else:
                pair = self.d.pick(_SIZES)
                pairs.append(self.bound.setdefault(dim.dim_param, pair) if dim.dim_param else pair)
        return tuple(p[0] for p in pairs), tuple(p[1] for p in pairs)

    def run(self, runner: InProcess) -> None:
        handle = runner.try_load(self.model.SerializeToString())
        if handle is None:
            raise Unfit("refused")
        found = [runner.try_run(handle, {n: arrays[i] for n, arrays in self.own.items()}) for i in (0, 1)]
        if found[0] is None:
            raise Unfit("does not run")
        if found[1] is None:
            # Only the first sizes are good: both bindings take them.
            if self.tied and any(not v.is_static for v in self.tied.values()):
                raise Unfit("does not run at the second binding")
            self.own = {n: (arrays[0], arrays[0]) for n, arrays in self.own.items()}
            self.bound = {n: (pair[0], pair[0]) for n, pair in self.bound.items()}
            found[1] = found[0]
        for info in self.model.graph.output:
            first, second = found[0][info.name], found[1][info.name]
            dtype = info.type.tensor_type.elem_type
            if first.ndim != second.ndim or first.size > 4096:
                raise Unfit("another rank at the second binding")
            self.results.append(Value(info.name, dtype, (first.shape, second.shape)))

    def insert(self, label: str) -> None:
        d, model = self.d, self.model
        for entry in model.opset_import:
            if entry.domain not in ("", "ai.onnx"):
                known = d.shared.imports.setdefault(entry.domain, entry.version)
                if known != entry.version:
                    raise Unfit("another version of a domain")
        self._add_functions()
        names = {v.name for v in model.graph.input}
        graph = _renamed(model.graph, self.prefix, set())
        _rename_dims(graph, self.prefix)
        ties = {self.prefix + n: v.name for n, v in self.tied.items()}
        defaults = {t.name for t in graph.initializer}
        main = d.main
        for info in graph.input:
            name = info.name.removeprefix(self.prefix)
            if info.name in ties or name not in names:
                continue
            arrays = self.own.get(name)
            d.shared.inputs.append(self._declare(info, arrays, is_default=info.name in defaults))
            if arrays is not None and main is d:
                d.pool.append(d.shared.inputs[-1].value)
        for tensor in graph.initializer:
            (main if any(v.name == tensor.name for v in graph.input) else d).initializers.append(tensor)
        d.nodes += _tied(graph, ties)
        produced = {o for n in graph.node for o in n.output}
        for value in self.results:
            value.name = self.prefix + value.name
            if value.name in produced:
                d.pool.append(value)
        d.shared.planted.append(label)

    def _add_functions(self) -> None:
        """Under names of their own: another golden may have one of the same name."""
        renamed = {(f.domain, f.name): self.prefix + f.name for f in self.model.functions}
        for node in [*nodes_of(self.model)]:
            node.op_type = renamed.get((node.domain, node.op_type), node.op_type)
        for function in self.model.functions:
            function.name = renamed[function.domain, function.name]
            self.d.shared.functions.append(function)

    def _declare(
        self, info: ValueInfoProto, arrays: tuple[np.ndarray, np.ndarray] | None, *, is_default: bool
    ) -> Input:
        tensor = info.type.tensor_type
        shapes = (arrays[0].shape, arrays[1].shape) if arrays is not None else ((), ())
        dims: list[str | int | None] | None = None
        if tensor.HasField("shape"):
            dims = []
            for dim in tensor.shape.dim:
                named = self.prefix + dim.dim_param if dim.dim_param else None
                dims.append(dim.dim_value if dim.HasField("dim_value") else named)
        value = Value(info.name, tensor.elem_type, shapes)
        keep_numbers = tensor.elem_type in (*INTEGERS, BOOL, STRING) or is_default
        return Input(value, dims, fixed=arrays if keep_numbers else None, is_default=is_default)


def _rename_dims(graph: onnx.GraphProto, prefix: str) -> None:
    """In bodies: a dim of one name is one size in the whole model."""
    for node in graph.node:
        for body in (a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH):
            for value in (*body.input, *body.output, *body.value_info):
                for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
                    dim.dim_param = f"{prefix}{dim.dim_param}" if dim.dim_param else ""
            _rename_dims(body, prefix)


def _tied(graph: onnx.GraphProto, ties: dict[str, str]) -> list[onnx.NodeProto]:
    _rename(graph, ties, "")
    return list(graph.node)
