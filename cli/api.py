"""The functions of `import opgraft as og`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opgraft.cli.driver import Result
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
    `opgraft.Options`: `passes`, `target`, `verify`, `measure`, `force`, ... Raises an OpgraftError: UsageError,
    InputError, OutputError, MissingExtraError.
    """
    from opgraft.cli.driver import optimize as run
    from opgraft.cli.options import Options
    from opgraft.ir.capture import capture

    wanted = Options.of(**options)
    if not isinstance(source, (str, Path)):
        extra = {"dynamic_shapes": dynamic_shapes} if dynamic_shapes is not None else {}
        source = capture(source, example_args, example_kwargs, **extra)
    return run(source, output, options=wanted)


def verify(original: str | Path, candidate: str | Path, *, contract: str = "numeric", seed: int = 0) -> Verification:
    """Compare two model files on generated inputs under `exact` or `numeric`."""
    from opgraft.backends.onnxruntime.executor import Executor
    from opgraft.ir.capture_onnx import capture_onnx
    from opgraft.ir.errors import UsageError
    from opgraft.ir.verify import Verifier

    if contract not in ("exact", "numeric"):
        raise UsageError(f"contract {contract!r} is unknown", remedy="exact or numeric")
    program = capture_onnx(original)
    capture_onnx(candidate)
    with Executor() as executor:
        return Verifier(program, Path(original), executor, seed=seed).verify(Path(candidate), contract)
