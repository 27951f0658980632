"""The functions of `import opgraft as og`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opgraft.cli.driver import Options, Result
from opgraft.cli.driver import optimize as _optimize
from opgraft.ir.capture import capture
from opgraft.ir.verify import Verification


def optimize(
    source: Any,
    example_args: Any = (),
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    output: str | Path | None = None,
    dynamic_shapes: Any = None,
    **options: Any,
) -> Result:
    """Optimize a model and return the result, written to `output` when that is given.

    `source` is what `capture` takes; a torch module needs example inputs. `options` are the fields of
    `opgraft.cli.driver.Options`: `passes`, `target`, `verify`, `measure`, `force`, ...
    """
    if isinstance(source, (str, Path)):
        program: Any = source
    else:
        extra = {"dynamic_shapes": dynamic_shapes} if dynamic_shapes is not None else {}
        program = capture(source, example_args, example_kwargs, **extra)
    return _optimize(program, output, options=Options(**options))


def verify(original: str | Path, candidate: str | Path, *, contract: str = "numeric", seed: int = 0) -> Verification:
    """Compare two model files on generated inputs under `exact` or `numeric`."""
    from opgraft.backends.onnxruntime.executor import Executor
    from opgraft.ir.capture_onnx import capture_onnx
    from opgraft.ir.verify import Verifier

    with Executor() as executor:
        return Verifier(capture_onnx(original), Path(original), executor, seed=seed).verify(Path(candidate), contract)
