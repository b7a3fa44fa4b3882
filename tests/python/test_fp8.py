"""The fp8 ops against torch's casts: every value of the 16-bit types and the neighbours of every tie, scales, saturation,
gradients, the linear layer within its bound, and each error by its text."""

import pytest
import torch

from torchquant import functional as TF

LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
FORMATS = list(LARGEST)
ops = torch.ops.torchquant


def same_codes(actual, expected):
    return actual.dtype == expected.dtype and torch.equal(actual.view(torch.uint8), expected.view(torch.uint8))


def every_value(dtype):
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)


def finite_values(dtype):
    """Of all 256 codes, ascending."""
    values = torch.arange(256).to(torch.uint8).view(dtype).float()
    return values[values.isfinite()].unique()


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16])
def test_encodes_every_16_bit_value_as_torch_does_and_saturates(source, dtype):
    x = every_value(source)
    codes = TF.quantize_fp8(x, 1.0, dtype=dtype)
    numbers = ~x.isnan()
    assert same_codes(codes[numbers], x[numbers].float().clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype))
    assert (codes[~numbers].view(torch.uint8) == 0x7F).all()


@pytest.mark.parametrize("dtype", FORMATS)
def test_encodes_the_neighbours_of_every_tie_as_torch_does(dtype):
    values = finite_values(dtype)
    middles = (values[1:] + values[:-1]) / 2
    infinity = torch.tensor(float("inf"))
    x = torch.cat([values, middles, middles.nextafter(infinity), middles.nextafter(-infinity)])
    assert same_codes(TF.quantize_fp8(x, 1.0, dtype=dtype), x.to(dtype))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("target", [torch.float32, torch.bfloat16, torch.float16])
def test_decodes_all_256_codes(dtype, target):
    codes = torch.arange(256).to(torch.uint8).view(dtype)
    torch.testing.assert_close(TF.dequantize_fp8(codes, 1.0, dtype=target), codes.to(target), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float16])
def test_dynamic_scale_is_the_largest_finite_magnitude_of_the_row(dtype, source):
    x = (torch.randn(4, 3, 37) * 7).to(source)
    x[0, 0], x[0, 1, 0], x[0, 2, 0] = 0, float("inf"), float("nan")
    codes, scale = TF.quantize_fp8_dynamic(x, dtype=dtype)
    expected = x.float().nan_to_num(0, 0, 0).abs().amax(-1) / LARGEST[dtype]
    expected[0, 0] = 1
    assert torch.equal(scale, expected)
    assert same_codes(codes, TF.quantize_fp8(x, expected, dtype=dtype))
    assert codes[0, 1, 0].float() == LARGEST[dtype] and codes[0, 2, 0].float().isnan()


@pytest.mark.parametrize("dtype", FORMATS)
def test_scale_of_a_row_multiplies_by_its_reciprocal(dtype):
    x, scale = torch.randn(2, 5, 9000), torch.rand(2, 5) + 0.05
    expected = (x * (1 / scale)[..., None]).clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype)
    assert same_codes(TF.quantize_fp8(x, scale, dtype=dtype), expected)
    assert torch.equal(TF.dequantize_fp8(expected, scale), expected.float() * scale[..., None])
    one = (x * (1 / torch.tensor(0.3))).to(dtype)
    assert same_codes(TF.quantize_fp8(x.transpose(0, 2), 0.3, dtype=dtype), one.transpose(0, 2).contiguous())


@pytest.mark.parametrize("dtype", FORMATS)
def test_fake_quantize_is_dequantize_of_quantize(dtype):
    x = torch.randn(6, 50)
    codes, scale = TF.quantize_fp8_dynamic(x, dtype=dtype)
    assert torch.equal(TF.fake_quantize_fp8(x, dtype=dtype), TF.dequantize_fp8(codes, scale))
    fixed = TF.dequantize_fp8(TF.quantize_fp8(x.half(), 0.001, dtype=dtype), 0.001, dtype=torch.float16)
    assert torch.equal(TF.fake_quantize_fp8(x.half(), 0.001, dtype=dtype), fixed)


@pytest.mark.parametrize("dtype, last", [(torch.float8_e4m3fn, 464.0), (torch.float8_e5m2, 61439.0)])
def test_the_gradient_passes_straight_through_where_nothing_is_clipped(dtype, last):
    x = torch.tensor([[0.0, -last, last * 1.001, float("inf"), float("nan"), 3.0]], requires_grad=True)
    grad = torch.arange(1.0, 7.0)[None]
    TF.fake_quantize_fp8(x * 0.5, 0.5, dtype=dtype).backward(grad)
    assert torch.equal(x.grad, torch.tensor([[0.5, 1.0, 0.0, 0.0, 0.0, 3.0]]))
    y = torch.randn(3, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(TF.fake_quantize_fp8(y, dtype=dtype).sum(), y, create_graph=True)
    assert torch.equal(gradient, torch.ones(3, 8))


def test_a_second_derivative_is_an_error():
    x = torch.randn(3, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(TF.fake_quantize_fp8(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="fake_quantize_fp8_backward: has no derivative"):
        gradient.sum().backward()


def linear_by_hand(x, weight, weight_scale, bias, x_scale, x_dtype):
    """In fp64, and the largest error that the fp32 sums and the narrowing may have."""
    codes, scale = (TF.quantize_fp8(x, x_scale, dtype=x_dtype), x_scale) if x_scale is not None else TF.quantize_fp8_dynamic(x, dtype=x_dtype)
    scales = scale[..., None].double() * weight_scale.double()
    exact = codes.double() @ weight.double().t() * scales
    size = codes.double().abs() @ weight.double().abs().t() * scales
    if bias is not None:
        exact, size = exact + bias, size + bias.abs()
    return exact, (x.size(-1) + 4) * 2.0**-24 * size


@pytest.mark.parametrize("weight_dtype, x_dtype", [(FORMATS[0], FORMATS[0]), (FORMATS[0], FORMATS[1]), (FORMATS[1], FORMATS[0])])
@pytest.mark.parametrize("shape, channels", [((3, 4, 40), 70), ((1, 129), 64), ((33, 16), 1)])
@pytest.mark.parametrize("static", [False, True])
def test_linear_within_its_error_bound(weight_dtype, x_dtype, shape, channels, static):
    x, weight = torch.randn(shape), torch.randn(channels, shape[-1]).to(weight_dtype)
    x_scale = torch.tensor(0.01) if static else None
    for weight_scale, bias in ((torch.rand(channels) + 0.1, torch.randn(channels)), (torch.tensor([0.3]), None)):
        exact, bound = linear_by_hand(x, weight, weight_scale, bias, x_scale, x_dtype)
        out = ops.quantized_linear_fp8(x, weight, weight_scale, bias, x_scale=x_scale, x_dtype=x_dtype)
        assert out.dtype == x.dtype and ((out - exact).abs() <= bound + 1e-30).all()
    half = ops.quantized_linear_fp8(x.bfloat16(), weight, weight_scale, x_scale=x_scale, x_dtype=x_dtype)
    wide = ops.quantized_linear_fp8(x.bfloat16().float(), weight, weight_scale, x_scale=x_scale, x_dtype=x_dtype)
    assert torch.equal(half, wide.bfloat16())


def test_linear_takes_inputs_and_weights_of_any_strides():
    x, weight = torch.randn(12, 5).t(), torch.randn(12, 9).t().to(FORMATS[0])
    scale = torch.rand(18)[::2] + 0.1
    assert torch.equal(ops.quantized_linear_fp8(x, weight, scale), ops.quantized_linear_fp8(x.contiguous(), weight.contiguous(), scale.contiguous()))


ROWS = torch.randn(3, 8)
WEIGHT, WEIGHT_SCALE = torch.randn(4, 8).to(FORMATS[0]), torch.ones(4)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: TF.quantize_fp8(ROWS.double(), 1.0), "quantize_fp8: x must be float32, bfloat16 or float16, got float64"),
        (lambda: TF.quantize_fp8(ROWS, 1.0, dtype=torch.int8), "quantize_fp8: dtype must be float8_e4m3fn or float8_e5m2, got int8"),
        (lambda: TF.quantize_fp8(ROWS, torch.ones(8)), r"quantize_fp8: scale must have one element, or one for each row .* \[3\], got \[8\]"),
        (lambda: TF.quantize_fp8(ROWS, 0.0), "quantize_fp8: scale must be finite and greater than 0"),
        (lambda: TF.quantize_fp8(torch.tensor(1.0), 1.0), "quantize_fp8: x must have at least one dimension"),
        (lambda: TF.quantize_fp8_dynamic(ROWS, dtype=torch.uint8), "quantize_fp8_dynamic: dtype must be float8_e4m3fn or float8_e5m2"),
        (lambda: TF.dequantize_fp8(ROWS, 1.0), "dequantize_fp8: q must be float8_e4m3fn or float8_e5m2, got float32"),
        (lambda: TF.dequantize_fp8(WEIGHT, 1.0, dtype=torch.float64), "dequantize_fp8: dtype must be float32, bfloat16 or float16"),
        (lambda: TF.fake_quantize_fp8(ROWS, dtype=torch.float32), "fake_quantize_fp8: dtype must be float8_e4m3fn or float8_e5m2"),
        (lambda: ops.quantized_linear_fp8(ROWS, WEIGHT.float(), WEIGHT_SCALE), "weight must be float8_e4m3fn or float8_e5m2, got float32"),
        (lambda: ops.quantized_linear_fp8(ROWS[:, :7], WEIGHT, WEIGHT_SCALE), r"x must have shape \[..., K\] with the K of a weight"),
        (lambda: ops.quantized_linear_fp8(ROWS, WEIGHT, torch.ones(3)), r"weight_scale must hold one value, or one per output channel"),
        (lambda: ops.quantized_linear_fp8(ROWS, WEIGHT, WEIGHT_SCALE, torch.ones(3)), "bias must hold one value per output channel"),
        (lambda: ops.quantized_linear_fp8(ROWS, WEIGHT, WEIGHT_SCALE, x_scale=torch.ones(3)), "x_scale must have one element"),
        (lambda: ops.quantized_linear_fp8(ROWS, WEIGHT, -WEIGHT_SCALE), "quantized_linear_fp8: weight_scale must be finite and > 0"),
        (lambda: ops.quantized_linear_fp8(ROWS, WEIGHT, WEIGHT_SCALE, x_scale=torch.zeros(1)), "x_scale must be finite and > 0"),
        (lambda: ops.quantized_linear_fp8(ROWS, WEIGHT.to(FORMATS[1]), WEIGHT_SCALE, x_dtype=FORMATS[1]), "GPUs multiply no two float8_e5m2"),
    ],
)  # fmt: skip
def test_error_text(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()
