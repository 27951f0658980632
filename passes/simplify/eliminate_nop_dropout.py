"""Remove Dropout where it does nothing."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir
from opgraft.ir.program import constant_array
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter, can_stand_for
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._operands import operand, opset_of, refuse_parameters


class EliminateNopDropout(NodePass):
    """Dropout(x) -> x

    Only in inference: `training_mode` absent or false (before opset 12 always). A mask that is used becomes a
    constant true of the shape of x, from opset 12, which defines it so. Dropout in training is random and stays,
    whatever its ratio.
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("Dropout",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        value = node.inputs[0]
        if value is None:
            return NoMatch("the input is absent", node)
        opset = opset_of(node, context)
        if opset < 7:
            return NoMatch("before opset 7 an attribute decides on training", node)
        training = operand(node, 2)
        if training is not None:
            flag = constant_array(training)
            if flag is None or flag.size != 1 or bool(flag.reshape(-1)[0]):
                return NoMatch("it is, or may be, in training", node)
        refused = refuse_parameters(node) or can_stand_for(value, node.outputs[0])
        if refused is not None:
            return refused
        mask = node.outputs[1] if len(node.outputs) > 1 else None
        if mask is None or not (mask.uses() or mask.is_graph_output()):
            return [value]
        if opset < 12:  # the runtime gives false there
            return NoMatch("the mask is used and its numbers are not defined before opset 12", mask)
        rank = len(value.shape) if value.shape is not None else None
        shape = op.op(
            "Shape",
            [value],
            dtype=onnx_ir.DataType.INT64,
            shape=onnx_ir.Shape([rank]),
        )[0]
        return [value, op.ConstantOfShape(shape, value=onnx_ir.tensor(np.array([True])))]
