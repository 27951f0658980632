"""The ONNX backend tests as cases: a model, its recorded inputs and outputs, how to run and compare."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper

RELEASES = [
    "1.2.2",
    "1.3.0",
    "1.4.1",
    "1.5.0",
    "1.6.0",
    "1.7.0",
    "1.8.1",
    "1.9.0",
    "1.10.2",
    "1.12.0",
    "1.13.1",
    "1.14.1",
    "1.15.0",
    "1.16.0",
    "1.17.0",
    "1.18.0",
    "1.19.1",
    "1.20.1",
    "1.21.0",
    "1.22.0",
]
"""Releases of the onnx package whose wheels hold the recorded node tests of the then newest operators."""
PLATFORMS = [
    "manylinux1",
    "manylinux2010",
    "manylinux2014",
    "manylinux_2_17",
    "manylinux_2_27",
    "manylinux_2_28",
]
SUB_BYTE = {onnx.TensorProto.DataType.Value(n) for n in ["INT2", "UINT2", "INT4", "UINT4", "FLOAT4E2M1"]}
PYTHONS = ("3.11", "3.8", "3.6")


@dataclass
class Case:
    """One backend test: every data set is (inputs, outputs), values in the order of the graph."""

    name: str
    source: str
    model: onnx.ModelProto
    data_sets: list[tuple[list[Any], list[Any]]]
    rtol: float = 1e-3
    """The backend runner's own tolerance, as is `atol`."""
    atol: float = 1e-7
    skipped: str = ""

    @property
    def opset(self) -> int | None:
        return next((o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx")), None)

    @property
    def key(self) -> str:
        return hashlib.sha256(self.model.SerializeToString(deterministic=True)).hexdigest()[:16]


def installed_node_cases() -> Iterator[Case]:
    """The node and model tests that the installed onnx package generates."""
    from onnx.backend.test.case.model import collect_testcases as collect_models
    from onnx.backend.test.case.node import collect_testcases

    for test in [*collect_testcases(None), *collect_models()]:
        if test.model is not None and test.data_sets:
            sets = [([*map(_array, given)], [*map(_array, wanted)]) for given, wanted in test.data_sets]
            source = f"onnx {onnx.__version__} generated"
            yield Case(test.name, source, test.model, sets, test.rtol, test.atol)


def _array(value: Any) -> Any:
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def installed_file_cases() -> Iterator[Case]:
    """The recorded tests beside the installed onnx package: simple and converted from old torch."""
    root = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for kind in ("simple", "pytorch-converted", "pytorch-operator", "node"):
        for path in sorted((root / kind).glob("*/model.onnx")):
            files = {p.relative_to(root).as_posix(): p.read_bytes for p in path.parent.rglob("*.pb")}
            yield _case(path.parent.relative_to(root).as_posix(), "onnx installed", path.read_bytes(), files)


def release_cases(wheel: Path) -> Iterator[Case]:
    """The recorded tests inside the wheel of an older onnx release."""
    with zipfile.ZipFile(wheel) as archive:
        prefix = "onnx/backend/test/data/"
        names = [n for n in archive.namelist() if n.startswith(prefix)]
        by_folder: dict[str, dict[str, Any]] = {}
        for name in names:
            short = name[len(prefix) :]
            by_folder.setdefault("/".join(short.split("/")[:2]), {})[short] = lambda n=name: archive.read(n)
        release = re.match(r"onnx-([0-9.]+)-", wheel.name)
        for folder, files in sorted(by_folder.items()):
            if f"{folder}/model.onnx" in files:
                source = f"onnx {release.group(1) if release else wheel.name}"
                yield _case(folder, source, files[f"{folder}/model.onnx"](), files)


def fetch_wheel(release: str, folder: Path) -> Path | None:
    """Download the wheel of an onnx release for its test data; None when no index offers one."""
    for found in folder.glob(f"onnx-{release}-*.whl"):
        return found
    platforms = [arg for p in PLATFORMS for arg in ("--platform", f"{p}_x86_64")]
    for python in PYTHONS:
        command = [sys.executable, "-m", "pip", "download", f"onnx=={release}", "--no-deps", "-q"]
        command += [
            "--only-binary",
            ":all:",
            "--python-version",
            python,
            "--implementation",
            "cp",
            *platforms,
        ]
        done = subprocess.run([*command, "-d", str(folder)], capture_output=True, check=False)
        if done.returncode == 0:
            return next(folder.glob(f"onnx-{release}-*.whl"), None)
    return None


def _case(name: str, source: str, data: bytes, files: dict[str, Any]) -> Case:
    model = onnx.load_model_from_string(data)
    case = Case(name, source, model, [])
    sets: dict[str, dict[str, dict[int, str]]] = {}
    for path in files:
        match = re.search(r"(test_data_set_\d+)/(input|output)_(\d+)\.pb$", path)
        if match:
            sets.setdefault(match[1], {"input": {}, "output": {}})[match[2]][int(match[3])] = path
    try:
        for _, groups in sorted(sets.items()):
            loaded = []
            for kind, infos in (("input", model.graph.input), ("output", model.graph.output)):
                paths = groups[kind]
                loaded.append([_value(files[paths[i]](), infos[i].type) for i in sorted(paths)])
            case.data_sets.append((loaded[0], loaded[1]))
    except Exception as problem:  # noqa: BLE001 - test data of an early release that no longer parses
        case.skipped = f"data unreadable: {type(problem).__name__}: {problem}"[:200]
    if not case.data_sets and not case.skipped:
        case.skipped = "no recorded data in protobuf form"
    return case


def _value(data: bytes, type_proto: onnx.TypeProto) -> Any:
    kind = type_proto.WhichOneof("value")
    if kind == "sequence_type":
        return onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if kind == "optional_type":
        return onnx.numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(data))


@dataclass
class Runs:
    """Outputs of a model on every data set, and which executor gave them."""

    executor: str
    outputs: list[list[Any]] = field(default_factory=list)
    problem: str = ""


def run_model(model: onnx.ModelProto, data_sets: list[tuple[list[Any], list[Any]]]) -> Runs:
    """Run under ONNX Runtime with optimizations off; under onnx.reference where it has no kernel."""
    runs = run_onnxruntime(model, data_sets)
    if not runs.problem:
        return runs
    fallback = _run_reference(model, data_sets)
    if fallback.problem:
        fallback.problem = f"onnxruntime: {runs.problem[:300]} | reference: {fallback.problem[:200]}"
    return fallback


def run_onnxruntime(model: onnx.ModelProto, data_sets: list[tuple[list[Any], list[Any]]]) -> Runs:
    import onnxruntime as ort

    runs = Runs("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [i.name for i in session.get_inputs()]
        for inputs, _ in data_sets:
            feed = {n: _feedable(v) for n, v in zip(names, inputs, strict=False)}
            runs.outputs.append(session.run(None, feed))
    except Exception as problem:  # noqa: BLE001 - the runtime raises many types; the text is the evidence
        runs.problem = str(problem) or type(problem).__name__
    return runs


def _feedable(value: Any) -> Any:
    """NumPy scalars as arrays; element types that NumPy lacks go through an OrtValue of the ONNX type."""
    import onnxruntime as ort

    if isinstance(value, np.generic):
        value = np.asarray(value)
    if isinstance(value, np.ndarray) and value.dtype.kind == "V":
        onnx_type = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        if onnx_type in SUB_BYTE:
            raise TypeError(f"{value.dtype} cannot be fed: the runtime reads it packed")
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(value, onnx_type)
    return value


def _run_reference(model: onnx.ModelProto, data_sets: list[tuple[list[Any], list[Any]]]) -> Runs:
    from onnx.reference import ReferenceEvaluator

    runs = Runs("onnx.reference")
    try:
        evaluator = ReferenceEvaluator(model)
        for inputs, _ in data_sets:
            feed = dict(zip(evaluator.input_names, inputs, strict=False))
            runs.outputs.append(list(evaluator.run(None, feed)))
    except Exception as problem:  # noqa: BLE001 - as above
        runs.problem = f"{type(problem).__name__}: {problem}"
    return runs


def difference(case: Case, runs: Runs) -> str:
    """How the outputs differ from the recorded ones; empty when they agree."""
    for number, ((_, expected), outputs) in enumerate(zip(case.data_sets, runs.outputs, strict=True)):
        for index, (want, got) in enumerate(zip(expected, outputs, strict=False)):
            found = compare(want, got, case.rtol, case.atol)
            if found:
                return f"set {number}, output {index}: {found}"
    return ""


def compare(want: Any, got: Any, rtol: float, atol: float) -> str:
    if want is None or got is None:
        return "" if want is got else f"{want} against {got}"
    if isinstance(want, list | tuple):
        if len(want) != len(got):
            return f"length {len(want)} against {len(got)}"
        return next((d for w, g in zip(want, got, strict=True) if (d := compare(w, g, rtol, atol))), "")
    want, got = np.asarray(want), np.asarray(got)
    if want.shape != got.shape:
        return f"shape {want.shape} against {got.shape}"
    if want.dtype.kind in "OSU" or got.dtype.kind in "OSU":
        same = [_text(a) == _text(b) for a, b in zip(want.ravel(), got.ravel(), strict=True)]
        return "" if all(same) else "strings differ"
    if want.dtype.kind == "V" and want.dtype.itemsize == got.dtype.itemsize == 1 and got.dtype == np.uint8:
        got = got.view(want.dtype)  # the runtime's float8 outputs come as bytes
    if want.dtype != got.dtype:
        return f"type {want.dtype} against {got.dtype}"
    if want.dtype.kind not in "fc" and want.dtype.kind in "iub":
        return "" if np.array_equal(want, got) else "integers differ"
    kind = np.complex128 if want.dtype.kind == "c" else np.float64
    close = np.isclose(got.astype(kind), want.astype(kind), rtol=rtol, atol=atol, equal_nan=True)
    if np.all(close):
        return ""
    worst = np.nanmax(np.abs(got.astype(kind) - want.astype(kind)))
    return f"{np.count_nonzero(~close)} of {close.size} values, worst by {worst:.3g}"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def to_ir(model: onnx.ModelProto) -> Any:
    import onnx_ir

    return onnx_ir.from_proto(onnx.load_model(io.BytesIO(model.SerializeToString())))
