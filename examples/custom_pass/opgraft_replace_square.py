"""Square by multiplying."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir
from opgraft import Contract, NoMatch, PatternPass
from opgraft.ir.program import constant_array


@dataclass(frozen=True)
class ReplaceSquare(PatternPass):
    """Pow(x, 2) -> Mul(x, x)"""

    contract: ClassVar[Contract] = Contract.EXACT

    def pattern(self, p: Any, x: Any, exponent: Any) -> Any:
        return p.Pow(x, exponent)

    def check(self, match: Any, x: onnx_ir.Value, exponent: onnx_ir.Value) -> NoMatch | None:
        number = constant_array(exponent)
        if number is None or number.size != 1 or number.reshape(()) != 2:
            return NoMatch("the exponent is not the constant 2", exponent)
        if x.dtype is None or not x.dtype.is_floating_point():
            return NoMatch("the base is not known to be of floating point", x)
        # An exponent of shape [1, 1] makes a matrix of a vector.
        if number.ndim and (x.shape is None or len(x.shape) < number.ndim):
            return NoMatch("the exponent may have more dims than the base", exponent)
        return None

    def rewrite(self, op: Any, x: onnx_ir.Value, exponent: onnx_ir.Value) -> onnx_ir.Value:
        return op.Mul(x, x)
