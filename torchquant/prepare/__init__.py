"""prepare and prepare_qat: from a float model to one with fake-quants where docs/architecture.md says that they stand."""

import copy

import torch
from torch import nn

from ..fake_quantize import FakeQuantize, merge_after_forward
from ..progress import ProgressBar
from . import fx_placement, fx_trace, module_placement
from .batch_norm import freeze_batch_norm
from .example_run import run_example, unpack
from .patterns import float_layer
from .float_model import not_float
from .placement import RECOMPUTED_BY_HOOK, Placement, PreparedModel, Report, check_prepared
from .quantized_parameter import extend, float_parameter, weight_fake_quants
from .sharding import join_sharding_group

__all__ = [
    "PreparedModel",
    "Report",
    "check_prepared",
    "float_parameter",
    "freeze_batch_norm",
    "not_float",
    "observe_weights",
    "prepare",
    "prepare_qat",
]


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
    with ProgressBar("preparing"):
        return _prepare_checked(model, *unpack(example_inputs), qconfig, training)


def _prepare_checked(model, args, kwargs, qconfig, training):
    prepared = copy.deepcopy(model)
    placement = Placement(prepared, qconfig, training)
    run = run_example(prepared, args, kwargs, keep_products=placement.wants_products())
    _place(placement, run, args, kwargs)
    _note_float_layers(placement, run)
    placement.check_products()
    if not placement.quantizes_anything():
        reasons = (
            "\n".join(f"  {row['name'] or 'the model'}: {row['reason']}" for row in placement.report.rows)
            or "  it has no layer that TorchQuant knows"
        )
        raise ValueError(f"prepare: there is nothing to quantize in {type(model).__name__}:\n{reasons}")
    extend(prepared, mixin=PreparedModel)
    prepared.register_forward_pre_hook(join_sharding_group)
    prepared.register_forward_hook(merge_after_forward)
    prepared.torchquant_report = placement.report
    prepared.torchquant_training = training
    prepared.torchquant_float_layers = {
        name: [kind, reason, "requested" if requested else "by design"]
        for name, (kind, reason, requested) in placement.float_layers.items()
    }
    for path, module in prepared.named_modules():
        if isinstance(module, FakeQuantize):
            module.name = path
            module.train(prepared.training)
            module.enable_observer(True)
            module.enable_fake_quant(training)
    return prepared


def _note_float_layers(placement, run):
    for call in run.calls:
        if layer := float_layer(call.module):
            placement.keep_float(call.path, layer, f"there is no integer kernel for {type(call.module).__name__}")
    for call in run.float_calls:
        placement.keep_float(call.owner, call.layer, call.reason, call.name)


def _check(model):
    if not isinstance(model, nn.Module):
        raise TypeError(f"prepare: model must be a torch.nn.Module, got {type(model).__name__}")
    for path, module in model.named_modules():
        where = path or "the model itself"
        if what := not_float(module):
            if isinstance(module, (PreparedModel, FakeQuantize)):
                raise ValueError(f"prepare: the model is {what} ({where} is); prepare the float model")
            raise TypeError(f"prepare: model must be made of Python modules, and {where} is {what}; prepare the float model")
        for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if value.is_meta:
                raise ValueError(
                    f"prepare: {f'{path}.{name}'.lstrip('.')} is on the meta device, which holds no values: call "
                    "model.to_empty(device='cpu') and load its weights first"
                )
        for name, value in module.named_parameters(recurse=False):
            if value.dtype in (torch.float64, torch.complex64, torch.complex128):
                raise ValueError(
                    f"prepare: {f'{path}.{name}'.lstrip('.')} is {value.dtype}; allowed are float32, bfloat16 and float16: "
                    "call model.float() first"
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


def observe_weights(prepared):
    """Takes the scales of weights from the weights as they are now: loading a state_dict or an optimizer may have changed
    them since. Learned scales stay, and so do those of a model in training whose observers its user has turned off.
    """
    for module, parameter, fake_quant in weight_fake_quants(prepared):
        frozen = prepared.torchquant_training and not fake_quant.observer_enabled
        if not fake_quant.spec.learns and not frozen:
            fake_quant.follow(float_parameter(module, parameter))
