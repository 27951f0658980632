"""Wall time of optimizers as whole processes, imports included: ours (no verification, no measurement) and the peers.

    python benchmarks/optimizer_speed.py [--models FOLDER] [--pairs 15] [--only NAME ...] [--time-limit 200]
    python benchmarks/optimizer_speed.py --scaling      ours alone, on chains of 1,000 to 100,000 nodes

Expected before the first run: chain and Llama graphs at least three times faster than the fastest peer, because one
worklist visits each node a few times and weights are never parsed; MiniLM and ViT-B faster, most of ours being imports.

Every round runs each tool once, in rotating order; a tool's ratio to ours is the median over rounds of the paired
ratios, with a 95 % interval. `opgraft again` is the A/A row. A tool that exceeds the time limit once is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import onnx
from opgraft.backends.measure import paired_ratio

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


SCALING_NODES = (1_000, 3_000, 10_000, 30_000, 100_000)


def command(tool: str, source: Path, output: Path) -> list[str]:
    recipe = TOOLS[tool]
    if isinstance(recipe, str):
        return [sys.executable, "-c", f"i, o = {str(source)!r}, {str(output)!r}; {recipe}"]
    return [part.format(input=source, output=output) for part in recipe]


def run(tool: str, source: Path, output: Path, limit_s: float) -> float | None:
    """Wall seconds of the whole process; None when it failed or took longer than the limit."""
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command(tool, source, output),
            timeout=limit_s,
            capture_output=True,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )
    except subprocess.TimeoutExpired:
        return None
    seconds = time.perf_counter() - start
    return seconds if done.returncode == 0 else None


def executed_nodes(path: Path) -> int:
    """Nodes that run: all but Constant."""
    model = onnx.load(path, load_external_data=False)
    bodies = [model.graph.node, *(f.node for f in model.functions)]
    return sum(node.op_type != "Constant" for nodes in bodies for node in nodes)


def measure(name: str, source: Path, folder: Path, pairs: int, limit_s: float) -> list[dict[str, object]]:
    labels = ["opgraft", "opgraft again", *list(TOOLS)[1:]]
    samples: dict[str, list[float]] = {label: [] for label in labels}
    dead: set[str] = set()
    for index in range(pairs):
        order = labels[index % len(labels) :] + labels[: index % len(labels)]
        for label in order:
            # A tool that takes minutes is measured in the first rounds only: its ratio is not in doubt.
            if label in dead or (samples[label] and samples[label][0] > 20 and index >= 1):
                continue
            seconds = run(label.removesuffix(" again"), source, folder / f"out-{label}.onnx", limit_s)
            if seconds is None:
                dead.add(label)
            else:
                samples[label].append(seconds)
    rows = []
    for label in labels:
        output = folder / f"out-{label}.onnx"
        row: dict[str, object] = {
            "model": name,
            "tool": label,
            "nodes": executed_nodes(output) if output.exists() else None,
        }
        if label in dead or not samples[label]:
            row["result"] = "failed or over the limit"
        else:
            row["seconds"] = sorted(samples[label])[len(samples[label]) // 2]
            n = min(len(samples[label]), len(samples["opgraft"]))
            if n >= 6:
                row["ratio"] = str(paired_ratio(samples["opgraft"][:n], samples[label][:n]))
            else:
                row["ratio"] = f"{samples[label][0] / samples['opgraft'][0]:.1f} (one run)"
        rows.append(row)
        output.unlink(missing_ok=True)
    return rows


def measure_scaling(folder: Path, runs: int = 5) -> None:
    """Time per node of ours, beyond what the process takes for a chain of 4 nodes (imports, mostly)."""
    seconds: dict[int, float] = {}
    for n_nodes in (4, *SCALING_NODES):
        source = folder / f"chain-{n_nodes}.onnx"
        folder.mkdir(parents=True, exist_ok=True)
        chain(source, n_nodes)
        samples = [run("opgraft", source, folder / "out-chain.onnx", 600.0) for _ in range(runs)]
        seconds[n_nodes] = sorted(s for s in samples if s is not None)[len(samples) // 2]
        per_node_us = (seconds[n_nodes] - seconds[4]) / n_nodes * 1e6
        print(
            f"  {n_nodes:7} nodes {seconds[n_nodes]:8.2f} s  {per_node_us:8.1f} us per node beyond the start",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("benchmarks/.models"))
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--only", nargs="*", default=list(MODELS))
    parser.add_argument("--time-limit", type=float, default=200.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--scaling", action="store_true")
    arguments = parser.parse_args()
    if arguments.scaling:
        measure_scaling(arguments.models)
        return
    everything = []
    for name in arguments.only:
        source = model_path(arguments.models, name)
        print(f"\n{name}: {executed_nodes(source)} executed nodes, {source.stat().st_size / 1e6:.1f} MB", flush=True)
        rows = measure(name, source, arguments.models, arguments.pairs, arguments.time_limit)
        for row in rows:
            seconds = f"{row['seconds']:8.2f} s" if "seconds" in row else f"{row['result']:>10}"
            print(f"  {row['tool']:14} {seconds}  {row.get('ratio', ''):24} nodes {row['nodes']}", flush=True)
        everything += rows
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
