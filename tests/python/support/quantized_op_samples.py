"""Sample calls of the integer ops; see op_samples.py. test_ops_opcheck.py imports this module."""

import json

import torch
from support.op_samples import call, samples_of

OUTPUT = {"output_zero_point": 7, "output_dtype": torch.uint8}
CONV_2D = {"kernel_size": [3, 3], "stride": [2, 1], "padding": [1, 1], "dilation": [1, 1], "output_padding": [0, 0]}
CONV_1D = {"kernel_size": [3], "stride": [1], "padding": [1], "dilation": [2], "output_padding": [0]}


def codes(*shape, dtype=torch.uint8):
    return torch.randint(0, 256, shape).to(torch.uint8).view(dtype)


def int8_weight(*shape):
    return torch.randint(-127, 128, shape).to(torch.int8)


def scaling(channels):
    return torch.rand(channels) * 1e-2, torch.randn(channels)


@samples_of("quantized_conv")
def quantized_conv():
    nhwc = codes(2, 4, 8, 6).to(memory_format=torch.channels_last)
    return [
        call(codes(2, 4, 8, 6), int8_weight(6, 4, 3, 3), *scaling(6), **CONV_2D, x_zero_point=100, **OUTPUT),
        call(
            nhwc, int8_weight(6, 2, 3, 3), *scaling(6), codes(2, 6, 4, 6, dtype=torch.int8), **CONV_2D, groups=2,
            x_zero_point=100, residual_multiplier=0.5, activation="silu", output_scale=0.1, **OUTPUT,
        ),
        call(codes(2, 5, 9), codes(4, 8), *scaling(4), **CONV_1D, x_zero_point=0, weight_bits=4, weight_quant_min=-8, **OUTPUT),
        call(codes(1, 4, 5, 5), int8_weight(4, 3, 3, 3), *scaling(3), **CONV_2D, transposed=True, x_zero_point=3, output_dtype=torch.float32),
        call(codes(0, 4, 8, 6), int8_weight(6, 4, 3, 3), *scaling(6), **CONV_2D, x_zero_point=100, **OUTPUT),
    ]


@samples_of("quantized_linear")
def quantized_linear():
    return [
        call(codes(5, 8), int8_weight(3, 8), *scaling(3), x_zero_point=100, **OUTPUT),
        call(codes(2, 5, 7), codes(3, 4), *scaling(3), codes(2, 5, 3), x_zero_point=1, weight_bits=4, weight_quant_min=-8, **OUTPUT),
        call(codes(8, dtype=torch.int8), int8_weight(3, 8), *scaling(3), x_zero_point=-5, output_dtype=torch.bfloat16),
        call(codes(0, 8), int8_weight(3, 8), *scaling(3), x_zero_point=100, **OUTPUT),
    ]


@samples_of("quantized_linear_dynamic")
def quantized_linear_dynamic():
    return [
        call(torch.randn(2, 5, 8), int8_weight(3, 8), torch.rand(3), torch.randn(3)),
        call(torch.randn(5, 8).half(), int8_weight(3, 8), torch.rand(3), activation="gelu"),
    ]


@samples_of("quantized_linear_weight_only")
def quantized_linear_weight_only():
    return [
        call(torch.randn(2, 5, 8), int8_weight(3, 8), torch.rand(3), None, torch.randn(3)),
        call(
            torch.randn(5, 8).bfloat16(), codes(3, 4), torch.rand(3, 2), torch.ones(3, 2), weight_bits=4,
            weight_quant_min=0, group_size=4,
        ),
    ]


@samples_of("quantized_embedding")
def quantized_embedding():
    indices = torch.randint(0, 9, (2, 3))
    return [
        call(indices, int8_weight(9, 6), torch.rand(9), embedding_dim=6, output_dtype=torch.float32),
        call(
            indices.int(), codes(9, 3), torch.rand(9, 2), torch.zeros(9, 2), weight_bits=4, weight_quant_min=-8,
            embedding_dim=6, group_size=3, output_dtype=torch.float16,
        ),
    ]


@samples_of("quantized_add")
def quantized_add():
    factors = {"a_multiplier": 0.5, "a_zero_point": 3, "b_multiplier": 0.7, "b_zero_point": 9}
    return [
        call(codes(2, 3, 4, 5), codes(2, 3, 4, 5), **factors, **OUTPUT),
        call(codes(2, 3, 4, 5).to(memory_format=torch.channels_last), codes(3, 1, 1), **factors, **OUTPUT),
    ]


@samples_of("quantized_mul")
def quantized_mul():
    factors = {"multiplier": 0.01, "a_zero_point": 3, "b_zero_point": 9}
    return [call(codes(3, 1), codes(1, 4), **factors, **OUTPUT), call(codes(4), codes(4), **factors, output_dtype=torch.half)]


@samples_of("quantized_matmul")
def quantized_matmul():
    factors = {"multiplier": 0.01, "a_zero_point": 3, "b_zero_point": 9}
    heads = codes(2, 6, 3, 4).transpose(1, 2)  # side by side, as attention has them
    return [
        call(codes(2, 5, 8), codes(8, 6), **factors, **OUTPUT),
        call(codes(2, 3, 5, 4), heads.transpose(-2, -1), **factors, output_dtype=torch.float32),
        call(codes(2, 3, 5, 6), heads, **factors, activation="gelu", output_scale=0.1, **OUTPUT),
        call(codes(5, 8, dtype=torch.int8), codes(1, 8, 6), multiplier=0.01, a_zero_point=-7, b_zero_point=0, output_dtype=torch.half),
        call(codes(0, 5, 8), codes(8, 6), **factors, **OUTPUT),
    ]


@samples_of("quantized_lookup")
def quantized_lookup():
    nhwc = codes(2, 3, 4, 5, dtype=torch.int8).to(memory_format=torch.channels_last)
    return [
        call(codes(2, 7), codes(256), table_min=0, output_dtype=torch.uint8),
        call(nhwc, torch.randn(256), table_min=-128, output_dtype=torch.float32),
        call(codes(6, 8)[:, ::2], codes(256), table_min=0, output_dtype=torch.uint8),
    ]


POOL = {"kernel_size": [3, 2], "stride": [2, 2], "padding": [1, 1]}
REQUANTIZE = {"x_zero_point": 5, "multiplier": 0.9, **OUTPUT}


@samples_of("quantized_max_pool")
def quantized_max_pool():
    return [
        call(codes(2, 3, 8, 7), **POOL, dilation=[1, 1], ceil_mode=True, pad_value=0),
        call(codes(2, 3, 8), kernel_size=[2], stride=[2], padding=[0], dilation=[1], pad_value=0),
    ]


@samples_of("quantized_avg_pool")
def quantized_avg_pool():
    return [
        call(codes(2, 3, 8, 7), **POOL, ceil_mode=True, **REQUANTIZE),
        call(codes(2, 3, 8), kernel_size=[2], stride=[2], padding=[0], divisor_override=3, **REQUANTIZE),
    ]


@samples_of("quantized_resize_linear")
def quantized_resize_linear():
    return [
        call(codes(2, 3, 4, 5), output_size=[7, 9], align_corners=False, **REQUANTIZE),
        call(codes(2, 3, 4, 5), output_size=None, align_corners=True, scale_factors=[2.0, 1.5], **REQUANTIZE),
        call(codes(2, 3, 8), output_size=[5], align_corners=False, **REQUANTIZE),
    ]


@samples_of("quantized_adaptive_avg_pool")
def quantized_adaptive_avg_pool():
    return [call(codes(2, 3, 8, 7), output_size=[1, 1], **REQUANTIZE), call(codes(2, 3, 8), output_size=[3], **REQUANTIZE)]


def island_program(*steps, outputs):
    return json.dumps({"version": 1, "steps": [{"op": op, "args": args} for op, args in steps], "outputs": outputs})


@samples_of("quantized_island")
def quantized_island():
    x, scale, zero_point = {"input": 0}, {"constant": 0}, {"constant": 1}
    quantize = ("torchquant::quantize", [x, scale, zero_point, None, None, 0, 0, 255])
    lookup = ("torchquant::quantized_lookup", [{"value": 0}, {"constant": 2}, 0, 0])
    reshape = ("aten::reshape", [{"value": 1}, [{"size": 0}, -1]])
    dequantize = ("torchquant::dequantize", [{"value": 2}, scale, zero_point, None, None, 6])
    program = island_program(quantize, lookup, reshape, dequantize, outputs=[{"value": 3}, {"value": 0}])
    constants = [torch.tensor([0.1]), torch.tensor([100.0]), codes(256)]
    return [call([torch.randn(2, 3, 5)], [2], constants, program), call([torch.randn(2, 3, 5, 4)], [6], constants, program)]


@samples_of("attention")
def attention():
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    side_by_side = torch.randn(2, 5, 3, 8).transpose(1, 2)
    return [
        call(q, k, v),
        call(side_by_side, side_by_side, side_by_side, None, True, scale=0.5),
        call(q, k, v, torch.randn(5, 7)),
        call(q, k, v, torch.rand(2, 1, 1, 7) > 0.5),
        call(q.half(), k.half(), v.half()),
        call(q[0], k[0], v[0]),
    ]


@samples_of("layer_norm")
def layer_norm():
    weight, bias = torch.rand(19), torch.randn(19)
    return [
        call(torch.randn(2, 3, 19), weight, bias, eps=1e-3),
        call(torch.randn(19, 4).t()),
        call(torch.randn(2, 19).half(), weight.half(), bias.half()),
        call(torch.randn(0, 19), weight, None),
    ]


def kv_cache(batch, heads, capacity, depth, dtype=torch.int8):
    """key_cache, key_scale, value_cache, value_scale"""
    scales = [torch.rand(batch, heads, capacity) * 0.02 for _ in range(2)]
    caches = [int8_weight(batch, heads, capacity, depth).to(dtype) for _ in range(2)]
    return caches[0], scales[0], caches[1], scales[1]


FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def fp8_codes(*shape, dtype):
    return torch.randn(shape).to(dtype)


@samples_of("quantize_fp8")
def quantize_fp8():
    return [
        call(torch.randn(3, 7), torch.tensor([0.01]), dtype=FP8[0]),
        call(torch.randn(2, 3, 8).bfloat16(), torch.rand(2, 3) + 0.1, dtype=FP8[1]),
        call(torch.randn(5, 9, dtype=torch.float16).t(), torch.tensor(0.5), dtype=FP8[0]),
        call(torch.randn(0, 4), torch.ones(1), dtype=FP8[0]),
    ]


@samples_of("quantize_fp8_dynamic")
def quantize_fp8_dynamic():
    return [
        call(torch.randn(3, 7), dtype=FP8[0]),
        call(torch.randn(2, 3, 520).half(), dtype=FP8[1]),
        call(torch.randn(6).bfloat16(), dtype=FP8[0]),
        call(torch.randn(2, 0), dtype=FP8[0]),
    ]


@samples_of("dequantize_fp8")
def dequantize_fp8():
    return [
        call(fp8_codes(3, 7, dtype=FP8[0]), torch.tensor([0.01])),
        call(fp8_codes(2, 3, 8, dtype=FP8[1]), torch.rand(2, 3) + 0.1, dtype=torch.bfloat16),
    ]


@samples_of("fake_quantize_fp8")
def fake_quantize_fp8():
    return [
        call(torch.randn(3, 7, requires_grad=True), dtype=FP8[0]),
        call(torch.randn(3, 600, requires_grad=True), torch.tensor([0.001]), dtype=FP8[0]),
        call(torch.randn(2, 5, 8, dtype=torch.bfloat16, requires_grad=True), torch.rand(2, 5) + 0.1, dtype=FP8[1]),
        call(torch.randn(4, 6).t().half(), dtype=FP8[1]),
    ]


@samples_of("fake_quantize_fp8_backward")
def fake_quantize_fp8_backward():
    return [
        call(torch.randn(3, 7), torch.randn(3, 7), dtype=FP8[0]),
        call(torch.randn(2, 8).half(), torch.randn(2, 8).half(), torch.tensor([0.001]), dtype=FP8[1]),
    ]


@samples_of("quantized_linear_fp8")
def quantized_linear_fp8():
    return [
        call(torch.randn(2, 5, 8), fp8_codes(3, 8, dtype=FP8[0]), torch.rand(3) + 0.1, torch.randn(3)),
        call(torch.randn(5, 32).bfloat16(), fp8_codes(16, 32, dtype=FP8[0]), torch.rand(16) + 0.1, torch.randn(16)),
        call(torch.randn(5, 16).half(), fp8_codes(48, 16, dtype=FP8[1]), torch.rand(1) + 0.1, x_scale=torch.tensor([0.01])),
        call(torch.randn(5, 16), fp8_codes(130, 16, dtype=FP8[0]), torch.rand(130) + 0.1, x_dtype=FP8[1]),
        call(torch.randn(0, 16), fp8_codes(4, 16, dtype=FP8[0]), torch.rand(4) + 0.1),
    ]


@samples_of("kv_cache_append")
def kv_cache_append():
    key, value = torch.randn(2, 3, 2, 8), torch.randn(2, 2, 3, 8).transpose(1, 2)
    lengths = torch.tensor([0, 5], dtype=torch.int32)
    return [
        call(key, value, *kv_cache(2, 3, 7, 8), lengths),
        call(key.half(), value.half(), *kv_cache(2, 3, 7, 8), lengths),
        call(key, value, *kv_cache(2, 3, 7, 8, FP8[0]), lengths),
    ]


@samples_of("kv_cache_attention")
def kv_cache_attention():
    lengths = torch.tensor([0, 7], dtype=torch.int32)
    return [
        call(torch.randn(2, 6, 1, 64), *kv_cache(2, 3, 7, 64), lengths),
        call(torch.randn(2, 3, 1, 128).bfloat16(), *kv_cache(2, 3, 7, 128), lengths, scale=0.1),
        call(torch.randn(2, 3, 1, 64), *kv_cache(2, 3, 7, 64, FP8[0]), lengths),
        call(torch.randn(2, 3, 1, 128).half(), *kv_cache(2, 3, 7, 128, FP8[1]), lengths),
    ]
