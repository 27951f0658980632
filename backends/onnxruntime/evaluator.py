"""Computes constants with the kernels that compute them at run time: the reference executor's.

evaluate = ConstantEvaluator()
evaluate(model_bytes)["y"]
"""

from __future__ import annotations

from types import TracebackType

import numpy as np
from opgraft.backends.onnxruntime.executor import Executor
from opgraft.ir.errors import ExecutionError


class ConstantEvaluator:
    """Runs models without inputs on ONNX Runtime, its optimizations off, one thread, nothing prepacked.

    The child process is started by the first call, or by `start()`, which does not wait for it: a program without
    constants to compute never pays for it. A child that crashed or ran into a limit is replaced by the next call.
    """

    def __init__(self, *, memory_limit_bytes: int | None = None, time_limit_s: float = 30.0) -> None:
        self._executor = Executor(memory_limit_bytes=memory_limit_bytes, time_limit_s=time_limit_s, start=False)
        self.n_calls = 0

    def __call__(self, model: bytes) -> dict[str, np.ndarray]:
        """The outputs by name. Raises ExecutionError when the runtime refuses, crashes, or passes a limit."""
        self.n_calls += 1
        values = self._executor.run_once(model, {}, where="constants")
        odd = [name for name, value in values.items() if not isinstance(value, np.ndarray)]
        if odd:
            raise ExecutionError(f"{', '.join(odd)}: not a tensor", where="constants")
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

    def start(self) -> None:
        """Start the child now; its imports overlap with the caller's work."""
        self._executor.start()

    def close(self) -> None:
        """End the child. Closing twice is harmless."""
        self._executor.close()

    def __enter__(self) -> ConstantEvaluator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
