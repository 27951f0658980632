"""All FX rules: which function turns a node of which operator into torch."""

from __future__ import annotations

from opgraft.ir.fx.call import Rule
from opgraft.ir.fx.rules_contrib import CONTRIB_RULES
from opgraft.ir.fx.rules_control import CONTROL_RULES
from opgraft.ir.fx.rules_elementwise import ELEMENTWISE_RULES
from opgraft.ir.fx.rules_index import INDEX_RULES
from opgraft.ir.fx.rules_linear import LINEAR_RULES
from opgraft.ir.fx.rules_norm import NORM_RULES
from opgraft.ir.fx.rules_quantize import QUANTIZE_RULES
from opgraft.ir.fx.rules_recurrent import RECURRENT_RULES
from opgraft.ir.fx.rules_reduce import REDUCE_RULES
from opgraft.ir.fx.rules_signal import SIGNAL_RULES
from opgraft.ir.fx.rules_spatial import SPATIAL_RULES
from opgraft.ir.fx.rules_view import VIEW_RULES

STANDARD_RULES: dict[str, Rule] = {
    **CONTROL_RULES,
    **ELEMENTWISE_RULES,
    **INDEX_RULES,
    **LINEAR_RULES,
    **NORM_RULES,
    **QUANTIZE_RULES,
    **RECURRENT_RULES,
    **REDUCE_RULES,
    **SIGNAL_RULES,
    **SPATIAL_RULES,
    **VIEW_RULES,
    # Written by ONNX Runtime's optimizer into the default domain.
    "SimplifiedLayerNormalization": CONTRIB_RULES["SimplifiedLayerNormalization"],
}
RULES: dict[str, dict[str, Rule]] = {
    "": STANDARD_RULES,
    "ai.onnx": STANDARD_RULES,
    "com.microsoft": CONTRIB_RULES,
}
"""Domain -> operator -> rule."""
