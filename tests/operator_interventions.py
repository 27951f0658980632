"""The operator tests of the onnx package, each with interventions on every input: what moves, and what may."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from backend_forms import Case, load_cases
from opgraft.backends.onnxruntime.executor import Executor
from opgraft.ir.capture_onnx import capture_onnx
from opgraft.ir.errors import OpgraftError
from opgraft.ir.sites import find_sites
from opgraft.ir.sites.interventions import check_interventions

# Larger inputs are of whole networks; every perturbation runs the model once.
MAX_ELEMENTS = 20_000
SAMPLE = 8


def operator_cases() -> Iterator[Case]:
    for case in load_cases():
        arrays = list(case.feeds[0].values())
        if case.kind != "node" or not arrays or not all(isinstance(a, np.ndarray) for a in arrays):
            continue
        if sum(a.size for a in arrays) <= MAX_ELEMENTS:
            yield case


def sample_cases() -> Iterator[Case]:
    """One in eight, by name."""
    return (case for case in operator_cases() if zlib.crc32(case.name.encode()) % SAMPLE == 0)


def examine(case: Case, executor: Executor) -> dict[str, Any]:
    """What interventions on the case's own inputs show; a reason where the runtime does not run it."""
    row: dict[str, Any] = {"case": case.name, "operator": case.model.graph.node[0].op_type}
    try:
        sites = find_sites(capture_onnx(case.model))
        report = check_interventions(sites, executor, arrays=dict(case.feeds[0]))
    except OpgraftError as error:
        return {**row, "reason": " ".join(str(error).split())[:200]}
    return {
        **row,
        "interventions": report.n_interventions,
        "values": report.n_values,
        "bounded": report.n_bounded,
        "predicted": report.n_predicted,
        "moved": report.n_moved,
        "opaque": sorted(set(sites.axes.opaque.values())),
        "wrong": [str(w) for w in report.wrong[:4]],
    }
