"""What a proposed configuration is worth once it is converted: its latency beside the float model's, and its metric. Called by
SensitivityReport.measure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from torchquant.analysis.scan_candidate import Candidate
from torchquant.prepare.example_run import repeatable
from torchquant.progress import ProgressBar
from torchquant.qconfig import QConfigMapping


def measure_proposal(
    mapping: QConfigMapping, model: nn.Module, example_inputs, calibration: Iterable | None, evaluate: Callable | None
) -> dict[str, float | None]:
    """{"latency_ms", "float_latency_ms", "metric"} of the converted model, both times taken in turn; no metric without `evaluate`."""
    candidate = Candidate("proposal", model, example_inputs, mapping)
    candidate.calibrate(calibration, [])
    candidate.switch_on(candidate.all_fake_quants())
    quantized, float_ms, quantized_ms = candidate.measure_whole()
    metric = None
    if evaluate is not None:
        with ProgressBar("evaluating the proposal"), torch.no_grad(), repeatable():
            metric = float(evaluate(quantized))
    return {"latency_ms": quantized_ms, "float_latency_ms": float_ms, "metric": metric}
