"""PTQ methods, each an independent step: `torchquant.methods.<name>`. docs/methods.md says when each one helps."""

from torchquant.methods.calibration_cache import load_calibration, save_calibration
from torchquant.methods.calibration_curve import CalibrationCurve, calibration_curve
from torchquant.methods.clipping import ClippingReport, clipping_report

__all__ = ["CalibrationCurve", "ClippingReport", "calibration_curve", "clipping_report", "load_calibration", "save_calibration"]
