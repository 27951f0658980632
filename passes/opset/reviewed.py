"""The reviewed table: changes of an operator that leave older nodes as they are.

Every (operator, version) pair of the installed standard is either here, under the reason for which
an older node means the same at the newer version, or has an adapter. A test compares both with the schemas,
so that a new release of the standard cannot slip through unread.
"""

from __future__ import annotations

from functools import cache

TYPES: dict[int, str] = {
    6: "Gemm",
    8: "Max Mean Min Sum",
    9: "Cast Constant Flatten Gemm Greater Less MatMul PRelu",
    11: "AveragePool Conv ConvTranspose Equal If Loop LpPool MaxPool MaxUnpool NonMaxSuppression",
    12: "Clip Max MaxPool Min Pow ReduceMax ReduceMin",
    13: (
        "Abs Add ArgMax ArgMin Cast Ceil Clip Concat Constant DepthToSpace Div Dropout Equal Exp Expand "
        "Flatten Floor Gather GatherElements GatherND Gemm Greater Identity If IsNaN LRN Less Log Loop "
        "MatMul Max Mean MeanVarianceNormalization Min Mod Mul Neg NegativeLogLikelihoodLoss NonZero Pad "
        "Pow Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin "
        "ReduceProd ReduceSumSquare Relu Reshape ScatterElements ScatterND Shape Sigmoid Sign Size Slice "
        "SoftmaxCrossEntropyLoss SpaceToDepth Sqrt Sub Sum Tanh Tile Transpose"
    ),
    14: "Add CumSum Div Identity Mul Relu Sub",
    15: "BatchNormalization Pow",
    16: "GreaterOrEqual Identity If LeakyRelu LessOrEqual Loop PRelu Scan Where",
    18: "OptionalGetElement ScatterElements ScatterND",
    19: "Constant DequantizeLinear Equal Identity If Loop Pad Reshape Resize Scan Shape Size",
    20: "ConstantOfShape IsInf IsNaN ReduceMax ReduceMin",
    21: (
        "Cast CastLike Constant ConstantOfShape Flatten Identity If Loop Pad QLinearMatMul Reshape Scan "
        "Shape Size Squeeze Transpose Unsqueeze"
    ),
    22: (
        "Acos Acosh Asin Asinh Atan Atanh AveragePool Bernoulli Conv ConvTranspose Cos Cosh DeformConv "
        "Det Dropout Elu EyeLike GRU GlobalAveragePool GlobalLpPool GlobalMaxPool GridSample HardSigmoid "
        "HardSwish InstanceNormalization LSTM LpNormalization LpPool MaxPool MaxRoiPool MaxUnpool Mish "
        "Multinomial NegativeLogLikelihoodLoss RNN RandomNormal RandomNormalLike RandomUniform "
        "RandomUniformLike RoiAlign Round Selu Sin Sinh Softplus Softsign Tan ThresholdedRelu"
    ),
    23: (
        "Cast CastLike Constant ConstantOfShape Flatten Identity If Loop Pad Reshape Scan Shape Size "
        "Squeeze Transpose Unsqueeze"
    ),
    24: (
        "Constant ConstantOfShape DequantizeLinear Flatten Identity If Loop Pad QuantizeLinear Reshape "
        "Scan Shape Size SplitToSequence Squeeze TopK Transpose Unsqueeze"
    ),
    25: (
        "Cast CastLike Constant ConstantOfShape DequantizeLinear Flatten Identity If Loop Pad "
        "QuantizeLinear Reshape Scan Shape Size Squeeze Transpose Unsqueeze"
    ),
    28: (
        "BitShift Cast Celu Compress DepthToSpace DequantizeLinear Einsum Mod OneHot Optional "
        "OptionalGetElement OptionalHasElement QuantizeLinear ReverseSequence Unique"
    ),
}
"""Only more element types (or optional and sequence types), more ranks, or clearer words.

Checked by hand where the words changed: AveragePool, LpPool and MaxPool 11 to 22 (the size with SAME padding
and the ignored window in the padding are what the runtime always computed), ConvTranspose 11 (the side of odd
padding, likewise), Clip 13 (`min` above `max`), Cast 13 (conversions that were already so), Resize 19,
BitShift 28 (shifts by more than the width were undefined).
"""

AXES: dict[int, str] = {
    11: (
        "ArgMax ArgMin Compress Concat Flatten Gather Hardmax LogSoftmax OneHot ReduceL1 ReduceL2 "
        "ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare "
        "Scan Slice Softmax Split Squeeze Unsqueeze"
    ),
}
"""An axis or index may be negative; non-negative ones mean the same."""

OPTION: dict[int, str] = {
    3: "GRU",
    7: "AveragePool",
    8: "MaxPool",
    10: "AveragePool MaxPool",
    11: "Constant DepthToSpace Gemm TopK",
    12: "ArgMax ArgMin Constant GatherND",
    13: "DequantizeLinear QuantizeLinear",
    14: "GRU LSTM RNN Reshape",
    15: "Shape",
    16: "ScatterElements ScatterND",
    18: "LpPool OptionalHasElement Pad Resize",
    19: "AveragePool Cast CastLike QuantizeLinear",
    21: "DequantizeLinear QuantizeLinear",
    23: "DequantizeLinear QuantizeLinear",
    24: "Attention Cast CastLike",
    25: "Attention",
    27: "Range",
    28: "SpaceToDepth",
}
"""A new optional attribute, input or output whose absence means the old behaviour.

GRU 3 is here although the spelling of a default changed with it (`foward`), which nobody could write.
"""

NEW_VALUES: dict[tuple[str, int], tuple[str, frozenset[str]]] = {
    ("Pad", 19): ("mode", frozenset({"wrap"})),
    ("Resize", 11): ("mode", frozenset({"cubic"})),
    ("Resize", 19): ("coordinate_transformation_mode", frozenset({"half_pixel_symmetric"})),
    ("ScatterElements", 18): ("reduction", frozenset({"max", "min"})),
    ("ScatterND", 18): ("reduction", frozenset({"max", "min"})),
}
"""Values of an existing attribute that only exist since a version: older versions do not know them."""


ROUNDINGS: dict[int, str] = {
    19: "AveragePool",
}
"""Changes that are no change of meaning, at which ONNX Runtime goes over to a kernel that rounds otherwise.

AveragePool-19 adds up a window in another order than AveragePool-11.
"""


@cache
def compatible_changes() -> dict[tuple[str, int], str]:
    """(operator, version that changed it) -> the reason for which an older node stays as it is."""
    tables = (("types", TYPES), ("axes", AXES), ("option", OPTION))
    return {
        (op_type, version): reason
        for reason, table in tables
        for version, names in table.items()
        for op_type in names.split()
    }


def is_compatible(op_type: str, version: int) -> bool:
    """Whether nodes of `op_type` written before `version` may stay as they are at it."""
    return (op_type, version) in compatible_changes()


def rounds_otherwise(op_type: str, version: int) -> bool:
    """Whether the runtime's kernels from `version` on round otherwise than those before it."""
    return op_type in ROUNDINGS.get(version, "").split()
