"""Sample calls of every op of torch.ops.torchquant, by name; test_ops_opcheck.py fails for an op that has none.

To add an op: write a function that returns a list of `call(...)`, with tensors that require a gradient where the op is
differentiable, and decorate it with @samples_of("op_name").
"""

import torch

SAMPLES = {}


def samples_of(name):
    def register(function):
        assert name not in SAMPLES, f"two samples for {name}"
        SAMPLES[name] = function
        return function

    return register


def call(*args, **kwargs):
    return args, kwargs


UINT8 = {"quant_min": 0, "quant_max": 255}
INT4 = {"quant_min": -8, "quant_max": 7}


def activation(*shape, dtype=torch.float32, requires_grad=False):
    return (torch.randn(shape) * 3).to(dtype).requires_grad_(requires_grad)


def channels_last(requires_grad=False):
    return activation(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_(requires_grad)


def parameters(*shape, learnable=False, zero_point_dtype=torch.float32):
    scale = (torch.rand(shape) * 0.1 + 0.05).requires_grad_(learnable)
    zero_point = torch.full(shape, 3, dtype=zero_point_dtype)
    return scale, zero_point.requires_grad_(learnable)


@samples_of("fake_quantize")
def fake_quantize():
    return [
        call(activation(7, 5), *parameters(1), **UINT8),
        call(activation(7, 5, requires_grad=True), *parameters(1, zero_point_dtype=torch.int32), **UINT8),
        call(activation(7, 5, requires_grad=True), *parameters(1, learnable=True), **UINT8, grad_factor=0.5),
        call(channels_last(requires_grad=True), *parameters(3, learnable=True), axis=1, **INT4),
        call(activation(4, 6, requires_grad=True), *parameters(4, 2, learnable=True), axis=-1, group_size=3, **INT4),
        call(activation(3, 8, dtype=torch.bfloat16, requires_grad=True), *parameters(3, 1), axis=-1, group_size=8, **INT4),
        call(activation(0, 5), *parameters(5), axis=1, **UINT8),
    ]


def backward_calls(**kwargs):
    return [
        call(activation(7, 5), activation(7, 5), *parameters(1), **UINT8, **kwargs),
        call(channels_last(), channels_last(), *parameters(3), axis=1, **INT4, **kwargs),
        call(activation(4, 6), activation(4, 6), *parameters(4, 2), axis=1, group_size=3, **INT4, **kwargs),
    ]


@samples_of("fake_quantize_backward")
def fake_quantize_backward():
    return backward_calls()


@samples_of("fake_quantize_learnable_backward")
def fake_quantize_learnable_backward():
    return backward_calls(grad_factor=0.25)


@samples_of("quantize")
def quantize():
    return [
        call(activation(7, 5), *parameters(1), dtype=torch.uint8),
        call(channels_last(), *parameters(3), axis=1, dtype=torch.int8, **INT4),
        call(activation(4, 6, dtype=torch.float16), *parameters(4, 2), axis=1, group_size=3, dtype=torch.int8),
    ]


@samples_of("dequantize")
def dequantize():
    codes = torch.randint(-128, 128, (2, 6, 4, 5), dtype=torch.int8)
    return [
        call(codes, *parameters(1)),
        call(codes.to(memory_format=torch.channels_last), *parameters(6), axis=1, dtype=torch.bfloat16),
        call(codes, *parameters(2, 2, 4, 5), axis=1, group_size=3, dtype=torch.float16),
    ]


@samples_of("choose_qparams")
def choose_qparams():
    return [
        call(activation(7, 5), symmetric=False, **UINT8),
        call(activation(7, 5, requires_grad=True), axis=0, symmetric=True, **INT4),
        call(channels_last(), axis=1, group_size=3, symmetric=True, **INT4),
        call(activation(3, 8, dtype=torch.bfloat16), axis=-1, group_size=8, symmetric=True, **INT4),
    ]


@samples_of("qparams_from_min_max")
def qparams_from_min_max():
    return [call(torch.tensor([-1.0, 0.5]), torch.tensor([2.0, 3.0]), symmetric=False, **UINT8)]


@samples_of("power_of_two_qparams")
def power_of_two_qparams():
    return [
        call(*parameters(3), symmetric=False, **UINT8),
        call(*parameters(2, 2), symmetric=True, **INT4),
    ]


@samples_of("noisy_fake_quantize")
def noisy_fake_quantize():
    def noisy(x):
        return x, torch.rand(x.shape) - 0.5

    return [
        call(*noisy(activation(7, 5, requires_grad=True)), *parameters(1), **UINT8, round=True),
        call(*noisy(activation(7, 5, requires_grad=True)), *parameters(5), axis=1, **INT4, round=False),
        call(*noisy(activation(4, 6, dtype=torch.bfloat16)), *parameters(4, 2), axis=-1, group_size=3, **INT4, round=True),
    ]


def clip_and_zero_point(learned=True):
    return torch.tensor([2.5]).requires_grad_(learned), torch.tensor([3.0])


@samples_of("pact_fake_quantize")
def pact_fake_quantize():
    return [
        call(activation(7, 5, requires_grad=True), *clip_and_zero_point(), **UINT8),
        call(activation(7, 5, dtype=torch.bfloat16, requires_grad=True), *clip_and_zero_point(), **INT4),
    ]


@samples_of("pact_scale")
def pact_scale():
    return [call(*clip_and_zero_point(False), **UINT8)]


@samples_of("pact_clip")
def pact_clip():
    return pact_scale()


@samples_of("fused_observe_fake_quantize")
def fused_observe_fake_quantize():
    def state(channels):
        infinity = torch.full((channels,), float("inf"))
        return infinity, -infinity, torch.zeros(1, dtype=torch.int64), torch.ones(channels), torch.zeros(channels)

    return [
        call(activation(7, 5), *state(1), averaging_constant=0.1, symmetric=False, **UINT8),
        call(activation(7, 5, requires_grad=True), *state(1), averaging_constant=0.1, symmetric=False, **UINT8),
        call(channels_last(requires_grad=True), *state(3), averaging_constant=1.0, axis=1, symmetric=True, **INT4),
    ]


def range_state(*shape):
    infinity = torch.full(shape, float("inf"))
    return infinity, -infinity, torch.zeros(1, dtype=torch.int64)


def observed_histogram(*channels, bins=64):
    """(histogram, min_val, max_val) that saw something."""
    min_val, max_val, nonfinite_count = range_state(*(channels or (1,)))
    histogram = torch.zeros((*channels, bins), dtype=torch.int64)
    x = activation(*channels, 50)
    axis = 0 if channels else None
    torch.ops.torchquant.observe_histogram(x, histogram, min_val, max_val, nonfinite_count, axis=axis)
    return histogram, min_val, max_val


@samples_of("observe_min_max")
def observe_min_max():
    return [
        call(activation(7, 5, requires_grad=True), *range_state(1)),
        call(channels_last(), *range_state(3), axis=1),
        call(activation(4, 6, dtype=torch.float16), *range_state(4, 2), axis=1, group_size=3),
        call(activation(0, 5), *range_state(1)),
    ]


@samples_of("observe_moving_average")
def observe_moving_average():
    return [
        call(activation(7, 5, requires_grad=True), *range_state(1), averaging_constant=0.1),
        call(channels_last(), *range_state(3), axis=1, averaging_constant=1.0),
        call(activation(4, 6), *range_state(4, 2), axis=-1, group_size=3, averaging_constant=0.5),
    ]


@samples_of("fake_quantize_and_observe")
def fake_quantize_and_observe():
    return [
        call(x, *parameters(1), *range_state(1), averaging_constant=0.1, **UINT8)
        for x in (activation(7, 5), activation(7, 5, requires_grad=True), channels_last(requires_grad=True))
    ]


@samples_of("observe_histogram")
def observe_histogram():
    def state(*channels):
        min_val, max_val, nonfinite_count = range_state(*(channels or (1,)))
        return torch.zeros((*channels, 64), dtype=torch.int64), min_val, max_val, nonfinite_count

    return [
        call(activation(7, 5, requires_grad=True), *state()),
        call(channels_last(), *state(3), axis=1),
        call(activation(7, 5, dtype=torch.bfloat16), *state(5), axis=-1),
    ]


@samples_of("merge_moving_average")
def merge_moving_average():
    def averages():
        return torch.tensor([-1.0, 0.5]), torch.tensor([2.0, 3.0]), torch.tensor([0, 3])

    return [call(*averages(), *averages())]


@samples_of("merge_histogram")
def merge_histogram():
    return [
        call(*observed_histogram(), *observed_histogram()),
        call(*observed_histogram(3), *observed_histogram(3)),
    ]


@samples_of("qparams_from_histogram_percentile")
def qparams_from_histogram_percentile():
    return [
        call(*observed_histogram(), percentile=99.0, symmetric=False, **UINT8),
        call(*observed_histogram(3), percentile=99.0, symmetric=True, **INT4),
    ]


@samples_of("qparams_from_histogram_mse")
def qparams_from_histogram_mse():
    return [
        call(*observed_histogram(), symmetric=False, **UINT8),
        call(*observed_histogram(3), symmetric=True, **INT4),
    ]


@samples_of("qparams_from_histogram_entropy")
def qparams_from_histogram_entropy():
    return qparams_from_histogram_mse()
