"""Keep one of equal weights."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir
from opgraft.ir.program import Program
from opgraft.passes._pass import Contract, Pass, PassContext


@dataclass(frozen=True)
class DeduplicateInitializers(Pass):
    """f(w1), g(w2) with w1 = w2 -> f(w1), g(w1)

    Equal means type, shape and bytes. Above `max_hashed_kib` only tensors that are the same bytes of the same file are
    merged: nothing large is read. Defaults of graph inputs and graph outputs keep their own.
    """

    contract: ClassVar[Contract] = Contract.EXACT
    max_hashed_kib: int = 64
    """Largest tensor whose bytes are compared, in KiB."""

    def run(self, program: Program, context: PassContext) -> int:
        before = len(context.rewrites)
        for graph in program.scopes():
            seen: dict[Hashable, onnx_ir.Value] = {}
            for name, value in list(graph.initializers.items()):
                key = self._key(value)
                if key is None:
                    continue
                first = seen.setdefault(key, value)
                if first is value:
                    continue
                if not context.allows(self.name):
                    return len(context.rewrites) - before
                value.replace_all_uses_with(first)
                del graph.initializers[name]
                context.applied(self, name)
        return len(context.rewrites) - before

    def _key(self, value: onnx_ir.Value) -> Hashable | None:
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or value.is_graph_output():
            return None
        form = (int(tensor.dtype), tuple(tensor.shape))
        if isinstance(tensor, onnx_ir.LazyTensor) or tensor.dtype == onnx_ir.DataType.STRING:
            return None
        if tensor.nbytes > self.max_hashed_kib * 1024:
            if isinstance(tensor, onnx_ir.ExternalTensor):
                return (*form, str(tensor.path), tensor.offset, tensor.length)
            return None
        return (*form, hashlib.sha256(tensor.tobytes()).digest())
