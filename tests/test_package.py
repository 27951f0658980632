"""The package as outsiders see it: what is imported when, which way imports go, what ships."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("ir", "passes", "kernels", "backends", "cli")
# What each room may import of ours.
ALLOWED = {
    "ir": {"ir"},
    "passes": {"ir", "passes"},
    "kernels": {"ir", "kernels"},
    "backends": {"ir", "kernels", "backends", "passes.lower"},
    "cli": {"ir", "passes", "kernels", "backends", "cli"},
}
HEAVY = ("torch", "tvm", "onnxruntime", "transformers", "onnx_ir", "onnx", "numpy", "networkx", "rich")


def _python(code: str) -> str:
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout.strip()


def _imports_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {name for name in found if name.split(".")[0] == "opgraft"}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room: str) -> None:
    for file in (ROOT / room).rglob("*.py"):
        for name in _imports_of(file):
            inner = name.removeprefix("opgraft").removeprefix(".")
            allowed = not inner or any(inner == a or inner.startswith(a + ".") for a in ALLOWED[room])
            assert allowed, f"{file.relative_to(ROOT)} imports {name}"


def test_importing_the_package_or_asking_for_help_loads_no_heavy_module() -> None:
    for action in ("import opgraft", "import opgraft.cli.main as m\ntry: m.main(['--help'])\nexcept SystemExit: pass"):
        loaded = _python(f"import sys\n{action}\nprint('\\n' + ' '.join(sorted(sys.modules)))").splitlines()[-1].split()
        assert not [name for name in HEAVY if name in loaded]


def test_every_public_name_resolves() -> None:
    code = "import opgraft\nfor name in opgraft.__all__: assert getattr(opgraft, name) is not None, name\nprint('ok')"
    assert _python(code) == "ok"


def test_core_imports_no_extra() -> None:
    """A user without the extras must be able to optimize an .onnx file."""
    code = (
        "import sys\nimport opgraft.cli.optimize, opgraft.cli.driver, opgraft.cli.prove, opgraft.cli.weigh\n"
        "from opgraft.passes._registry import known_passes, pass_class\n"
        "[pass_class(n) for n in known_passes()]\nprint(' '.join(sys.modules))"
    )
    assert not {"torch", "tvm", "transformers", "onnxscript"} & set(_python(code).split())


def test_listed_packages_are_those_on_disk() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    on_disk = {"opgraft"} | {
        "opgraft." + ".".join(file.parent.relative_to(ROOT).parts)
        for room in ROOMS
        for file in (ROOT / room).rglob("__init__.py")
    }
    assert listed == on_disk


def test_top_level_entries_are_those_agreed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    agreed = {*ROOMS, "pyproject.toml", "tests", "examples", "__init__.py", "py.typed", "README.md", "Makefile"}
    agreed |= {".ci", ".gitignore", "benchmarks", "docs", "constraints.txt", "evidence"}
    assert top <= agreed, top - agreed


def test_long_files_say_why() -> None:
    for file in (f for room in ROOMS for f in (ROOT / room).rglob("*.py")):
        lines = file.read_text().splitlines()
        assert len(lines) <= 400, f"{file.relative_to(ROOT)} has {len(lines)} lines"


def test_optimizing_leaves_sympy_out_and_onnx_ir_can_still_call_it(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom opgraft.cli.main import main\n"
        f"source = {str(ROOT / 'tests' / 'models' / 'encoder.onnx')!r}\n"
        f"try: main([source, '-o', {str(tmp_path / 'o.onnx')!r}, '--quiet', '--verify', 'off', '--no-measure'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'sympy.core' not in sys.modules\n"
        "import onnx_ir\n"
        "assert str(onnx_ir.SymbolicDim('n') * 2 + 1) in ('2*n + 1', '1 + 2*n')\n"
        "assert 'sympy.core' in sys.modules\nprint('ok')"
    )
    assert _python(code) == "ok"
