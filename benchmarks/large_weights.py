"""2.5 GB of external weights through the optimizer: time and anonymous memory of the whole process.

    python benchmarks/large_weights.py [--folder FOLDER]

(a) nothing changes a weight; (b) a BatchNormalization is folded into every layer, so every weight changes. Expected:
(a) the time of copying the file, (b) one read and one write of each weight, one tensor in memory at a time.
Memory is the peak of RssAnon, sampled every 5 ms: file pages that are only mapped are not counted.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

N_LAYERS, WIDTH = 40, 4096


def make_model(path: Path, *, with_batch_norm: bool) -> int:
    """A chain of 1x1 convolutions with external weights [C, C, 1, 1]; returns the bytes of one weight."""
    rng = np.random.default_rng(0)
    nodes, initializers = [], []
    n_bytes = WIDTH * WIDTH * 4
    current = "x"
    with path.with_suffix(".data").open("wb") as data:
        for layer in range(N_LAYERS):
            data.write((rng.standard_normal((WIDTH, WIDTH), dtype=np.float32) / WIDTH**0.5).tobytes())
            weight = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH, 1, 1])
            weight.data_location = TensorProto.EXTERNAL
            location = [("location", data.name.rsplit("/", 1)[-1]), ("offset", layer * n_bytes), ("length", n_bytes)]
            for key, value in location:
                weight.external_data.add(key=key, value=str(value))
            initializers.append(weight)
            nodes.append(helper.make_node("Conv", [current, f"w{layer}"], [f"c{layer}"]))
            current = f"c{layer}"
            if with_batch_norm:
                for name in ("scale", "bias", "mean", "var"):
                    array = 1 + 0.1 * rng.random(WIDTH, dtype=np.float32)
                    initializers.append(onnx.numpy_helper.from_array(array, f"{name}{layer}"))
                operands = [current, *(f"{name}{layer}" for name in ("scale", "bias", "mean", "var"))]
                nodes.append(helper.make_node("BatchNormalization", operands, [f"n{layer}"]))
                current = f"n{layer}"
            nodes.append(helper.make_node("Identity", [current], [f"i{layer}"]))
            current = f"i{layer}"
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH, "H", "W"])
    result = helper.make_tensor_value_info(current, TensorProto.FLOAT, ["N", WIDTH, "H", "W"])
    graph = helper.make_graph(nodes, "large", [value], [result], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return n_bytes


def run_and_watch(command: list[str]) -> tuple[float, int]:
    """Wall seconds and peak anonymous bytes of the process."""
    start = time.perf_counter()
    child = subprocess.Popen(command, env={**os.environ, "PYTHONSAFEPATH": "1"})
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            try:
                status = Path(f"/proc/{child.pid}/status").read_text()
            except OSError:
                return
            for line in status.splitlines():
                if line.startswith("RssAnon:"):
                    peak = max(peak, int(line.split()[1]) * 1024)
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = child.wait()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    if code:
        raise RuntimeError(f"exit code {code}")
    return seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        for label, with_batch_norm in (("weights unchanged", False), ("every weight changed", True)):
            source, output = folder / "large.onnx", folder / "out.onnx"
            tensor_bytes = make_model(source, with_batch_norm=with_batch_norm)
            os.sync()
            start = time.perf_counter()
            subprocess.run(["cp", source.with_suffix(".data"), folder / "copy"], check=True)
            print(f"{'(cp of the data file)':22} {time.perf_counter() - start:6.2f} s", flush=True)
            (folder / "copy").unlink()
            for _ in range(arguments.runs):
                words = ["-m", "opgraft.cli.main", str(source), "-o", str(output), "--force", "--quiet"]
                seconds, peak = run_and_watch([sys.executable, *words, "--verify", "off", "--no-measure"])
                size = output.with_name("out.onnx.data").stat().st_size
                nodes = len(onnx.load(output, load_external_data=False).graph.node)
                print(
                    f"{label:22} {seconds:6.2f} s  {peak / 1e6:7.1f} MB anonymous  "
                    f"({size / 1e9:.2f} GB written, {nodes} nodes, largest tensor {tensor_bytes / 1e6:.0f} MB)",
                    flush=True,
                )


if __name__ == "__main__":
    main()
