"""Evaluate graphs of constants on the reference executor, in a child process that starts when first needed."""

from __future__ import annotations

import numpy as np

from opgraft.backends.onnxruntime.executor import Executor
from opgraft.ir.errors import ExecutionError


class ConstantEvaluator:
    """Callable for `PassContext.evaluate`: a model without inputs in, its outputs as arrays out."""

    def __init__(self, *, time_limit_s: float = 60.0) -> None:
        self._time_limit_s = time_limit_s
        self._executor: Executor | None = None

    def start(self) -> None:
        """Start the child now, so that its imports overlap with the caller's work."""
        if self._executor is None:
            self._executor = Executor(time_limit_s=self._time_limit_s)

    def __call__(self, model: bytes) -> dict[str, np.ndarray]:
        """Raises ExecutionError when the runtime cannot run the model, or an output is no tensor."""
        self.start()
        if self._executor is None:
            raise ExecutionError("the evaluator is closed")
        outputs = self._executor.run_once(model, {})
        arrays = {name: value for name, value in outputs.items() if isinstance(value, np.ndarray)}
        if len(arrays) != len(outputs):
            raise ExecutionError("a constant is not a tensor")
        return arrays

    def close(self) -> None:
        if self._executor is not None:
            self._executor.close()
            self._executor = None
