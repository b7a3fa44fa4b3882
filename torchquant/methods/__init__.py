"""Methods of post-training quantization, each a step of its own; docs/methods.md says when each helps.

Float model in, float model out, before `prepare`: `cross_layer_equalization`, `smooth_quant`. In place on a prepared and calibrated
model: `bias_correction`, `adaround`. What a method did stands in the model's `torchquant_methods`.
"""

from .bias import bias_correction
from .equalization import cross_layer_equalization
from .report import MethodReport
from .rounding import adaround
from .smoothing import smooth_quant

__all__ = ["MethodReport", "adaround", "bias_correction", "cross_layer_equalization", "smooth_quant"]
