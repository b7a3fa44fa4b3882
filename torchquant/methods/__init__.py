"""Methods of post-training quantization, each a step of its own; docs/methods.md says when each helps.

Float model in, float model out, before `prepare`: `cross_layer_equalization`, `smooth_quant`, `split_outlier_channels`. In place on a
prepared and calibrated model: `bias_correction`, `adaround`. What one of these did stands in the model's `torchquant_methods`. About
ranges: `choose_observers`, `save_calibration`, `load_calibration`, `calibration_curve`, `clipping_report`.
"""

from torchquant.methods.bias import bias_correction
from torchquant.methods.calibration_cache import load_calibration, save_calibration
from torchquant.methods.calibration_curve import CalibrationCurve, calibration_curve
from torchquant.methods.choose_observers import ObserverReport, choose_observers
from torchquant.methods.clipping import ClippingReport, clipping_report
from torchquant.methods.equalization import cross_layer_equalization
from torchquant.methods.report import MethodReport
from torchquant.methods.rounding import adaround
from torchquant.methods.smoothing import smooth_quant
from torchquant.methods.split_channels import split_outlier_channels

__all__ = [
    "CalibrationCurve",
    "ClippingReport",
    "MethodReport",
    "ObserverReport",
    "adaround",
    "bias_correction",
    "calibration_curve",
    "choose_observers",
    "clipping_report",
    "cross_layer_equalization",
    "load_calibration",
    "save_calibration",
    "smooth_quant",
    "split_outlier_channels",
]
