"""Targets: the machines and runtimes a model is optimized for, as data.

A target is one TOML file in `targets/`, plus `cpu`, which is this machine. Every figure carries its basis:
"measured" (here, by a micro-benchmark), "data sheet" or "theoretical" (arithmetic on the maker's numbers, an
upper bound), or "estimate". Nothing is called measured that was not measured on this machine.
"""

from __future__ import annotations

import difflib
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from opgraft.ir.errors import UsageError

HOST = "cpu"
BASES = ("measured", "data sheet", "theoretical", "estimate")


@dataclass(frozen=True)
class Figure:
    """A number with where it comes from."""

    value: float
    basis: str
    """One of BASES."""
    source: str = ""


@dataclass(frozen=True)
class Peaks:
    """The ceilings of a machine: what no operator exceeds."""

    threads: int
    flops_per_s: Mapping[str, Figure] = field(hash=False)
    """Multiply-adds of large matrix products, two FLOPs each, per element type ("float32", "int8")."""
    bytes_per_s: tuple[tuple[int, Figure], ...]
    """(largest working set in bytes, bandwidth), ascending; the last entry stands for all larger ones."""
    launch_s: Figure
    """Seconds the runtime spends per node besides its work."""

    def arithmetic(self, dtype: str) -> Figure:
        """The peak for an element type; float32's where the type has none of its own."""
        same = {"uint8": "int8", "int4": "int8", "uint4": "int8"}.get(dtype, dtype)
        return self.flops_per_s.get(same, self.flops_per_s["float32"])

    def bandwidth(self, working_set_bytes: float) -> Figure:
        for limit, figure in self.bytes_per_s:
            if working_set_bytes <= limit:
                return figure
        return self.bytes_per_s[-1][1]


@dataclass(frozen=True)
class Target:
    """One kind of device with one runtime."""

    name: str
    description: str
    kind: str
    """"cpu", "gpu" or "edge"."""
    runtime: str
    execution_provider: str
    isa: tuple[str, ...]
    """Instruction-set features that kernels may use, in the spelling of the Linux kernel."""
    cores: int
    memory_bytes: int
    newest_opset: int
    """Newest version of the standard operator set that the runtime executes."""
    is_host: bool = False
    peaks: Peaks | None = None
    """None for this machine until measured."""

    @classmethod
    def load(cls, name: str) -> Target:
        """The target of that name.

        Raises UsageError for a name that is not known.
        """
        if name == HOST:
            return _detect_host()
        names = known_targets()
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UsageError(f"unknown target {name!r}", remedy=f"{hint}known targets: {', '.join(names)}")
        import tomllib

        text = _target_file(name).read_text(encoding="utf-8")
        return _parse_target(name, tomllib.loads(text))

    def with_peaks(self, peaks: Peaks) -> Target:
        return replace(self, peaks=peaks)

    def describe(self) -> str:
        """A few lines for people: what it is, and each figure with its basis."""
        lines = [
            f"{self.name}: {self.description}",
            f"  {self.kind}, {self.runtime} {self.execution_provider}, opset <= {self.newest_opset}, "
            f"{self.cores} cores, {self.memory_bytes / 2**30:.1f} GiB, isa {' '.join(self.isa) or 'unknown'}",
        ]
        if self.peaks is None:
            return "\n".join([*lines, "  peaks: not measured yet"])
        for dtype, figure in self.peaks.flops_per_s.items():
            lines.append(f"  {dtype}: {figure.value / 1e9:.0f} GFLOP/s ({_basis(figure)})")
        for limit, figure in self.peaks.bytes_per_s:
            reach = f"up to {limit / 2**20:g} MiB" if limit < _UNBOUNDED else "memory"
            lines.append(f"  {reach}: {figure.value / 1e9:.0f} GB/s ({_basis(figure)})")
        launch = self.peaks.launch_s
        lines.append(f"  launch: {launch.value * 1e6:.2g} us per node ({_basis(launch)})")
        return "\n".join(lines)


# "No limit" as an integer, so that working sets compare with it.
_UNBOUNDED = 2**62


def known_targets() -> tuple[str, ...]:
    """All target names, this machine first."""
    files = resources.files("opgraft.ir").joinpath("targets").iterdir()
    return (HOST, *sorted(entry.name[:-5] for entry in files if entry.name.endswith(".toml")))


def _target_file(name: str) -> Any:
    return resources.files("opgraft.ir").joinpath("targets", f"{name}.toml")


def _basis(figure: Figure) -> str:
    return f"{figure.basis}: {figure.source}" if figure.source else figure.basis


def _parse_target(name: str, data: dict[str, Any]) -> Target:
    peaks = data["peaks"]
    return Target(
        name=name,
        description=data["description"],
        kind=data["kind"],
        runtime=data["runtime"],
        execution_provider=data["execution_provider"],
        isa=tuple(data["isa"]),
        cores=data["cores"],
        memory_bytes=data["memory_gib"] * 2**30,
        newest_opset=data["newest_opset"],
        peaks=Peaks(
            threads=peaks["threads"],
            flops_per_s={dtype: _figure(entry) for dtype, entry in peaks["flops_per_s"].items()},
            bytes_per_s=tuple(
                (entry.get("working_set_bytes", _UNBOUNDED), _figure(entry)) for entry in peaks["bytes_per_s"]
            ),
            launch_s=_figure(peaks["launch_s"]),
        ),
    )


def _figure(entry: dict[str, Any]) -> Figure:
    figure = Figure(float(entry["value"]), entry["basis"], entry["source"])
    if figure.basis not in BASES or figure.value <= 0:
        raise ValueError(f"target figure {entry} has a bad basis or value")
    return figure


@lru_cache(maxsize=1)
def _detect_host() -> Target:
    model, flags = _processor()
    return Target(
        name=HOST,
        description=f"this machine: {model}",
        kind="cpu",
        runtime="onnxruntime",
        execution_provider="CPUExecutionProvider",
        isa=flags,
        cores=_usable_cores(),
        memory_bytes=_memory_bytes(),
        newest_opset=_newest_opset(),
        is_host=True,
    )


def processor_model() -> str:
    """The processor's name, as the operating system gives it."""
    return _processor()[0]


# What a kernel may be compiled for; the other flags are the operating system's business.
_VECTOR_FLAGS = ("sse4", "avx", "amx", "fma", "f16c", "asimd", "fphp", "sve", "sme", "i8mm", "bf16", "neon")


def _processor() -> tuple[str, tuple[str, ...]]:
    """Model name and vector features; the features are empty where the system does not list them."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip().lower(), value.strip())
    except OSError:
        pass
    # x86 says "flags", Arm "Features" and no model name.
    flags = fields.get("flags") or fields.get("features") or ""
    model = fields.get("model name") or platform.processor() or platform.machine()
    return model, tuple(sorted(flag for flag in flags.split() if flag.startswith(_VECTOR_FLAGS) and flag != "smep"))


def _usable_cores() -> int:
    """Cores this process may run on, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


def _newest_opset() -> int:
    """The newest opset that a session of the installed runtime accepts, found by asking it."""
    import onnx
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph

    value = onnx.helper.make_tensor_value_info
    float_type = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "opset_probe",
        [value("x", float_type, [1])],
        [value("y", float_type, [1])],
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    for opset in range(onnx.defs.onnx_opset_version(), 10, -1):
        imports = [onnx.helper.make_opsetid("", opset)]
        # IR version 8 is old enough for every runtime; the opset alone is asked about.
        model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except (Fail, InvalidArgument, InvalidGraph):
            continue
        return opset
    raise UsageError("the installed onnxruntime runs no known opset", remedy="reinstall onnxruntime")
