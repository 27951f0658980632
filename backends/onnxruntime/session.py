"""A session in this process, for users who run the result at once; verification uses the executor instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from opgraft.backends.onnxruntime.protocol import Value, from_raw, to_raw
from opgraft.backends.onnxruntime.session_handle import TensorInfo, read_signature
from opgraft.ir.errors import ExecutionError

if TYPE_CHECKING:
    import onnxruntime


class Session:
    """An ONNX Runtime session over numpy (and ml_dtypes) arrays.

    session = Session(Path("model.opt.onnx"))
    session.run({"x": x})["y"]
    """

    def __init__(
        self,
        model: Path | str | bytes,
        *,
        optimized: bool = True,
        threads: int = 0,
        libraries: Sequence[Path] = (),
        config: Mapping[str, str] | None = None,
    ) -> None:
        """`threads=0` leaves their number to the runtime; `libraries` hold custom operators."""
        import onnxruntime
        from opgraft.backends.onnxruntime.binding import session_options, signature

        options = session_options(
            optimized=optimized,
            threads=threads,
            config=config or {},
            libraries=[str(library) for library in libraries],
        )
        try:
            self.native: onnxruntime.InferenceSession = onnxruntime.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            where = "" if isinstance(model, bytes) else str(model)
            raise ExecutionError(f"ONNX Runtime rejects it: {error}", where=where) from error
        self.inputs: tuple[TensorInfo, ...] = read_signature([signature(a) for a in self.native.get_inputs()])
        self.outputs: tuple[TensorInfo, ...] = read_signature([signature(a) for a in self.native.get_outputs()])

    def run(self, inputs: Mapping[str, Value], outputs: Sequence[str] | None = None) -> dict[str, Value]:
        """The outputs (all, or those named) for these inputs."""
        from opgraft.backends.onnxruntime.binding import bind, read_results

        names = [info.name for info in self.outputs] if outputs is None else list(outputs)
        feeds = {name: to_raw(value) for name, value in inputs.items()}
        try:
            results = bind(self.native, feeds, names)()
        except Exception as error:
            raise ExecutionError(f"ONNX Runtime rejects the run: {error}") from error
        values = read_results(results, names, feeds)
        return {name: from_raw(value) for name, value in zip(names, values, strict=True)}
