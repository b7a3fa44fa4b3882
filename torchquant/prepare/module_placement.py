"""Places fake-quants module by module: each compute layer fake-quantizes its own input.

This is for models that torch.fx cannot trace, and for the insides of torch.nn modules that torch.fx keeps whole
(attention, transformer layers).
"""

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..not_compiled import not_compiled
from .input_fake_quants import InputFakeQuants
from . import products
from .modules import attention, recurrent, transformer
from .patterns import LINEAR, compute_function, compute_layer, operand, runs_as, with_operand
from .quantized_parameter import add_submodule, extend, functional_input_name

# layers whose forward prepare replaces, unless it is the user's
_WHOLE = (nn.MultiheadAttention, nn.LSTM, nn.GRU)


class FunctionalInputs(nn.Module):
    """Mixed into a module whose forward calls F.linear, matmul and their like on quantized parameters: fake-quantizes the inputs
    of those calls.

    torch.compile runs such a forward uncompiled, for it cannot follow the mark that a weight carries from its property
    to the call.
    """

    @not_compiled
    def forward(self, *args, **kwargs):
        with _FakeQuantizeInputs():
            return super().forward(*args, **kwargs)


class _FakeQuantizeInputs(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        compute = compute_function(function)
        weight = operand(args, kwargs, compute.weight) if compute else None
        # put back below: a caller's own mode must not see it
        fake_quant = weight.__dict__.pop("torchquant_input", None) if isinstance(weight, torch.Tensor) else None
        if fake_quant is None:
            return function(*args, **kwargs)
        args, kwargs = with_operand(args, kwargs, compute.input, fake_quant(operand(args, kwargs, compute.input)))
        try:
            return function(*args, **kwargs)
        finally:
            weight.torchquant_input = fake_quant


def place(placement, run, scope=""):
    """Quantizes every layer at or below the path `scope` that the example run reached."""
    model, inputs = placement.model, InputFakeQuants(placement)
    calls = {}
    for call in run.calls:
        calls.setdefault(call.path, call)
    scoped = [(path, module) for path, module in model.named_modules() if _within(path, scope)]
    for path, module in scoped:
        if runs_as(module, nn.MultiheadAttention):
            attention.place(placement, inputs, path, module, calls.get(path))
        elif runs_as(module, nn.LSTM) or runs_as(module, nn.GRU):
            recurrent.place(placement, path, module, calls.get(path))
        elif isinstance(module, _WHOLE):
            placement.keep_float(path, LINEAR, f"{type(module).__name__} has a forward of its own")
        elif compute_layer(module) and not _is_attention_output(model, path):
            _place_layer(placement, inputs, path, module, calls.get(path))
    for call in run.functional_calls:
        if _within(call.caller, scope):
            _place_functional(placement, inputs, call)
    if placement.wants_products():
        products.place(placement, inputs, [call for call in run.product_calls if _within(call.caller, scope)], scoped)
    for _, module in scoped:
        transformer.keep_layers_running(module)


def _within(path, scope):
    return not scope or path == scope or path.startswith(f"{scope}.")


def _is_attention_output(model, path):
    parent, _, name = path.rpartition(".")
    return name == "out_proj" and isinstance(model.get_submodule(parent), nn.MultiheadAttention)


def _place_layer(placement, inputs, path, module, call):
    layer = compute_layer(module)
    if call is None:
        placement.report.add(path, "layer", None, "example_inputs do not reach it")
        return
    settings = placement.settings(path, layer)
    if settings is None:
        return
    placement.quantize_weight(path, "weight", layer, settings)
    if settings.activation is not None:
        tensor = call.args[0] if call.args else call.kwargs["input"]
        inputs.quantize_input_of(path, module, tensor, settings.activation)


def _place_functional(placement, inputs, call):
    layer = call.compute.layer
    settings = placement.settings(call.owner, layer)
    if settings is None:
        return
    owner = placement.model.get_submodule(call.owner)
    placement.quantize_weight(call.owner, call.parameter, layer, settings)
    if settings.activation is None:
        return
    name = functional_input_name(call.parameter)
    if name not in owner._modules:
        add_submodule(owner, name, inputs.of(call.input, settings.activation, f"{call.owner}.{name}" if call.owner else name))
    extend(owner, parameter=call.parameter, marked=True)
    extend(placement.model.get_submodule(call.caller), mixin=FunctionalInputs)
