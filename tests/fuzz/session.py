"""The reference executor in this process: no crash is survived, but nothing is sent anywhere either.

Sessions have the options of `backends.onnxruntime.executor`; the process that runs graphs is itself a child.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from opgraft.backends.onnxruntime.executor import REFERENCE_CONFIG
from opgraft.backends.onnxruntime.session import Session
from opgraft.ir.errors import ExecutionError

Feed = dict[str, Any]


class InProcess:
    """What `ir.verify` and the constant evaluator need of a runtime."""

    def load(self, model: Path | str | bytes, *, optimized: bool = False) -> Session:
        if optimized:
            raise ExecutionError("the fuzzer compares with the runtime's optimizations off")
        return Session(model, optimized=False, threads=1, config=REFERENCE_CONFIG)

    def run(self, handle: Session, inputs: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: np.asarray(v) if isinstance(v, np.generic) else v for name, v in inputs.items()}
        outputs = handle.run(given)
        # An output that is an input lies in the memory that was fed.
        return {name: v.copy() if isinstance(v, np.ndarray) and name in given else v for name, v in outputs.items()}

    def release(self, handle: Session) -> None:
        """The session goes with its last reference."""

    def evaluate(self, model: bytes) -> dict[str, np.ndarray]:
        values = self.run(self.load(model), {})
        if not all(isinstance(v, np.ndarray) for v in values.values()):
            raise ExecutionError("not a tensor", where="constants")
        return values

    def try_load(self, model: bytes) -> Session | None:
        try:
            return self.load(model)
        except ExecutionError:
            return None

    def try_run(self, handle: Session, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            return self.run(handle, inputs)
        except (ExecutionError, TypeError):
            return None
