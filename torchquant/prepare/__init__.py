"""prepare and prepare_qat: from a float model to one with fake-quants where docs/architecture.md says that they stand."""

import copy

import torch
from torch import nn

from ..fake_quantize import FakeQuantize
from . import fx_placement, fx_trace, module_placement
from .batch_norm import freeze_batch_norm
from .example_run import run_example, unpack
from .placement import RECOMPUTED_BY_HOOK, Placement, PreparedModel, Report
from .quantized_parameter import extend

__all__ = ["PreparedModel", "Report", "freeze_batch_norm", "prepare", "prepare_qat"]


def prepare(model, example_inputs, qconfig):
    """A copy of `model` ready for calibrate: its observers watch and nothing is quantized yet.

    example_inputs is a tensor, a tuple of arguments or a dict of keyword arguments, as the model takes them; qconfig a
    QConfig for all layers or a QConfigMapping. What was decided for every layer and tensor stands in the result's
    `torchquant_report`.
    """
    return _prepare(model, example_inputs, qconfig, training=False)


def prepare_qat(model, example_inputs, qconfig):
    """Like prepare, for training: fake-quants are on from the first step and observers keep watching. Train it like any
    module.
    """
    return _prepare(model, example_inputs, qconfig, training=True)


def _prepare(model, example_inputs, qconfig, *, training):
    _check(model)
    args, kwargs = unpack(example_inputs)
    prepared = copy.deepcopy(model)
    run = run_example(prepared, args, kwargs)
    placement = Placement(prepared, qconfig, training)
    _place(placement, run, args, kwargs)
    for name, reason in run.float_calls:
        placement.report.add(name, "layer", None, reason)
    if not placement.quantizes_anything():
        reasons = (
            "\n".join(f"  {row['name'] or 'the model'}: {row['reason']}" for row in placement.report.rows)
            or "  it has no layer that TorchQuant knows"
        )
        raise ValueError(f"prepare: there is nothing to quantize in {type(model).__name__}:\n{reasons}")
    extend(prepared, mixin=PreparedModel)
    prepared.torchquant_report = placement.report
    for path, module in prepared.named_modules():
        if isinstance(module, FakeQuantize):
            module.name = path
            module.enable_observer(True)
            module.enable_fake_quant(training)
    return prepared


def _check(model):
    if not isinstance(model, nn.Module):
        raise TypeError(f"prepare: model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("prepare: model must be the Python module, got a TorchScript module")
    for path, module in model.named_modules():
        if isinstance(module, (PreparedModel, FakeQuantize)):
            raise ValueError(
                f"prepare: the model is prepared already ({path or 'the model itself'} is); prepare the float model"
            )
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                raise ValueError(f"prepare: {path}.{name} is {RECOMPUTED_BY_HOOK}".replace(" .", " "))


def _place(placement, run, args, kwargs):
    model = placement.model
    try:
        if not placement.wants_activations():
            raise fx_trace.Untraceable("no activation is quantized")
        graph = fx_trace.trace(model, run, args, kwargs)
    except fx_trace.Untraceable as reason:
        placement.report.graph = f"module by module, because {reason}"
        module_placement.place(placement, run)
    else:
        fx_placement.place(placement, graph, run)
        extend(model, graph=fx_trace.forward_of(graph, model, args, kwargs))
