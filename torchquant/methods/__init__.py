"""PTQ methods, each an independent step: `torchquant.methods.<name>`. docs/methods.md says when each one helps."""

from torchquant.methods.calibration_cache import load_calibration, save_calibration
from torchquant.methods.calibration_curve import CalibrationCurve, calibration_curve
from torchquant.methods.choose_observers import ObserverReport, choose_observers
from torchquant.methods.clipping import ClippingReport, clipping_report
from torchquant.methods.split_channels import split_outlier_channels

__all__ = [
    "CalibrationCurve",
    "ClippingReport",
    "ObserverReport",
    "calibration_curve",
    "choose_observers",
    "clipping_report",
    "load_calibration",
    "save_calibration",
    "split_outlier_channels",
]
