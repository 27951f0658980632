"""Small random models of many architectures, with ground truth: what opgraft's analyses are tested on.

from architectures import ARCHITECTURES, export, sharpen

built = sharpen(ARCHITECTURES["llama"].build("colliding_heads"))
built.module, built.inputs(), built.truth
path = export(ARCHITECTURES["llama"], "dynamo-18", "default")
"""

from __future__ import annotations

import architectures.codecs
import architectures.decoders
import architectures.encoders
import architectures.multimodal
import architectures.recurrent
import architectures.sequences
import architectures.spatial
import architectures.timm_models
import architectures.vision  # noqa: F401
from architectures.architecture import ARCHITECTURES, Architecture, Built, Sizes
from architectures.exporting import FORMS, ExportFailedError, export, samples, sharpened
from architectures.sharpening import rounding_noise, sensitivity, sharpen
from architectures.truth import AttentionTruth, NormTruth, Truth, module_calls, record_module_shapes

__all__ = [
    "ARCHITECTURES",
    "FORMS",
    "Architecture",
    "AttentionTruth",
    "Built",
    "ExportFailedError",
    "NormTruth",
    "Sizes",
    "Truth",
    "export",
    "module_calls",
    "record_module_shapes",
    "rounding_noise",
    "samples",
    "sensitivity",
    "sharpen",
    "sharpened",
]
