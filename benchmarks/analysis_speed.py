"""CPU seconds of the analyses (shapes, axes, origins, attention, masks, roles) on a Llama graph and on long chains.

    python benchmarks/analysis_speed.py [--models FOLDER] [--runs 5]

Expected: under 1.5 s for 32 layers of Llama, most of it shapes and relations; time per node constant to 100,000 nodes,
because every rule looks at one node and every dim gets its role once. Reading the file is not counted.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from opgraft.ir.capture_onnx import capture_onnx
from opgraft.ir.sites import find_sites

sys.path.insert(0, str(Path(__file__).parent))

from models import chain, model_path

CHAINS = (1_000, 10_000, 100_000)


def measure(path: Path, runs: int) -> tuple[int, float]:
    """Nodes, and the median CPU seconds of all analyses."""
    samples, n_nodes = [], 0
    for _ in range(runs):
        program = capture_onnx(path)
        n_nodes = len(list(program.graph))
        start = time.process_time()
        sites = find_sites(program)
        _ = sites.rotary
        samples.append(time.process_time() - start)
    return n_nodes, sorted(samples)[runs // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("benchmarks/.models"))
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    paths = [model_path(options.models, name) for name in ("minilm", "llama-32-thin")]
    for n_nodes in CHAINS:
        path = options.models / f"chain-{n_nodes}.onnx"
        chain(path, n_nodes)
        paths.append(path)
    for path in paths:
        n_nodes, seconds = measure(path, options.runs)
        print(
            f"{path.stem:16} {n_nodes:7} nodes {seconds:7.2f} s  {seconds / n_nodes * 1e6:6.1f} us per node", flush=True
        )


if __name__ == "__main__":
    main()
