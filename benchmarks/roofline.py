"""Roofline estimate against measurement, on a quiet machine: python benchmarks/roofline.py [threads].

One row per operator and shape: the estimate from peaks measured just before, the best of many runs, their ratio.
A ratio below 1 means that the peaks are too low or the traffic is counted too high; far above 1, that the runtime
is far from what the machine can do there.
"""

from __future__ import annotations

import sys

import numpy as np
import onnx_ir as ir
from onnx import helper, numpy_helper, shape_inference
from opgraft.backends.onnxruntime.peaks import best_seconds, bound_session, measured_peaks
from opgraft.ir.cost import cost_of
from opgraft.ir.target import Target

# (operator, shapes of inputs, shapes of weights, attributes)
CASES = [
    *[("MatMul", [(n, n)], [(n, n)], {}) for n in (64, 128, 256, 512, 1024, 2048)],
    ("MatMul", [(128, 384)], [(384, 1536)], {}),
    ("MatMul", [(1, 4096)], [(4096, 4096)], {}),
    ("MatMul", [(12, 128, 32), (12, 32, 128)], [], {}),
    ("Conv", [(1, 64, 56, 56)], [(64, 64, 3, 3)], {"pads": [1, 1, 1, 1]}),
    ("Conv", [(1, 256, 14, 14)], [(256, 1, 3, 3)], {"pads": [1, 1, 1, 1], "group": 256}),
    *[("Add", [(n,), (n,)], [], {}) for n in (1 << 12, 1 << 16, 1 << 20, 1 << 24)],
    ("Erf", [(1 << 20,)], [], {}),
    ("Softmax", [(12, 128, 128)], [], {}),
    ("LayerNormalization", [(128, 384)], [(384,)], {}),
    ("ReduceMean", [(1024, 1024)], [], {"keepdims": 1}),
    ("Transpose", [(12, 128, 32)], [], {"perm": [1, 0, 2]}),
    ("Transpose", [(2048, 2048)], [], {"perm": [1, 0]}),
]


def one_node_model(operator, shapes, weights, attributes):
    fed = [f"x{n}" for n in range(len(shapes))]
    stored = [f"w{n}" for n in range(len(weights))]
    generator = np.random.default_rng(0)
    graph = helper.make_graph(
        [helper.make_node(operator, fed + stored, ["y"], name="node", **attributes)],
        "roofline",
        [helper.make_tensor_value_info(name, 1, shape) for name, shape in zip(fed, shapes, strict=True)],
        [helper.make_tensor_value_info("y", 1, None)],
        [
            numpy_helper.from_array(generator.standard_normal(shape, dtype=np.float32), name)
            for name, shape in zip(stored, weights, strict=True)
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = {name: generator.standard_normal(shape, dtype=np.float32) for name, shape in zip(fed, shapes, strict=True)}
    return shape_inference.infer_shapes(model), feeds


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    target = Target.load("cpu").with_peaks(measured_peaks(threads, use_cache=False))
    print(target.describe())
    print(f"{'operator':20}{'shapes':34}{'estimate us':>12}{'measured us':>12}{'ratio':>8}  constraint")
    for operator, shapes, weights, attributes in CASES:
        model, feeds = one_node_model(operator, shapes, weights, attributes)
        row = cost_of(ir.serde.deserialize_model(model)).roofline(target).nodes[0]
        measured = best_seconds(bound_session(model.SerializeToString(), feeds, threads), 0.5)
        shown = " ".join("x".join(map(str, shape)) for shape in [*shapes, *weights])
        print(
            f"{operator:20}{shown:34}{row.seconds * 1e6:12.1f}{measured * 1e6:12.1f}"
            f"{measured / row.seconds:8.2f}  {row.constraint}"
        )


if __name__ == "__main__":
    main()
