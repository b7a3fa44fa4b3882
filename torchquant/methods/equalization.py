"""Cross-layer equalization: rescales channels between neighbouring layers so that one scale per tensor fits all of them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_float_model
from .dataflow import Dataflow, Layer, Step, Value
from .homogeneous import ELEMENTWISE, POOLS
from .report import MethodReport

_METHOD = "cross_layer_equalization"
_MAX_SWEEPS = 50
_SETTLED = 1e-3  # a sweep that changes no factor by more than this is the last

_ELEMENTWISE = ELEMENTWISE | {"prelu"}
_SPATIAL = POOLS | {"mean"}
# Arguments of F.batch_norm.
_STATE = ((1, "running_mean"), (2, "running_var"), (3, "weight"), (4, "bias"))
_RESHAPES = frozenset("flatten view reshape squeeze".split())


@dataclass(eq=False)
class _Pair:
    first: Layer
    norm: Step | None
    second: Layer


class _Refused(Exception):
    """Why a pair of layers cannot be equalized."""


def cross_layer_equalization(model: nn.Module, example_inputs) -> nn.Module:
    """A copy of the float `model` that computes the same in eval mode, with the channel ranges of neighbouring layers made alike.

    Nagel et al., "Data-free quantization through weight equalization and bias correction" (ICCV 2019), section 4.1. Where one layer
    (convolution, also depthwise, grouped and transposed, or linear) alone feeds the next through nothing but batch norm, functions with
    f(s*x) = s*f(x) for s > 0 (identity, ReLU, leaky ReLU, PReLU, dropout), pooling and flattening of single values, channel c leaves the
    first divided by ``s_c = sqrt(r1_c * r2_c) / r2_c`` and is multiplied back in the second, until both have the ranges
    ``sqrt(r1_c * r2_c)``.

    Batch norm stays a layer: ``s_c`` goes into its weight and bias. Besides, every row of a layer before a batch norm is scaled to one
    range, which the statistics and the weight of the batch norm undo.

    This helps weights with one scale per tensor. With one per output channel (the default of `qconfigs`) the rows gain nothing.

    Args:
        model: float, on any device; it is not changed.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments. The model runs on them to see which layers follow
            one another, and afterwards to check that it computes the same.

    Returns:
        The copy. The newest entry of its ``torchquant_methods`` is the report: a row per layer, with the layer that it was equalized
        with, or the reason why it was not.

    Raises:
        TypeError, ValueError: for a model that is no float model.
        RuntimeError: if the model does not run on `example_inputs`.
    """
    check_float_model(_METHOD, model)
    model = copy.deepcopy(model)
    flow = Dataflow(_METHOD, model, example_inputs)
    report = MethodReport(_METHOD)
    with torch.no_grad():
        pairs, refused = _find_pairs(flow)
        before = {layer: _spread(layer.output_ranges()) for layer in flow.layers}
        _equalize(pairs)
        levelled = _level_rows(flow)
    _report(report, flow, pairs, refused, levelled, before)
    if not flow.same_output():
        raise RuntimeError(f"{_METHOD}: the equalized model computes something else on example_inputs; please report this")
    report.attach_to(model)
    return model


def _find_pairs(flow: Dataflow) -> tuple[list[_Pair], dict[Layer, str]]:
    pairs, refused = [], {}
    for layer in flow.layers:
        try:
            pairs.append(_follow(flow, layer))
        except _Refused as reason:
            refused[layer] = str(reason)
    return pairs, refused


def _follow(flow: Dataflow, layer: Layer) -> _Pair:
    """The layer that alone reads what `layer` gives, and the batch norm in between."""
    _check_own(flow, layer)
    norm, value = None, layer.output
    while True:
        step = _only_reader(value)
        if step.layer is not None and step.layer.input is value:
            _check_second(flow, layer, step.layer, value)
            return _Pair(layer, norm, step.layer)
        if step.function is F.batch_norm and value is layer.output:
            _check_batch_norm(flow, step, layer)
            norm = step
        elif not _passes_factors(step, value, layer):
            raise _Refused(f"{step} comes next, which does not pass a positive factor per channel through")
        value = step.outputs[0]


def _check_own(flow: Dataflow, layer: Layer) -> None:
    if not (flow.used_once(layer.weight) and flow.used_once(layer.bias)):
        raise _Refused("its parameters are used more than once")


def _only_reader(value: Value) -> Step:
    if len(value.readers) != 1:
        names = ", ".join(dict.fromkeys(map(str, value.readers))) or "nothing"
        raise _Refused(f"its output is read by {names}" if not value.readers else f"its output is read more than once, by {names}")
    step = value.readers[0]
    if not step.outputs:
        raise _Refused(f"its output is read by {step}")
    return step


def _check_second(flow: Dataflow, first: Layer, second: Layer, value: Value) -> None:
    _check_own(flow, second)
    same_axis = second.is_convolution == first.is_convolution or value.tensor.dim() == 2
    if not same_axis or second.input_ranges().numel() != first.channels:
        raise _Refused(f"its channels are not those that {second.name!r} reads")


def _check_batch_norm(flow: Dataflow, norm: Step, layer: Layer) -> None:
    mean, variance, weight, bias = (norm.argument(*place) for place in _STATE)
    if weight is None or bias is None or mean is None or variance is None:
        raise _Refused(f"{norm} has no weight and bias, or no running statistics, to take the factors")
    stored = all(id(tensor) in flow.stored and flow.used_once(tensor) for tensor in (mean, variance, weight, bias))
    if not stored or not (layer.is_convolution or layer.output.tensor.dim() == 2):
        raise _Refused(f"{norm} does not normalize this layer's channels alone")


def _passes_factors(step: Step, value: Value, layer: Layer) -> bool:
    x, result = value.tensor, step.outputs[0].tensor
    if step.name in _ELEMENTWISE:
        return True
    if not layer.is_convolution or result.dim() < 2 or result.shape[:2] != x.shape[:2] or x.size(1) != layer.channels:
        return False
    return step.name in _SPATIAL or (step.name in _RESHAPES and result.numel() == x.size(0) * x.size(1))


def _equalize(pairs: list[_Pair]) -> None:
    for _ in range(_MAX_SWEEPS):
        changes = [_equalize_pair(pair) for pair in pairs]
        if max(changes, default=0.0) <= _SETTLED:
            return


def _equalize_pair(pair: _Pair) -> float:
    """One step for one pair; returns the largest change of a factor."""
    folded = pair.first.output_ranges()
    if pair.norm is not None:
        mean, variance, weight, bias, eps = _batch_norm_state(pair.norm)
        folded = folded * (weight / (variance + eps).sqrt()).abs()
    read = pair.second.input_ranges()
    factors = (folded / read).sqrt()
    factors = torch.where((folded > 0) & (read > 0) & factors.isfinite(), factors, torch.ones_like(factors))
    if pair.norm is None:
        pair.first.scale_outputs(1 / factors)
    else:
        weight.div_(factors)
        bias.div_(factors)
    pair.second.scale_inputs(factors)
    return float((factors - 1).abs().max())


def _level_rows(flow: Dataflow) -> set[Layer]:
    """Gives all rows of each layer before a batch norm one range; the batch norm undoes it."""
    levelled = set()
    for layer in flow.layers:
        try:
            _check_own(flow, layer)
            norm = _only_reader(layer.output)
            if norm.function is not F.batch_norm:
                continue
            _check_batch_norm(flow, norm, layer)
        except _Refused:
            continue
        mean, variance, weight, _, eps = _batch_norm_state(norm)
        ranges = layer.output_ranges()
        factors = torch.where(ranges > 0, ranges.max() / ranges, torch.ones_like(ranges))
        layer.scale_outputs(factors)
        weight.mul_(((variance * factors.square() + eps) / (variance + eps)).sqrt() / factors)
        mean.mul_(factors)
        variance.mul_(factors.square())
        levelled.add(layer)
    return levelled


def _batch_norm_state(norm: Step) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    return *(norm.argument(*place).detach() for place in _STATE), norm.argument(7, "eps")


def _spread(ranges: Tensor) -> float:
    """Largest range over the smallest that is not 0."""
    ranges = ranges[ranges > 0]
    return float(ranges.max() / ranges.min()) if ranges.numel() else 1.0


def _report(report, flow, pairs, refused, levelled, before) -> None:
    pair_of = {pair.first: pair for pair in pairs}
    for name, reason in flow.opaque.items():
        report.add(name, reason)
    for layer in flow.layers:
        changed = layer in pair_of or layer in levelled
        report.add(
            layer.name,
            None if changed else refused[layer],
            with_layer=pair_of[layer].second.name if layer in pair_of else None,
            with_batch_norm=layer in levelled,
            why_no_pair=refused.get(layer),
            spread_before=before[layer],
            spread_after=_spread(layer.output_ranges()),
        )
