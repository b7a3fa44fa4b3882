"""Every integer op against the contract written out in NumPy (support/integer_reference.py): equal codes, not close ones."""

import concurrent.futures
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import integer_reference as reference

import torchquant  # noqa: F401

ops = torch.ops.torchquant
U8 = {"output_dtype": torch.uint8, "output_zero_point": 13, "output_quant_min": 0, "output_quant_max": 255}
S8 = {"output_dtype": torch.int8, "output_zero_point": -5, "output_quant_min": -128, "output_quant_max": 127}
INFINITY = float("inf")
# Clamp bounds already divided by the output scale.
CLAMP_ARGS = {"relu": [0.0, INFINITY], "relu6": [0.0, 60.5], "hardtanh": [-20.25, 33.5]}


def random_codes(*shape, dtype=torch.uint8):
    lo, hi = (0, 256) if dtype == torch.uint8 else (-128, 128)
    return torch.randint(lo, hi, shape).to(dtype)


def random_weight(*shape, bits=8):
    return torch.randint(*((-127, 128) if bits == 8 else (-8, 8)), shape).to(torch.int8)


def random_scaling(channels, depth, spread=40.0):
    """Multiplier and bias that spread the outputs over the codes and beyond both ends; some multipliers are negative, as a
    BatchNorm can make them."""
    multiplier = (torch.rand(channels) + 0.5) * spread / (math.sqrt(depth) * 127 * 74)
    return multiplier * torch.where(torch.rand(channels) < 0.25, -1.0, 1.0), torch.randn(channels) * 30


def zero_point_of(dtype):
    return 117 if dtype == torch.uint8 else -21


def assert_same_codes(actual, v, output, activation="none"):
    """Equal codes; after an activation evaluated by a polynomial, one step apart where v lies on a tie."""
    expected = reference.codes(
        v, output["output_zero_point"], output["output_quant_min"], output["output_quant_max"], output["output_dtype"]
    )
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    different = (actual != expected).numpy()
    if activation in reference.FUNCTIONS:
        v = np.asarray(v, dtype=np.float64)
        on_a_tie = np.abs(np.abs(v - np.floor(v)) - 0.5) < 1e-6 * np.maximum(1, np.abs(v))
        one_step = (actual.int() - expected.int()).abs().numpy() <= 1
        different &= ~(on_a_tie & one_step)
    assert not different.any(), f"{different.sum()} of {different.size} codes differ"


# ---- convolution ----------------------------------------------------------------------------------------------------

# name -> input shape, output channels, kernel, and what differs from stride 1, padding 0, dilation 1, groups 1
CONVS = {
    "1d": ((2, 5, 17), 7, [3], {}),
    "1d_strided": ((3, 4, 19), 6, [5], {"stride": [2], "padding": [2], "groups": 2}),
    "1d_depthwise": ((2, 9, 12), 9, [4], {"padding": [1], "dilation": [2], "groups": 9}),
    "1x1": ((2, 7, 5, 3), 9, [1, 1], {}),
    "3x3": ((2, 6, 9, 7), 5, [3, 3], {"padding": [1, 1]}),
    "7x7_strided": ((1, 3, 23, 21), 8, [7, 7], {"stride": [2, 2], "padding": [3, 3]}),
    "uneven": ((2, 4, 11, 8), 6, [2, 3], {"stride": [3, 1], "padding": [1, 2], "dilation": [1, 2], "groups": 2}),
    "dilated": ((1, 3, 13, 13), 4, [3, 3], {"padding": [4, 4], "dilation": [4, 4]}),
    "grouped": ((2, 12, 6, 5), 8, [3, 3], {"padding": [1, 1], "groups": 4}),
    "depthwise": ((2, 19, 8, 7), 19, [3, 3], {"stride": [2, 1], "padding": [1, 1], "groups": 19}),
    "depthwise_multiplier": ((2, 5, 6, 6), 15, [3, 3], {"padding": [1, 1], "groups": 5}),
    "only_padding_reached": ((1, 2, 1, 1), 3, [3, 3], {"stride": [5, 5], "padding": [7, 7]}),
    "one_channel": ((2, 1, 5, 5), 1, [3, 3], {"padding": [1, 1]}),
    "transposed_1d": ((2, 6, 7), 4, [3], {"stride": [2], "padding": [1], "output_padding": [1], "transposed": True}),
    "transposed": ((2, 4, 5, 3), 6, [3, 3], {"transposed": True}),
    "transposed_strided": (
        (1, 6, 5, 4),
        8,
        [4, 3],
        {"stride": [2, 3], "padding": [1, 0], "output_padding": [1, 2], "groups": 2, "transposed": True},
    ),
    "transposed_dilated": (
        (1, 3, 4, 5),
        2,
        [3, 2],
        {"dilation": [2, 3], "padding": [2, 1], "output_padding": [1, 1], "transposed": True},
    ),
    "transposed_depthwise": ((2, 7, 4, 4), 7, [3, 3], {"stride": [2, 2], "groups": 7, "transposed": True}),
}


def conv_case(name, dtype=torch.uint8, bits=8):
    """Input, integer weight, geometry, multiplier and bias of a named convolution."""
    shape, out_channels, kernel, changes = CONVS[name]
    ones, zeros = [1] * len(kernel), [0] * len(kernel)
    geometry = {"stride": ones, "padding": zeros, "dilation": ones, "groups": 1, "transposed": False}
    geometry |= {"output_padding": zeros} | changes
    rows, columns = (shape[1], out_channels) if geometry["transposed"] else (out_channels, shape[1])
    weight = random_weight(rows, columns // geometry["groups"], *kernel, bits=bits)
    multiplier, bias = random_scaling(out_channels, shape[1] // geometry["groups"] * math.prod(kernel))
    return random_codes(*shape, dtype=dtype), weight, kernel, geometry, multiplier * (16 if bits == 4 else 1), bias


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
@pytest.mark.parametrize("name", CONVS)
def test_conv_equals_the_contract(name, dtype, bits):
    x, weight, kernel, geometry, multiplier, bias = conv_case(name, dtype, bits)
    zero_point = zero_point_of(dtype)
    acc = reference.conv_accumulator(x, weight, zero_point, **geometry)
    v = reference.scaled(acc, multiplier, bias)
    stored = weight if bits == 8 else reference.pack_int4(weight, -8)
    call = {"kernel_size": kernel, "x_zero_point": zero_point, "weight_bits": bits, "weight_quant_min": -127 if bits == 8 else -8}
    for output in (U8, S8):
        actual = ops.quantized_conv(x, stored, multiplier, bias, **geometry, **call, **output)
        assert_same_codes(actual, v, output)
    as_float = ops.quantized_conv(x, stored, multiplier, bias, **geometry, **call, output_dtype=torch.float32)
    np.testing.assert_array_equal(as_float.numpy(), v)


@pytest.mark.parametrize("name", ["1d", "uneven", "depthwise", "transposed_strided"])
def test_conv_output_is_channels_last_whatever_the_input_strides(name):
    x, weight, kernel, geometry, multiplier, bias = conv_case(name)
    call = {"kernel_size": kernel, "x_zero_point": 9, **geometry, **U8}
    expected = ops.quantized_conv(x, weight, multiplier, bias, **call)
    channels_last = x.movedim(1, -1).contiguous().movedim(-1, 1)
    sliced = torch.cat([x, x], dim=-1)[..., : x.shape[-1]]
    transposed = x.transpose(0, -1).contiguous().transpose(0, -1)
    for same in (channels_last, sliced, transposed):
        assert torch.equal(ops.quantized_conv(same, weight, multiplier, bias, **call), expected)
    assert expected.movedim(1, -1).is_contiguous()
    strided_weight = weight.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(ops.quantized_conv(x, strided_weight, multiplier, bias, **call), expected)


@pytest.mark.parametrize("residual_dtype", [torch.uint8, torch.int8])
@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
@pytest.mark.parametrize("name", ["1d", "3x3", "depthwise", "transposed"])
def test_conv_adds_the_residual_before_the_activation(name, activation, residual_dtype):
    x, weight, kernel, geometry, multiplier, bias = conv_case(name)
    acc = reference.conv_accumulator(x, weight, 50, **geometry)
    residual = random_codes(*acc.shape, dtype=residual_dtype)
    tail = {"residual_multiplier": 0.37, "residual_zero_point": zero_point_of(residual_dtype)}
    args = CLAMP_ARGS.get(activation, [])
    v = reference.scaled(acc, multiplier, bias, residual, **tail)
    for same in (residual, residual.movedim(1, -1).contiguous().movedim(-1, 1)):
        actual = ops.quantized_conv(
            x, weight, multiplier, bias, same, kernel_size=kernel, x_zero_point=50, **geometry, **tail,
            activation=activation, activation_args=args, output_scale=0.05, **U8,
        )
        assert_same_codes(actual, reference.activate(v, activation, args, 0.05), U8, activation)


def test_conv_pads_with_the_zero_point():
    """A constant input at its zero point is a real 0, so every output is the bias alone, borders included."""
    x = torch.full((1, 3, 5, 5), 77, dtype=torch.uint8)
    out = ops.quantized_conv(
        x, random_weight(4, 3, 3, 3), torch.full((4,), 0.1), torch.full((4,), 21.0), kernel_size=[3, 3], stride=[1, 1],
        padding=[2, 2], dilation=[1, 1], output_padding=[0, 0], x_zero_point=77, output_dtype=torch.uint8,
    )
    assert (out == 21).all()


def test_conv_of_an_empty_batch():
    x, weight, kernel, geometry, multiplier, bias = conv_case("3x3")
    out = ops.quantized_conv(x[:0], weight, multiplier, bias, kernel_size=kernel, x_zero_point=0, **geometry, **U8)
    assert out.shape == (0, 5, 9, 7) and out.dtype == torch.uint8


def test_conv_of_many_threads_equals_one():
    x, weight, kernel, geometry, multiplier, bias = conv_case("7x7_strided")
    x = random_codes(2, 3, 65, 63)
    call = {"kernel_size": kernel, "x_zero_point": 1, **geometry, **U8}
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = ops.quantized_conv(x, weight, multiplier, bias, **call)
        torch.set_num_threads(4)
        assert torch.equal(ops.quantized_conv(x, weight, multiplier, bias, **call), expected)
    finally:
        torch.set_num_threads(threads)


# ---- linear -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
@pytest.mark.parametrize("shape,channels", [((1, 1), 1), ((3, 7), 5), ((9, 64), 33), ((2, 3, 5, 31), 4), ((13,), 6), ((1, 129), 257)])
def test_linear_equals_the_contract(shape, channels, dtype, bits):
    x, weight = random_codes(*shape, dtype=dtype), random_weight(channels, shape[-1], bits=bits)
    multiplier, bias = random_scaling(channels, shape[-1])
    zero_point = zero_point_of(dtype)
    acc = (x.double() - zero_point) @ weight.double().T
    residual = random_codes(*acc.shape)
    tail = {"residual_multiplier": 0.21, "residual_zero_point": 140}
    stored, quant_min = (weight, -127) if bits == 8 else (reference.pack_int4(weight, -8), -8)
    call = {"x_zero_point": zero_point, "weight_bits": bits, "weight_quant_min": quant_min}
    v = reference.scaled(acc, multiplier, bias, axis=-1)
    v_residual = reference.scaled(acc, multiplier, bias, residual, **tail, axis=-1)
    for output in (U8, S8):
        assert_same_codes(ops.quantized_linear(x, stored, multiplier, bias, **call, **output), v, output)
        fused = ops.quantized_linear(x, stored, multiplier, bias, residual, **call, **tail, **output)
        assert_same_codes(fused, v_residual, output)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)])
def test_linear_of_an_empty_batch(shape):
    multiplier, bias = random_scaling(3, 5)
    out = ops.quantized_linear(random_codes(*shape), random_weight(3, 5), multiplier, bias, x_zero_point=0, **U8)
    assert out.shape == (*shape[:-1], 3)


def test_linear_reads_any_strides():
    x, weight = random_codes(6, 9), random_weight(4, 9)
    multiplier, bias = random_scaling(4, 9)
    expected = ops.quantized_linear(x, weight, multiplier, bias, x_zero_point=3, **U8)
    strided = ops.quantized_linear(x.T.contiguous().T, weight.T.contiguous().T, multiplier, bias, x_zero_point=3, **U8)
    assert torch.equal(strided, expected)


@pytest.mark.parametrize("x_code,x_zero_point,w_code", [(255, 0, -127), (0, 255, -127), (255, 0, 127), (0, 255, 127)])
def test_linear_is_exact_at_the_largest_depth(x_code, x_zero_point, w_code):
    """The deepest K that is not refused, every product at its extreme: the accumulator reaches the edge of int32."""
    depth = (2**31 - 1) // (255 * 127)
    x = torch.full((2, depth), x_code, dtype=torch.uint8)
    weight = torch.full((1, depth), w_code, dtype=torch.int8)
    out = ops.quantized_linear(
        x, weight, torch.ones(1), torch.zeros(1), x_zero_point=x_zero_point, output_dtype=torch.float32
    )
    exact = np.float32((x_code - x_zero_point) * w_code * depth)
    assert (out.numpy() == exact).all()
    assert abs(float(exact)) > 2**31 - 255 * 127 * 2


@pytest.mark.parametrize("output_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_linear_float_output_is_not_rounded(output_dtype):
    x, weight = random_codes(5, 20), random_weight(6, 20)
    multiplier, bias = torch.rand(6) * 1e-3, torch.randn(6)
    out = ops.quantized_linear(x, weight, multiplier, bias, x_zero_point=100, output_dtype=output_dtype)
    v = reference.scaled((x.double() - 100) @ weight.double().T, multiplier, bias, axis=-1)
    assert out.dtype == output_dtype
    assert torch.equal(out, torch.from_numpy(v).to(output_dtype))


# ---- epilogue: every activation over every reachable code ---------------------------------------------------------------


def through_epilogue(v, **output):
    """The codes for the values v: a linear layer of depth 1 whose accumulator is 1 and whose bias is v."""
    x = torch.ones(1, 1, dtype=torch.uint8)
    weight = torch.ones(len(v), 1, dtype=torch.int8)
    return ops.quantized_linear(x, weight, torch.zeros(len(v)), v, x_zero_point=0, **output)[0]


@pytest.mark.parametrize("output_scale", [0.02, 0.1])
@pytest.mark.parametrize("output", [U8, S8], ids=["uint8", "int8"])
@pytest.mark.parametrize("activation", ["none", *reference.CLAMPS, *reference.FUNCTIONS])
def test_every_activation_on_every_input_code(activation, output, output_scale):
    """x: all 256 codes, through a multiplier that reaches well past both ends of the output range."""
    x = torch.arange(256, dtype=torch.uint8).reshape(256, 1)
    weight = torch.tensor([[1], [2], [-3]], dtype=torch.int8)
    multiplier, bias = torch.tensor([0.7, 1.3, 2.9]), torch.tensor([0.0, 0.25, -11.5])
    args = CLAMP_ARGS.get(activation, [])
    v = reference.scaled((x.double() - 128) @ weight.double().T, multiplier, bias, axis=-1)
    actual = ops.quantized_linear(
        x, weight, multiplier, bias, x_zero_point=128, activation=activation, activation_args=args,
        output_scale=output_scale, **output,
    )
    assert_same_codes(actual, reference.activate(v, activation, args, output_scale), output, activation)


@pytest.mark.parametrize("activation", reference.FUNCTIONS)
def test_activation_error_in_real_units(activation):
    """The bound that activation.h states, seen through an op with float output."""
    v = torch.cat([torch.linspace(-12, 12, 20001), torch.tensor([-80.0, 80.0, 1e-30, -1e-30, 0.0])])
    out = through_epilogue(v, activation=activation, output_dtype=torch.float32).double().numpy()
    exact = reference.FUNCTIONS[activation](v.double().numpy())
    assert (np.abs(out - exact) <= 2e-7 * np.maximum(1, np.abs(v.numpy()))).all()


def test_ties_round_to_even_before_the_zero_point_is_added():
    v = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5])
    assert through_epilogue(v, output_dtype=torch.uint8, output_zero_point=11).tolist() == [11, 13, 13, 11, 9, 9]


def test_saturates_at_the_given_range_not_at_the_dtype():
    v = torch.tensor([-1e30, -50.0, 0.0, 50.0, 1e30])
    limited = through_epilogue(
        v, output_dtype=torch.int8, output_zero_point=-1, output_quant_min=-8, output_quant_max=7
    )
    assert limited.tolist() == [-8, -8, -1, 7, 7]


def test_a_nan_after_the_activation_gives_the_zero_point():
    """silu(-inf) is NaN: v * output_scale overflows fp32 and meets sigmoid's 0."""
    v = torch.tensor([-3e38])
    out = through_epilogue(v, activation="silu", output_scale=100.0, output_dtype=torch.uint8, output_zero_point=42)
    assert out.tolist() == [42]


# ---- dynamic, weight-only, embedding ------------------------------------------------------------------------------------


def quantize_rows(x):
    """Codes and scales, from the contract: symmetric per row, absmax / 127 over finite values, tiny scales become 1."""
    x = x.float().numpy()
    finite = np.where(np.isfinite(x), np.abs(x), 0)
    scale = finite.max(axis=-1, keepdims=True) / np.float32(127)
    scale = np.where(scale < np.float32(2.0**-100), np.float32(1), scale)
    codes = np.rint(x * (np.float32(1) / scale))
    return np.clip(np.where(np.isnan(codes), 0, codes), -127, 127), scale


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape,channels", [((4, 33), 7), ((2, 3, 16), 5), ((1, 300), 65), ((8,), 3), ((15, 64), 33), ((29, 128), 40)])
def test_dynamic_equals_the_contract(shape, channels, dtype, bits):
    x, weight = (torch.randn(shape) * 3).to(dtype), random_weight(channels, shape[-1], bits=bits)
    weight_scale, bias = torch.rand(channels) * 0.01 + 1e-3, torch.randn(channels)
    codes, row_scale = quantize_rows(x)
    acc = codes.astype(np.float64) @ weight.double().numpy().T
    stored, quant_min = (weight, -127) if bits == 8 else (reference.pack_int4(weight, -8), -8)
    for b in (bias, None):
        offset = np.zeros(channels, np.float32) if b is None else b.numpy()
        v = reference.fmaf(*np.broadcast_arrays(acc.astype(np.float32), row_scale * weight_scale.numpy(), offset))
        out = ops.quantized_linear_dynamic(x, stored, weight_scale, b, weight_bits=bits, weight_quant_min=quant_min)
        assert out.dtype == dtype
        assert torch.equal(out, torch.from_numpy(v).to(dtype))


def test_dynamic_rows_do_not_see_each_other():
    """A zero row, a row of one tiny value, and rows with inf and NaN beside ordinary values."""
    x = torch.tensor([[0.0, 0.0], [1e-35, 0.0], [INFINITY, 1.0], [math.nan, -2.0], [-INFINITY, 4.0]])
    weight = torch.tensor([[1, 0], [0, 1]], dtype=torch.int8)
    out = ops.quantized_linear_dynamic(x, weight, torch.ones(2))
    codes, scale = quantize_rows(x)
    assert torch.equal(out, torch.from_numpy(np.float32(codes) * scale))
    assert out[:2].abs().sum() == 0 and out[3, 0] == 0
    assert out[2, 0] == 1.0  # +inf saturates to the row's largest finite value


def test_dynamic_activation_and_empty_batch():
    x, weight, scale = torch.randn(5, 8), random_weight(3, 8), torch.full((3,), 0.01)
    plain = ops.quantized_linear_dynamic(x, weight, scale)
    relu = ops.quantized_linear_dynamic(x, weight, scale, activation="relu", activation_args=[0.0, INFINITY])
    assert torch.equal(relu, plain.clamp(min=0))
    assert (plain < 0).any()
    assert ops.quantized_linear_dynamic(x[:0], weight, scale).shape == (0, 3)


def dequantized(weight, scale, zero_point, group_size):
    if group_size is not None:
        scale = scale.repeat_interleave(group_size, 1)
        zero_point = None if zero_point is None else zero_point.repeat_interleave(group_size, 1)
    else:
        scale, zero_point = scale[:, None], None if zero_point is None else zero_point[:, None]
    return (weight.double() - (0 if zero_point is None else zero_point.double())) * scale.double()


@pytest.mark.parametrize("bits,quant_min", [(8, -127), (4, -8), (4, 0)])
@pytest.mark.parametrize("group_size", [None, 5, 15])
@pytest.mark.parametrize("with_zero_point", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_only_within_its_error_bound(bits, quant_min, group_size, with_zero_point, dtype):
    depth, channels = 45, 7
    x = torch.randn(2, 3, depth).to(dtype)
    weight = torch.randint(quant_min, quant_min + (16 if bits == 4 else 255), (channels, depth)).to(torch.int8)
    shape = (channels,) if group_size is None else (channels, depth // group_size)
    scale = torch.rand(shape) * 0.1 + 0.01
    zero_point = torch.randint(-3, 4, shape).to(torch.int8) if with_zero_point else None
    bias = torch.randn(channels)
    stored = weight if bits == 8 else reference.pack_int4(weight, quant_min)
    out = ops.quantized_linear_weight_only(
        x, stored, scale, zero_point, bias, weight_bits=bits, weight_quant_min=quant_min, group_size=group_size
    )
    weight_hat = dequantized(weight, scale, zero_point, group_size)
    exact = F.linear(x.double(), weight_hat, bias.double())
    magnitude = F.linear(x.double().abs(), weight_hat.abs(), bias.double().abs())
    # docs/numerics.md: (K / 16 + 20) roundings of fp32, then the output's own rounding.
    bound = (depth / 16 + 20) * 2.0**-24 * magnitude + (0 if dtype == torch.float32 else 2.0**-8) * exact.abs()
    assert out.dtype == dtype
    assert ((out.double() - exact).abs() <= bound).all()


def test_weight_only_sees_changed_weights_and_scales():
    """The kernels keep a rearranged copy with the weight."""
    x, weight = torch.ones(1, 4), torch.ones(2, 4, dtype=torch.int8)
    scale, zero_point = torch.ones(2), torch.zeros(2)
    run = lambda *tensors: ops.quantized_linear_weight_only(x, *tensors).flatten().tolist()  # noqa: E731
    assert run(weight, scale, zero_point) == [4.0, 4.0]
    weight[0] = 3
    assert run(weight, scale, zero_point) == [12.0, 4.0]
    scale[1] = 2.0
    assert run(weight, scale, zero_point) == [12.0, 8.0]
    zero_point[1] = 1.0
    assert run(weight, scale, zero_point) == [12.0, 0.0]
    assert run(weight, scale) == [12.0, 8.0]
    for factor in (1.0, 2.0, 3.0):  # tensors that may come to lie where the last one lay
        assert run(weight, torch.full((2,), factor)) == [12.0 * factor, 4.0 * factor]
    assert run(weight.flip(0), scale) == [4.0, 24.0]
    with pytest.raises(RuntimeError, match="weight_scale must be finite and > 0"):
        run(weight, torch.tensor([1.0, float("nan")]))


def test_weight_only_from_many_threads():
    """Whoever comes first rearranges the weight; each call gets the result for its own scale."""
    x, weight = torch.ones(1, 64), torch.ones(32, 64, dtype=torch.int8)
    scales = [torch.full((32,), float(i)) for i in (1, 2)]

    def results(scale):
        return [ops.quantized_linear_weight_only(x, weight, scale)[0, 31].item() for _ in range(50)]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for i, values in enumerate(pool.map(results, scales * 2)):
            assert values == [64.0 * (1 + i % 2)] * 50


def test_weight_only_has_no_largest_depth():
    """It sums in floating point, so the bound of the integer products does not apply."""
    x, weight = torch.ones(1, 66312), torch.ones(2, 66312, dtype=torch.int8)
    assert ops.quantized_linear_weight_only(x, weight, torch.ones(2)).tolist() == [[66312.0, 66312.0]]


@pytest.mark.parametrize("bits,quant_min", [(8, -128), (4, -8), (4, 0)])
@pytest.mark.parametrize("group_size", [None, 3])
@pytest.mark.parametrize("with_zero_point", [False, True])
@pytest.mark.parametrize("output_dtype", [torch.float32, torch.float16])
def test_embedding_equals_the_contract(bits, quant_min, group_size, with_zero_point, output_dtype):
    rows, dim = 11, 9
    weight = torch.randint(quant_min, quant_min + (16 if bits == 4 else 256), (rows, dim)).to(torch.int8)
    shape = (rows,) if group_size is None else (rows, dim // group_size)
    scale = torch.rand(shape) + 0.1
    zero_point = torch.randint(-3, 4, shape).float() if with_zero_point else None
    stored = weight if bits == 8 else reference.pack_int4(weight, quant_min)
    for indices in (torch.tensor([[0, 10, 3], [3, 3, 1]]), torch.tensor([7], dtype=torch.int32), torch.empty(0, 2).long()):
        out = ops.quantized_embedding(
            indices, stored, scale, zero_point, weight_bits=bits, weight_quant_min=quant_min, embedding_dim=dim,
            group_size=group_size, output_dtype=output_dtype,
        )
        # (q - z) is exact and its product with the scale is rounded once.
        exact = dequantized(weight, scale, zero_point, group_size).float()[indices.long()]
        assert torch.equal(out, exact.to(output_dtype))


# ---- elementwise --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("a_dtype,b_dtype", list(itertools.product([torch.uint8, torch.int8], repeat=2)))
def test_add_and_mul_on_every_pair_of_codes(a_dtype, b_dtype):
    a = torch.arange(256).to(torch.uint8).view(a_dtype).reshape(256, 1)
    b = torch.arange(256).to(torch.uint8).view(b_dtype).reshape(1, 256)
    z_a, z_b = zero_point_of(a_dtype), zero_point_of(b_dtype)
    steps_a, steps_b = np.broadcast_arrays(np.float32(a.int() - z_a), np.float32(b.int() - z_b))
    zero_points = {"a_zero_point": z_a, "b_zero_point": z_b}
    total = reference.fmaf(steps_b, np.full_like(steps_b, 0.83), steps_a * np.float32(0.41))
    product = steps_a * steps_b * np.float32(0.0173)
    for output in (U8, S8):
        actual = ops.quantized_add(a, b, a_multiplier=0.41, b_multiplier=0.83, **zero_points, **output)
        assert_same_codes(actual, total, output)
        assert_same_codes(ops.quantized_mul(a, b, multiplier=0.0173, **zero_points, **output), product, output)


@pytest.mark.parametrize("activation", ["relu", "relu6", "hardtanh", "hardswish"])
def test_add_applies_the_activation(activation):
    a, b = random_codes(40, 50), random_codes(40, 50)
    args = CLAMP_ARGS.get(activation, [])
    v = reference.fmaf(np.float32(b.int() - 9), np.full((40, 50), 0.3, np.float32), np.float32(a.int() - 200) * np.float32(0.7))
    actual = ops.quantized_add(
        a, b, a_multiplier=0.7, a_zero_point=200, b_multiplier=0.3, b_zero_point=9, activation=activation,
        activation_args=args, output_scale=0.1, **U8,
    )
    assert_same_codes(actual, reference.activate(v, activation, args, 0.1), U8, activation)


@pytest.mark.parametrize("a_shape,b_shape", [((2, 3, 4, 5), (2, 3, 1, 1)), ((3, 1), (1, 4)), ((), (2, 2)), ((0, 3), (3,)), ((5,), (4, 5))])
def test_add_and_mul_broadcast(a_shape, b_shape):
    a, b = random_codes(*a_shape), random_codes(*b_shape, dtype=torch.int8)
    call = {"a_zero_point": 3, "b_zero_point": -2, "output_dtype": torch.float32}
    a_full, b_full = torch.broadcast_tensors(a, b)
    for op, factors in ((ops.quantized_add, {"a_multiplier": 0.5, "b_multiplier": 0.25}), (ops.quantized_mul, {"multiplier": 0.5})):
        out = op(a, b, **factors, **call)
        assert out.shape == a_full.shape
        assert torch.equal(out, op(a_full.contiguous(), b_full.contiguous(), **factors, **call))


def test_add_keeps_the_layout_of_a_dense_operand():
    a = random_codes(2, 3, 4, 5).to(memory_format=torch.channels_last)
    b = random_codes(2, 3, 4, 5)
    call = {"a_multiplier": 1.0, "a_zero_point": 0, "b_multiplier": 1.0, "b_zero_point": 0, **U8}
    out = ops.quantized_add(a, b, **call)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out, ops.quantized_add(a.contiguous(), b, **call))


@pytest.mark.parametrize("table_dtype", [torch.uint8, torch.int8, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
def test_lookup_on_every_code(dtype, table_dtype):
    table = torch.randperm(256).sub(0 if table_dtype == torch.uint8 else 128).to(table_dtype)
    smallest = 0 if dtype == torch.uint8 else -128
    x = (torch.arange(256) + smallest).to(dtype).reshape(4, 4, 4, 4)
    for view in (x, x.to(memory_format=torch.channels_last), x[:, ::2], x[:0]):
        out = ops.quantized_lookup(view, table, table_min=smallest, output_dtype=table_dtype)
        assert torch.equal(out, table[view.long() - smallest])


# ---- pooling ------------------------------------------------------------------------------------------------------------

POOLS = {
    "1d": ((2, 3, 11), [3], [2], [1], False),
    "1d_ceil": ((2, 3, 10), [3], [2], [0], True),
    "2d": ((2, 5, 9, 7), [3, 2], [2, 2], [1, 1], False),
    "2d_ceil": ((1, 4, 8, 9), [3, 3], [2, 2], [1, 1], True),
    "2d_ceil_past_padding": ((1, 2, 6, 6), [2, 2], [3, 3], [1, 1], True),
    "1d_ceil_window_exceeds_input": ((2, 3, 2), [3], [2], [0], True),
    "2d_ceil_window_exceeds_input": ((1, 2, 2, 2), [3, 3], [2, 2], [0, 0], True),
    "window_is_input": ((2, 3, 4, 6), [4, 6], [1, 1], [0, 0], False),
}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
@pytest.mark.parametrize("name", POOLS)
def test_max_pool_equals_torch(name, dtype):
    shape, kernel, stride, padding, ceil_mode = POOLS[name]
    x = random_codes(*shape, dtype=dtype)
    pad_value = 0 if dtype == torch.uint8 else -128
    dilations = [[1] * len(kernel)] if name != "2d" else [[1, 1], [2, 3]]
    torch_pool = (F.max_pool1d, F.max_pool2d)[len(kernel) - 1]
    for dilation in dilations:
        out = ops.quantized_max_pool(
            x, kernel_size=kernel, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode, pad_value=pad_value
        )
        expected = torch_pool(x.double(), kernel, stride, padding, dilation, ceil_mode)
        assert torch.equal(out, expected.to(dtype))
        assert out.movedim(1, -1).is_contiguous()


def test_max_pool_sees_the_pad_value_only_in_the_padding():
    x = torch.full((1, 1, 3, 3), 10, dtype=torch.uint8)
    out = ops.quantized_max_pool(x, kernel_size=[2, 2], stride=[2, 2], padding=[1, 1], dilation=[1, 1], pad_value=200)
    assert out.flatten().tolist() == [200, 200, 200, 10]


def window_sums(x, pad_value, kernel, stride, padding, ceil_mode, sizes):
    """Sum over each window of x padded with `pad_value`; in 2-d, clipped to the padded input as ceil_mode asks."""
    padded = F.pad(x, [side for size in reversed(padding) for side in (size, size)], value=pad_value)
    sums = F.avg_pool2d(padded, kernel, stride, 0, ceil_mode, divisor_override=1)
    return sums[:, :, : sizes[0], : sizes[1]].numpy()


@pytest.mark.parametrize("divisor", [None, 5])
@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
@pytest.mark.parametrize("name", POOLS)
def test_avg_pool_equals_the_contract(name, dtype, count_include_pad, divisor):
    shape, kernel, stride, padding, ceil_mode = POOLS[name]
    x, zero_point = random_codes(*shape, dtype=dtype), zero_point_of(dtype)
    centred = x.double() - zero_point
    window = (kernel, stride, padding)
    if len(kernel) == 1:
        centred = centred[:, :, None]
        window = ([1, *kernel], [1, *stride], [0, *padding])
    average = F.avg_pool2d(centred, *window, ceil_mode, count_include_pad, divisor)
    sums = window_sums(centred, 0.0, *window, ceil_mode, average.shape[2:])
    count = window_sums(torch.ones_like(centred), float(count_include_pad), *window, ceil_mode, average.shape[2:])
    count = count if divisor is None else np.full_like(count, divisor)
    np.testing.assert_allclose(sums / count, average.numpy())  # the reference counts as torch does
    v = np.float32(sums) * (np.float32(1.7) / np.float32(count))
    for output in (U8, S8):
        actual = ops.quantized_avg_pool(
            x, kernel_size=kernel, stride=stride, padding=padding, ceil_mode=ceil_mode, count_include_pad=count_include_pad,
            divisor_override=divisor, x_zero_point=zero_point, multiplier=1.7, **output,
        )
        assert_same_codes(actual, v.reshape(actual.shape), output)
        assert actual.movedim(1, -1).is_contiguous()


@pytest.mark.parametrize("shape,output_size", [((2, 3, 7, 5), [1, 1]), ((1, 4, 7, 5), [3, 2]), ((2, 3, 4, 4), [6, 5]), ((2, 5, 9), [4]), ((0, 3, 4, 4), [2, 2])])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
def test_adaptive_avg_pool_equals_the_contract(shape, output_size, dtype):
    x, zero_point = random_codes(*shape, dtype=dtype), zero_point_of(dtype)
    v = np.zeros((*shape[:2], *output_size), np.float32)
    for position in itertools.product(*map(range, output_size)):
        window = tuple(
            slice(o * size // out, -(-(o + 1) * size // out)) for o, size, out in zip(position, shape[2:], output_size)
        )
        part = x[(slice(None), slice(None), *window)].flatten(2).long() - zero_point
        v[(slice(None), slice(None), *position)] = np.float32(part.sum(-1)) * (np.float32(1.3) / np.float32(part.shape[-1]))
    actual = ops.quantized_adaptive_avg_pool(x, output_size=output_size, x_zero_point=zero_point, multiplier=1.3, **U8)
    assert_same_codes(actual, v, U8)


# shape, output_size or scale factors
RESIZES = {
    "up": ((2, 5, 4, 7), [9, 16], None),
    "down": ((1, 17, 16, 15), [5, 4], None),
    "one pixel": ((2, 3, 1, 1), [5, 3], None),
    "to one pixel": ((1, 3, 6, 5), [1, 1], None),
    "one axis": ((1, 33, 6, 5), [6, 11], None),
    "scale factors": ((1, 4, 7, 9), None, [2.0, 1.7]),
    "length": ((2, 6, 10), [23], None),
    "length scaled": ((2, 6, 10), None, [0.6]),
}


def torch_resize(x, output_size, align_corners, scale_factors):
    resize = torch.ops.aten.upsample_bilinear2d.vec if x.dim() == 4 else torch.ops.aten.upsample_linear1d.vec
    return resize(x, output_size, align_corners, scale_factors)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("name", RESIZES)
def test_resize_positions_are_those_of_torch(name, align_corners):
    shape, output_size, scale_factors = RESIZES[name]
    x = random_codes(*shape, dtype=torch.uint8)
    out = ops.quantized_resize_linear(
        x, output_size, align_corners, scale_factors, x_zero_point=100, multiplier=1.0, output_dtype=torch.float32
    )
    # Positions in fp64 differ from PyTorch's, so the comparison is with its fp32; only the rounding of the sum may differ.
    torch.testing.assert_close(out, torch_resize(x.float() - 100, output_size, align_corners, scale_factors), rtol=0, atol=1e-4)


def linear_taps(in_size, out_size, align_corners, scale_factor):
    """Neighbours and weights of every output position, in fp32 and in PyTorch's order of operations."""
    f32 = np.float32
    if align_corners:
        ratio = f32(in_size - 1) / f32(out_size - 1) if out_size > 1 else f32(0)
    else:
        ratio = f32(1 / scale_factor) if scale_factor else f32(in_size) / f32(out_size)
    out = np.arange(out_size, dtype=np.float32)
    position = ratio * out if align_corners else np.maximum(ratio * (out + f32(0.5)) - f32(0.5), f32(0))
    first = np.minimum(position.astype(np.int64), in_size - 1)
    weight = np.clip(position - first.astype(np.float32), f32(0), f32(1))
    if in_size == out_size:
        first, weight = np.arange(out_size), np.zeros(out_size, np.float32)
    return first, np.minimum(first + 1, in_size - 1), f32(1) - weight, weight


def interpolate(values, axis, taps):
    first, second, first_weight, second_weight = taps
    shape = [-1 if i == axis else 1 for i in range(values.ndim)]
    a = np.take(values, first, axis) * first_weight.reshape(shape)
    b = np.take(values, second, axis)
    return reference.fmaf(b, np.broadcast_to(second_weight.reshape(shape), b.shape), a)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
@pytest.mark.parametrize("name", RESIZES)
def test_resize_equals_the_contract(name, dtype, align_corners):
    shape, output_size, scale_factors = RESIZES[name]
    x, zero_point = random_codes(*shape, dtype=dtype), zero_point_of(dtype)
    v = np.float32(x.int().numpy() - zero_point)
    for i in reversed(range(len(shape) - 2)):  # along the columns first
        scale_factor = scale_factors[i] if scale_factors else None
        out_size = int(shape[2 + i] * scale_factor) if scale_factor else output_size[i]
        v = interpolate(v, 2 + i, linear_taps(shape[2 + i], out_size, align_corners, scale_factor))
    if len(shape) == 3:
        v = reference.fmaf(v, np.zeros_like(v), v)  # one row, with itself: nothing is added
    v = v * np.float32(0.77)
    for output in (U8, S8):
        actual = ops.quantized_resize_linear(
            x, output_size, align_corners, scale_factors, x_zero_point=zero_point, multiplier=0.77, **output
        )
        assert_same_codes(actual, v, output)
        assert actual.movedim(1, -1).is_contiguous()
