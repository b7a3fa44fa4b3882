"""Empirical bias correction: takes the mean shift that quantization gives each channel back out of the bias."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..prepare.patterns import compute_layer
from ..progress import ProgressBar
from .checks import batches_as_list, check_ready
from .quantized_layers import Key, LayerCall, QuantizedModelRun
from .report import MethodReport

_METHOD = "bias_correction"


def bias_correction(prepared: nn.Module, batches) -> nn.Module:
    """Moves the biases of a prepared and calibrated model so that each layer's output keeps its float mean. In place; returns `prepared`.

    Nagel et al., "Data-free quantization through weight equalization and bias correction" (ICCV 2019), section 4.2, with means measured
    on data (appendix D) instead of derived. Layer by layer in the order in which they run, ``E[float output] - E[quantized output]`` of
    every output channel, over batch and positions, is added to the bias; a layer's quantized input already has the corrections of those
    before it. A layer module without a bias gets one, a new key in its state_dict. Where there is no place for one (a functional call
    without bias, a bias that is computed), the layer is left alone and the report says so.

    Args:
        prepared: from `prepare` or `prepare_qat`, calibrated.
        batches: typical inputs, as for `calibrate`; kept in memory, and run once per layer.

    Returns:
        `prepared`. The newest entry of its ``torchquant_methods`` is the report: a row per layer with its largest and root mean square
        shift, in units of the output, or the reason why it was left alone.

    Raises:
        TypeError, ValueError: for a model that is not prepared and calibrated, for empty batches, batches that are none, and infinite or
            NaN outputs. The model is unchanged then.
        RuntimeError: if the model does not run on a batch.
    """
    check_ready(_METHOD, prepared)
    run = QuantizedModelRun(_METHOD, prepared, batches_as_list(_METHOD, batches))
    report = MethodReport(_METHOD, {"batches": len(run.batches)})
    expected: dict[Key, _Mean] = {}
    calls: dict[Key, LayerCall] = {}

    def note(call):
        if not call.is_embedding:
            calls.setdefault(call.key, call)
            expected.setdefault(call.key, _Mean()).add(call)

    run.see_all(note)
    with ProgressBar(_METHOD, len(expected)) as bar:
        for key, mean in expected.items():
            _correct(run, key, calls[key], mean, report)
            bar.advance()
    for path, layer in run.layers.items():
        if not any(key.fake_quant == path for key in expected):
            report.add(layer.name, "it has no place for a bias (an embedding), or no batch reached it")
    report.attach_to(prepared)
    return prepared


class _Mean:
    """Mean of each output channel over all calls."""

    def __init__(self):
        self.total, self.count = 0.0, 0

    def add(self, call: LayerCall) -> None:
        rows = call.channels_last(call.result).double()
        self.total, self.count = self.total + rows.sum(0), self.count + len(rows)

    def value(self) -> Tensor:
        return self.total / self.count


def _correct(run: QuantizedModelRun, key: Key, call: LayerCall, expected: _Mean, report: MethodReport) -> None:
    layer = run.layers[key.fake_quant]
    name = layer.name if not key.first_row else f"{layer.name}[{key.first_row}:]"
    if reason := _why_not(run.prepared, layer, call):
        report.add(name, reason)
        return
    mean = _Mean()
    for index in range(len(run.batches)):
        for quantized_call in run.calls_of(key, index, quantized=True):
            mean.add(quantized_call)
    shift = expected.value() - mean.value()
    with torch.no_grad():
        if call.bias is None:
            layer.module.bias = nn.Parameter(shift.to(call.result.dtype))
        else:
            call.bias.detach().add_(shift.to(call.bias.dtype))
    report.add(name, largest_shift=float(shift.abs().max()), rms_shift=float(shift.square().mean().sqrt()), new_bias=call.bias is None)


def _why_not(prepared: nn.Module, layer, call: LayerCall) -> str | None:
    """Why there is no bias to correct; None if there is one, or can be."""
    if call.bias is None:
        can_have_one = compute_layer(layer.module) is not None and layer.parameter == "weight" and "bias" in layer.module._parameters
        return None if can_have_one else "it is a functional call without bias, so there is no parameter that could hold the correction"
    owners = {parameter.untyped_storage().data_ptr() for parameter in prepared.parameters()}
    if call.bias.untyped_storage().data_ptr() not in owners:
        return "its bias is computed, not a plain parameter"
    return None
