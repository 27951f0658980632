"""Keep one of equal weights."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir
from opgraft.ir.program import Program
from opgraft.ir.small_tensor import SmallTensor
from opgraft.passes._pass import Contract, Pass, PassContext


@dataclass(frozen=True)
class DeduplicateInitializers(Pass):
    """f(w1), g(w2) with w1 = w2 -> f(w1), g(w1)

    Equal means type, shape and bytes: zeros of different sign and different NaN are different. Above `max_hashed_kib`
    only one tensor twice and the same bytes of the same file are merged, so that nothing large is read. Defaults of
    graph inputs and graph outputs keep their own.
    """

    contract: ClassVar[Contract] = Contract.EXACT
    max_hashed_kib: int = 1024
    """Largest tensor whose bytes are compared, in KiB; only tensors of equal type and shape are read."""
    read_all: bool = False
    """Compare the bytes of tensors of any size."""

    def __post_init__(self) -> None:
        if self.max_hashed_kib < 0:
            raise ValueError("max-hashed-kib must not be negative")

    def run(self, program: Program, context: PassContext) -> int:
        before = len(context.rewrites)
        for graph in program.scopes():
            values = [v for v in graph.initializers.values() if _is_private(v)]
            forms = [_form(v) for v in values]
            counts = Counter(forms)
            seen: dict[Hashable, onnx_ir.Value] = {}
            for value, form in zip(values, forms, strict=True):
                if counts[form] < 2:
                    continue
                first = seen.setdefault((form, self._contents(value)), value)
                if first is value:
                    continue
                if not context.allows(self.name):
                    return len(context.rewrites) - before
                value.replace_all_uses_with(first)
                del graph.initializers[value.name or ""]
                context.applied(self, value.name or "")
        return len(context.rewrites) - before

    def _contents(self, value: onnx_ir.Value) -> Hashable:
        """What equal tensors of equal type and shape have in common."""
        tensor = value.const_value
        if isinstance(tensor, SmallTensor):
            return tensor.tobytes()
        if tensor is None or isinstance(tensor, onnx_ir.LazyTensor) or tensor.dtype == onnx_ir.DataType.STRING:
            return id(tensor)
        if self.read_all or tensor.nbytes <= self.max_hashed_kib << 10:
            return hashlib.sha256(tensor.tobytes()).digest()
        if isinstance(tensor, onnx_ir.ExternalTensor):
            return (str(tensor.path), tensor.offset, tensor.length)
        return id(tensor)


def _is_private(value: onnx_ir.Value) -> bool:
    return value.const_value is not None and not value.is_graph_input() and not value.is_graph_output()


def _form(value: onnx_ir.Value) -> Hashable:
    tensor = value.const_value
    return None if tensor is None else (tensor.dtype, *tensor.shape)
