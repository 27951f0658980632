"""Measured peaks of this machine under ONNX Runtime: arithmetic, bandwidth per working set, launch per node.

The runtime's own operators set the ceilings, so that a roofline is a bound on what the runtime can reach: a
large matrix product (float32, int8), chains of Add and of matrix-vector products on growing buffers, a chain
of tiny nodes. The best of several runs counts, since noise only adds time. Measured in a child process,
within seconds, and kept in the user's cache folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from opgraft.backends import cache
from opgraft.ir.errors import ExecutionError
from opgraft.ir.target import Figure, Peaks, processor_model

# Bandwidth is measured at these; the last stands for everything larger.
WORKING_SETS_BYTES = (256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20)

# A short product escapes other load between two runs, a long one amortises its edges: the better one counts.
_MATRIX_EXTENTS = (512, 1024)
_CHAIN_NODES = 8
_CHAIN_BYTES = 16 << 20
_TINY_NODES = (50, 550)
_CHILD_LIMIT_S = 60


def measured_peaks(threads: int = 1, use_cache: bool = True) -> Peaks:
    """The peaks of this machine with that many threads, from the cache or measured now (about two seconds).

    Raises ExecutionError when the measurement fails.
    """
    import onnxruntime

    version = onnxruntime.__version__
    key = f"onnxruntime {version}, {processor_model()}, {os.cpu_count()} cpus, {threads} threads"
    if use_cache:
        stored = _read_peaks(cache.load("peaks", key))
        if stored is not None:
            return stored
    measured = _read_peaks(_measure_in_child(threads))
    if measured is None:
        raise ExecutionError("the measurement of peaks gave no result", where=key)
    if use_cache:
        cache.store("peaks", key, asdict(measured))
    return measured


def _measure_in_child(threads: int) -> Any:
    command = [sys.executable, "-m", "opgraft.backends.onnxruntime.peaks", str(threads)]
    # A safe path keeps the current folder off the child's import path.
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_CHILD_LIMIT_S, env=environment, check=True
        )
        return json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise ExecutionError(f"measuring peaks took over {_CHILD_LIMIT_S} s") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr or "").strip().splitlines()[-1:]
        raise ExecutionError(f"measuring peaks failed with status {error.returncode}: {''.join(last)}") from None
    except ValueError:
        return None


def _read_peaks(data: Any) -> Peaks | None:
    """Peaks from their JSON form; None if it is not that."""
    try:
        return Peaks(
            threads=int(data["threads"]),
            flops_per_s={str(dtype): Figure(**entry) for dtype, entry in data["flops_per_s"].items()},
            bytes_per_s=tuple((int(limit), Figure(**entry)) for limit, entry in data["bytes_per_s"]),
            launch_s=Figure(**data["launch_s"]),
        )
    except (TypeError, KeyError, ValueError, AttributeError):
        return None


def measure(threads: int) -> Peaks:
    """Measure in this process."""
    launch_s = _launch_seconds(threads)
    return Peaks(
        threads=threads,
        flops_per_s=_arithmetic_peaks(threads),
        bytes_per_s=_bandwidths(threads, launch_s),
        launch_s=_figure(launch_s, "chain of Neg on one element"),
    )


def _figure(value: float, source: str) -> Figure:
    return Figure(value, "measured", source)


def _arithmetic_peaks(threads: int) -> dict[str, Figure]:
    import numpy as np

    generator = np.random.default_rng(0)
    best = {"float32": (0.0, ""), "int8": (0.0, "")}
    for n in _MATRIX_EXTENTS:
        floats = generator.standard_normal((n, n), dtype=np.float32)
        unsigned = generator.integers(0, 255, (n, n)).astype(np.uint8)
        # Seven bits on one side: the eight-bit kernels of x86 without VNNI saturate, and ranges are chosen so.
        signed = generator.integers(-64, 64, (n, n)).astype(np.int8)
        for dtype, operator, left, right in (
            ("float32", "MatMul", floats, floats),
            ("int8", "MatMulInteger", unsigned, signed),
        ):
            product = _chain([(operator, ["x", "w"], "y")], {"x": left}, {"w": right}, threads)
            rate = 2 * n**3 / best_seconds(product, 0.12)
            best[dtype] = max(best[dtype], (rate, f"{operator} of {n}^3"))
    return {dtype: _figure(rate, source) for dtype, (rate, source) in best.items()}


def _bandwidths(threads: int, launch_s: float) -> tuple[tuple[int, Figure], ...]:
    """Bandwidth per working set; a smaller one is at least as fast, whatever the noise says."""
    best = 0.0
    rows = []
    for size in reversed(WORKING_SETS_BYTES):
        best = max(best, _bandwidth(size, threads, launch_s))
        rows.append((size, _figure(best, "best of Add and matrix-vector product")))
    return tuple(reversed(rows))


def _bandwidth(working_set_bytes: int, threads: int, launch_s: float) -> float:
    """Bytes per second of the better of two chains whose buffers fill the working set."""
    import numpy as np

    budget_s = 0.12 if working_set_bytes > _CHAIN_BYTES else 0.05
    n_nodes = max(1, min(_CHAIN_NODES, _CHAIN_BYTES // working_set_bytes))
    # Add streams three buffers: the running value in and out, and the constant operand.
    n = working_set_bytes // 12
    ones = np.ones(n, np.float32)
    adds = [("Add", [f"v{i}", "z"], f"v{i + 1}") for i in range(n_nodes)]
    run = _chain(adds, {"v0": ones, "z": ones}, {}, threads)
    add_s = best_seconds(run, budget_s) / n_nodes - launch_s
    # The matrix is fed rather than stored, so that all nodes read the same copy of it.
    extent = int((working_set_bytes / 4) ** 0.5)
    matrix = np.full((extent, extent), 1 / extent, np.float32)
    steps = [("MatMul", [f"v{i}", "w"], f"v{i + 1}") for i in range(n_nodes)]
    run = _chain(steps, {"v0": np.ones((1, extent), np.float32), "w": matrix}, {}, threads)
    product_s = best_seconds(run, budget_s) / n_nodes - launch_s
    return max(12 * n / add_s, 4 * extent**2 / product_s)


def _launch_seconds(threads: int) -> float:
    """The slope of run time over the number of tiny nodes."""
    import numpy as np

    seconds = []
    for n_nodes in _TINY_NODES:
        chain = [("Neg", [f"v{i}"], f"v{i + 1}") for i in range(n_nodes)]
        seconds.append(best_seconds(_chain(chain, {"v0": np.ones(1, np.float32)}, {}, threads), 0.05))
    return max(seconds[1] - seconds[0], 1e-9) / (_TINY_NODES[1] - _TINY_NODES[0])


def _chain(
    nodes: list[tuple[str, list[str], str]], feeds: dict[str, Any], stored: dict[str, Any], threads: int
) -> Callable[[], None]:
    """A function that runs a chain of nodes once."""
    import onnx

    helper = onnx.helper
    info = helper.make_tensor_value_info
    inputs = [info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for name, a in feeds.items()]
    integer = nodes[0][0] == "MatMulInteger"
    out_type = onnx.TensorProto.INT32 if integer else onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(operator, ins, [out]) for operator, ins, out in nodes],
        "peaks",
        inputs,
        [info(nodes[-1][2], out_type, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bound_session(model.SerializeToString(), feeds, threads)


def bound_session(model: bytes, feeds: dict[str, Any], threads: int) -> Callable[[], None]:
    """A function that runs the model once, as written, with inputs and outputs bound beforehand."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Optimized, a chain would not stay a chain.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")
    return lambda: session.run_with_iobinding(binding)


def best_seconds(run: Callable[[], None], budget_s: float) -> float:
    """The fastest of the runs that fit the budget, five at least, after one to warm up."""
    run()
    best = float("inf")
    end = time.perf_counter() + budget_s
    n_runs = 0
    while n_runs < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
        n_runs += 1
    return best


if __name__ == "__main__":
    print(json.dumps(asdict(measure(int(sys.argv[1])))))
