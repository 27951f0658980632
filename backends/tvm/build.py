"""Builds one shared library of ONNX Runtime custom operators out of a set of elementwise regions.

TVM compiles the kernels to one object file, g++ compiles the bridge and links the two. The result needs no
TVM at run time. It is kept in the user's cache folder under a key of everything it was made from.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from opgraft.backends import cache
from opgraft.backends.tvm.compile_object import UNKNOWN_CPU
from opgraft.ir.errors import ExecutionError, MissingExtraError, OutputError, UsageError
from opgraft.kernels.fused_elementwise import ElementwiseRegion, schedule

BRIDGE = Path(__file__).parent / "bridge"
MAX_KERNELS = 1024
# The size of the bridge's operator table.

_TIME_LIMIT_S = 600
_TABLE = "kernel_table.cc"
_COMPILE_FLAGS = (
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-Wall",
)
_LINK_FLAGS = ("-shared", "-s", "-Wl,--as-needed", "-Wl,--build-id=none", "-Wl,-z,noexecstack")
_FLAGS = (*_COMPILE_FLAGS, *_LINK_FLAGS)
# Only these leave the library; two libraries with kernels of one name must not see each other.
_EXPORTS = "{ global: RegisterCustomOps; opgraft_kernel_calls; opgraft_kernel_run; local: *; };\n"


def build_library(
    regions: Sequence[ElementwiseRegion], *, target_cpu: str | None = None, cache_dir: Path | None = None
) -> Path:
    """The library holding `opgraft.kernels::elementwise_<digest>` for each region, built unless cached.

    `target_cpu` is an LLVM processor name of this machine's architecture; the machine's own by default.

    Raises: MissingExtraError without TVM or g++, UsageError for a processor LLVM does not know,
    ExecutionError when a compiler fails, OutputError when the cache folder cannot be written.
    """
    unique = sorted({region.symbol: region for region in regions}.values(), key=lambda region: region.symbol)
    if not 0 < len(unique) <= MAX_KERNELS:
        raise UsageError(f"{len(unique)} kernels for one library, which holds 1 to {MAX_KERNELS}")
    compiler = _find_compiler()
    versions = _tvm_versions()
    sources = {path.name: path.read_text(encoding="utf-8") for path in sorted(BRIDGE.iterdir()) if path.is_file()}
    sources[_TABLE] = _kernel_table(unique)
    script = schedule(unique)
    cpu = target_cpu or "host"
    processor = _host_processor() if target_cpu is None else target_cpu
    key = repr((script, sources, versions, _compiler_version(compiler), _FLAGS, platform.machine(), processor))
    folder = cache_dir if cache_dir is not None else cache.cache_dir() / "kernels"
    library = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.so"
    if library.is_file():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as scratch:
            built = _build(Path(scratch), script, sources, compiler, cpu)
            # Same folder, hence same file system: another process sees the whole library or none.
            os.replace(built, library)
    except OSError as error:
        raise OutputError(f"cannot write the kernel library: {error}", where=str(folder)) from error
    return library


def _build(scratch: Path, script: str, sources: dict[str, str], compiler: str, cpu: str) -> Path:
    kernels = scratch / "kernels.o"
    (scratch / "kernels.py").write_text(script, encoding="utf-8")
    (scratch / "exports.map").write_text(_EXPORTS, encoding="utf-8")
    for name, text in sources.items():
        (scratch / name).write_text(text, encoding="utf-8")
    module = "opgraft.backends.tvm.compile_object"
    finished = _run([sys.executable, "-P", "-m", module, "kernels.py", kernels.name, cpu], scratch)
    if finished.returncode == UNKNOWN_CPU:
        raise UsageError(f"target processor {cpu!r}: {_last_line(finished.stderr)}")
    _expect_success("TVM", finished)
    units = [name for name in sources if name.endswith(".cc")]
    link = [compiler, *_FLAGS, "-Wl,--version-script=exports.map", *units, kernels.name, "-o", "library.so"]
    _expect_success("the C++ compiler", _run(link, scratch))
    return scratch / "library.so"


def _kernel_table(regions: Sequence[ElementwiseRegion]) -> str:
    """The C++ table of `kernel_table.h`: per kernel its name, entry point and operand layouts."""
    declarations, layouts, rows = [], [], []
    for region in regions:
        entry = f"__tvm_ffi_{region.symbol}"
        declarations.append(f"int {entry}(void*, const opgraft::Cell*, int32_t, opgraft::Cell*);")
        values = ", ".join(str(int(layout)) for layout in region.operands)
        layouts.append(f"static const uint8_t layouts_{region.symbol}[] = {{{values}}};")
        sizes = f"{len(region.operands)}, {len(region.outputs)}"
        rows.append(f'    {{"{region.symbol}", {entry}, {sizes}, layouts_{region.symbol}}},')
    lines = ['#include "kernel_table.h"', 'extern "C" {', *declarations, "}", "namespace opgraft {", *layouts]
    lines += ["const Kernel kKernels[] = {", *rows, "};", f"const size_t kKernelCount = {len(regions)};", "}"]
    return "\n".join(lines) + "\n"


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_TIME_LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ExecutionError(f"building kernels took more than {_TIME_LIMIT_S} s") from error


def _expect_success(tool: str, finished: subprocess.CompletedProcess[str]) -> None:
    if finished.returncode != 0:
        reason = _last_line(finished.stderr)
        raise ExecutionError(f"{tool} failed on the kernels with exit code {finished.returncode}: {reason}")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def _find_compiler() -> str:
    compiler = shutil.which("g++")
    if compiler is None:
        raise MissingExtraError("no C++ compiler to build kernels with", remedy="install g++")
    return compiler


def _compiler_version(compiler: str) -> str:
    return _run([compiler, "-dumpfullversion", "-dumpmachine"], Path.cwd()).stdout


def _tvm_versions() -> tuple[str, str]:
    try:
        return metadata.version("apache-tvm"), metadata.version("apache-tvm-ffi")
    except metadata.PackageNotFoundError as error:
        raise MissingExtraError(
            "kernels are generated by Apache TVM, which is not installed", remedy="pip install opgraft[tvm]"
        ) from error


def _host_processor() -> str:
    """This machine's processor model and features; asking LLVM would mean starting TVM on a cache hit."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    telling = ("model name", "flags", "CPU part", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(telling)}))
