"""Compiles TVMScript to an object file; runs as a child process, so that TVM never enters the caller's.

    python -P -m opgraft.backends.tvm.compile_object SOURCE OBJECT CPU

CPU is an LLVM processor name, or `host`. Exit code 3: LLVM does not know that processor.
"""

from __future__ import annotations

import sys
from pathlib import Path

UNKNOWN_CPU = 3


def compile_object(source: Path, target: Path, cpu: str) -> int:
    import tvm
    from tvm import script

    codegen = tvm.target.codegen
    known = set(codegen.llvm_get_cpu_archlist(tvm.target.Target({"kind": "llvm"})))
    name = codegen.llvm_get_system_cpu() if cpu == "host" else cpu
    if name not in known:
        print(f"unknown processor; known are {', '.join(sorted(known))}", file=sys.stderr)
        return UNKNOWN_CPU
    module = script.from_source(source.read_text(encoding="utf-8"))
    executable = tvm.compile(module, target=tvm.target.Target({"kind": "llvm", "mcpu": name}))
    executable.mod.write_to_file(str(target), "obj")
    return 0


if __name__ == "__main__":
    sys.exit(compile_object(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
