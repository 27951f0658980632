"""Time of optimizers as whole processes, imports included: ours (no verification, no measurement) and the peers.

    python benchmarks/optimizer_speed.py [--models FOLDER] [--pairs 15] [--only NAME ...] [--time-limit 200]
    python benchmarks/optimizer_speed.py --scaling      ours alone, on chains of 1,000 to 100,000 nodes

Expected before the first run: chain and Llama graphs at least three times faster than the fastest peer, because one
worklist visits each node a few times and weights are never parsed; MiniLM and ViT-B faster, most of ours being imports.

Every round runs each tool once, in rotating order; a tool's ratio to ours is the median over rounds of the paired
ratios, with a 95 % interval, in CPU time (user and system, all threads) and in wall time. `opgraft again` is the A/A
row; while it is off by more than 2 % in CPU time, ours is measured again. A tool that exceeds the limit once is not
run again, and one that takes over 20 s only once.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import onnx
from opgraft.backends.measure import MIN_PAIRS, PairedRatio, paired_ratio

# PYTHONSAFEPATH, which the Makefile sets, leaves the script's own folder out.
sys.path.insert(0, str(Path(__file__).parent))

from models import MODELS, chain, model_path

TOOLS = {
    "opgraft": [
        *(sys.executable, "-m", "opgraft.cli.main", "{input}", "-o", "{output}", "--force", "--quiet"),
        *("--verify", "off", "--no-measure"),
    ],
    "onnxslim": "import onnx, onnxslim; onnx.save(onnxslim.slim(onnx.load(i)), o)",
    "onnxsim": "import onnx, onnxsim; onnx.save(onnxsim.simplify(onnx.load(i))[0], o)",
    "onnxscript": "import onnx, onnxscript.optimizer as q; onnx.save(q.optimize(onnx.load(i)), o)",
    "onnxoptimizer": "import onnx, onnxoptimizer; onnx.save(onnxoptimizer.optimize(onnx.load(i)), o)",
}


MAX_MORE_PAIRS = 30
SCALING_NODES = (1_000, 3_000, 10_000, 30_000, 100_000)


def command(tool: str, source: Path, output: Path) -> list[str]:
    recipe = TOOLS[tool]
    if isinstance(recipe, str):
        return [sys.executable, "-c", f"i, o = {str(source)!r}, {str(output)!r}; {recipe}"]
    return [part.format(input=source, output=output) for part in recipe]


@dataclass(frozen=True)
class Sample:
    """Seconds of one whole process."""

    cpu: float
    wall: float


def run(tool: str, source: Path, output: Path, limit_s: float) -> Sample | None:
    """None when the process failed or took longer than the limit."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    try:
        done = subprocess.run(
            command(tool, source, output),
            timeout=limit_s,
            capture_output=True,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )
    except subprocess.TimeoutExpired:
        return None
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Sample(cpu, wall) if done.returncode == 0 else None


def executed_nodes(path: Path) -> int:
    """Nodes that run: all but Constant."""
    model = onnx.load(path, load_external_data=False)
    bodies = [model.graph.node, *(f.node for f in model.functions)]
    return sum(node.op_type != "Constant" for nodes in bodies for node in nodes)


LABELS = ("opgraft", "opgraft again", *list(TOOLS)[1:])
Samples = dict[str, list[Sample]]


def measure(name: str, source: Path, folder: Path, pairs: int, limit_s: float) -> list[dict[str, object]]:
    samples: Samples = {label: [] for label in LABELS}
    dead: set[str] = set()
    for index in range(pairs):
        order = LABELS[index % len(LABELS) :] + LABELS[: index % len(LABELS)]
        for label in order:
            # A tool that takes minutes is measured once: its ratio is not in doubt.
            if label in dead or (samples[label] and samples[label][0].wall > 20):
                continue
            sample = run(label.removesuffix(" again"), source, folder / f"out-{label}.onnx", limit_s)
            if sample is None:
                dead.add(label)
            else:
                samples[label].append(sample)
    for _ in range(MAX_MORE_PAIRS):
        if abs(_ratio(samples, "opgraft again", "cpu").ratio - 1) <= 0.02:
            break
        for label in LABELS[:2]:
            sample = run("opgraft", source, folder / f"out-{label}.onnx", limit_s)
            if sample is not None:
                samples[label].append(sample)
    return [_row(name, label, samples, folder / f"out-{label}.onnx", label in dead) for label in LABELS]


def _ratio(samples: Samples, label: str, clock: str) -> PairedRatio:
    n = min(len(samples[label]), len(samples["opgraft"]))
    ours, theirs = ([getattr(s, clock) for s in samples[side][:n]] for side in ("opgraft", label))
    return paired_ratio(ours, theirs)


def _row(name: str, label: str, samples: Samples, output: Path, dead: bool) -> dict[str, object]:
    row: dict[str, object] = {"model": name, "tool": label}
    row["nodes"] = executed_nodes(output) if output.exists() else None
    output.unlink(missing_ok=True)
    if dead or not samples[label]:
        return {**row, "result": "failed or over the limit"}
    for clock in ("cpu", "wall"):
        times = sorted(getattr(s, clock) for s in samples[label])
        row[f"{clock}_s"] = times[len(times) // 2]
        if len(times) >= MIN_PAIRS:
            row[f"{clock}_ratio"] = str(_ratio(samples, label, clock))
        else:
            row[f"{clock}_ratio"] = f"{times[0] / getattr(samples['opgraft'][0], clock):.1f} (one run)"
    return {**row, "pairs": len(samples[label])}


def measure_scaling(folder: Path, runs: int = 5) -> None:
    """CPU time per node of ours, beyond what the process takes for a chain of 4 nodes (imports, mostly)."""
    seconds: dict[int, float] = {}
    for n_nodes in (4, *SCALING_NODES):
        source = folder / f"chain-{n_nodes}.onnx"
        folder.mkdir(parents=True, exist_ok=True)
        chain(source, n_nodes)
        samples = [run("opgraft", source, folder / "out-chain.onnx", 600.0) for _ in range(runs)]
        seconds[n_nodes] = sorted(s.cpu for s in samples if s is not None)[len(samples) // 2]
        per_node_us = (seconds[n_nodes] - seconds[4]) / n_nodes * 1e6
        print(
            f"  {n_nodes:7} nodes {seconds[n_nodes]:8.2f} s  {per_node_us:8.1f} us per node beyond the start",
            flush=True,
        )


def compile_sources() -> None:
    """Byte code of this package, as an installer makes it of the peers' and of ours when it is not installed for
    editing."""
    for room in ("__init__.py", "backends", "cli", "ir", "kernels", "passes"):
        path = Path(__file__).parent.parent / room
        compileall.compile_file(path, quiet=1) if path.is_file() else compileall.compile_dir(path, quiet=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("benchmarks/.models"))
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--only", nargs="*", default=list(MODELS))
    parser.add_argument("--time-limit", type=float, default=200.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--scaling", action="store_true")
    arguments = parser.parse_args()
    compile_sources()
    if arguments.scaling:
        measure_scaling(arguments.models)
        return
    everything = []
    for name in arguments.only:
        source = model_path(arguments.models, name)
        print(f"\n{name}: {executed_nodes(source)} executed nodes, {source.stat().st_size / 1e6:.1f} MB", flush=True)
        rows = measure(name, source, arguments.models, arguments.pairs, arguments.time_limit)
        for row in rows:
            if "result" in row:
                print(f"  {row['tool']:14} {row['result']}", flush=True)
                continue
            print(
                f"  {row['tool']:14} CPU {row['cpu_s']:7.2f} s  {row['cpu_ratio']:24} "
                f"wall {row['wall_s']:7.2f} s  {row['wall_ratio']:24} nodes {row['nodes']}",
                flush=True,
            )
        everything += rows
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
