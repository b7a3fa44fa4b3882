"""fake_quantize and its gradients against the formulas and ATen: every granularity, dtype and memory format."""

import pytest
import torch
from support import reference
from support.reference import GRANULARITIES, parameter_shape

import torchquant as tq

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RANGES = {"uint8": (0, 255), "int8": (-128, 127), "int8_symmetric": (-127, 127), "int4": (-8, 7), "int2": (-2, 1)}

granularities = pytest.mark.parametrize("granularity", GRANULARITIES.values(), ids=GRANULARITIES.keys())
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def make_parameters(shape, axis, group_size, quant_min, quant_max):
    count = parameter_shape(shape, axis, group_size)
    return torch.rand(count) * 0.2 + 0.01, torch.randint(quant_min, quant_max + 1, count).float()


def memory_formats(x):
    """x in layouts that hold the same values: dense ones, and ones with gaps or overlaps."""
    yield "contiguous", x
    if x.dim() == 4:
        yield "channels_last", x.to(memory_format=torch.channels_last)
    if x.dim() > 1:
        yield "transposed", x.transpose(0, -1).contiguous().transpose(0, -1)
    wide = torch.empty(*x.shape[:-1], x.shape[-1] * 2, dtype=x.dtype)
    wide[..., ::2] = x
    yield "strided", wide[..., ::2]
    padded = torch.empty(x.shape[0] + 1, *x.shape[1:], dtype=x.dtype)
    padded[1:] = x
    yield "offset", padded[1:]


def assert_same_bits(actual, expected):
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@granularities
@dtypes
@pytest.mark.parametrize("quant_range", RANGES.values(), ids=RANGES.keys())
def test_forward_is_the_contract(granularity, dtype, quant_range):
    shape, axis, group_size = granularity
    kwargs = dict(axis=axis, group_size=group_size, quant_min=quant_range[0], quant_max=quant_range[1])
    scale, zero_point = make_parameters(shape, axis, group_size, *quant_range)
    x = (torch.randn(shape) * 4).to(dtype)
    expected = reference.fake_quantize(x, scale, zero_point, **kwargs)
    for name, view in memory_formats(x):
        actual = tq.fake_quantize(view, scale, zero_point, **kwargs)
        assert actual.stride() == torch.empty_like(view).stride(), name
        assert_same_bits(actual, expected)


@granularities
@dtypes
def test_straight_through_gradient(granularity, dtype):
    shape, axis, group_size = granularity
    kwargs = dict(axis=axis, group_size=group_size, quant_min=-8, quant_max=7)
    scale, zero_point = make_parameters(shape, axis, group_size, -8, 7)
    values = (torch.randn(shape) * 2).to(dtype)
    grad = torch.randn(shape).to(dtype)
    code = torch.round(values.float() / reference.expand(scale, values, axis, group_size))
    code = code + reference.expand(zero_point, values, axis, group_size)
    expected = torch.where((code >= -8) & (code <= 7), grad, 0.0)
    for _, view in memory_formats(values):
        x = view.detach().requires_grad_()
        tq.fake_quantize(x, scale, zero_point, **kwargs).backward(grad)
        assert_same_bits(x.grad, expected)
        assert scale.grad is None


@granularities
@pytest.mark.parametrize("grad_factor", [1.0, 0.125])
def test_learnable_gradients_are_lsq(granularity, grad_factor):
    shape, axis, group_size = granularity
    kwargs = dict(axis=axis, group_size=group_size, quant_min=-8, quant_max=7, grad_factor=grad_factor)
    scale, zero_point = make_parameters(shape, axis, group_size, -4, 3)
    values = reference.away_from_ties(shape, scale, axis, group_size, spread=14)
    grad = torch.randn(shape)

    expected = [t.double().requires_grad_() for t in (values, scale, zero_point)]
    reference.learnable_fake_quantize(*expected, **kwargs).backward(grad.double())
    for _, view in memory_formats(values):
        actual = [t.detach().requires_grad_() for t in (view, scale, zero_point)]
        torch.ops.torchquant.fake_quantize(*actual, **kwargs).backward(grad)
        torch.testing.assert_close(actual[0].grad, expected[0].grad.float(), rtol=0, atol=0)
        for a, e in zip(actual[1:], expected[1:], strict=True):
            assert a.grad.shape == e.shape and a.grad.dtype == torch.float32
            torch.testing.assert_close(a.grad.double(), e.grad, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_learnable_gradients_of_half_inputs_are_summed_in_fp32(dtype):
    scale, zero_point = torch.tensor([0.25]), torch.tensor([3.0])
    x = reference.away_from_ties((64, 257), scale, None, None, spread=10).to(dtype)
    grad = torch.randn(64, 257).to(dtype)
    kwargs = dict(axis=None, group_size=None, quant_min=0, quant_max=15)
    expected = [t.double().requires_grad_() for t in (x, scale, zero_point)]
    reference.learnable_fake_quantize(*expected, **kwargs).backward(grad.double())
    _, scale_grad, zero_point_grad = torch.ops.torchquant.fake_quantize_learnable_backward(
        grad, x, scale, zero_point, **kwargs
    )
    torch.testing.assert_close(scale_grad.double(), expected[1].grad, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(zero_point_grad.double(), expected[2].grad, rtol=1e-5, atol=1e-3)


def test_only_the_gradients_that_are_needed():
    x, scale, zero_point = torch.randn(8), torch.tensor([0.1], requires_grad=True), torch.tensor([3])
    tq.fake_quantize(x, scale, zero_point, quant_min=0, quant_max=15).sum().backward()
    assert scale.grad is not None and x.grad is None


@pytest.mark.parametrize("quant_range", [(0, 255), (-128, 127), (-8, 7)])
def test_agrees_with_aten_per_tensor(quant_range):
    x = (torch.randn(10_000) * 3).requires_grad_()
    peer = x.detach().clone().requires_grad_()
    zero_point = sum(quant_range) // 2
    actual = tq.fake_quantize(x, 0.037, zero_point, quant_min=quant_range[0], quant_max=quant_range[1])
    expected = torch.fake_quantize_per_tensor_affine(peer, 0.037, zero_point, *quant_range)
    assert_same_bits(actual, expected)
    actual.backward(torch.ones_like(x))
    expected.backward(torch.ones_like(x))
    assert_same_bits(x.grad, peer.grad)


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_agrees_with_aten_per_channel(axis):
    x = torch.randn(5, 4, 3, 6)
    scale, zero_point = torch.rand(x.size(axis)) + 0.01, torch.randint(0, 256, (x.size(axis),), dtype=torch.int32)
    actual = tq.fake_quantize(x, scale, zero_point, axis=axis, quant_min=0, quant_max=255)
    assert_same_bits(actual, torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, 0, 255))


def test_ties_round_to_even_before_the_zero_point_is_added():
    x = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5])
    assert tq.fake_quantize(x, 1.0, 1, quant_min=-8, quant_max=7).tolist() == [-2.0, 0.0, 0.0, 2.0, 2.0]


def test_values_that_are_not_finite():
    x = torch.tensor([float("nan"), float("inf"), -float("inf")], requires_grad=True)
    y = tq.fake_quantize(x, 0.5, 2, quant_min=0, quant_max=15)
    assert y[0].isnan() and y[1:].tolist() == [6.5, -1.0]
    y.backward(torch.ones(3))
    assert x.grad.tolist() == [0.0, 0.0, 0.0]


def test_zero_points_are_rounded_and_clamped():
    x = torch.linspace(-3, 3, 41)
    for zero_point, effective in [(2.5, 2), (3.5, 4), (-9.0, 0), (99.0, 15)]:
        actual = tq.fake_quantize(x, 0.1, zero_point, quant_min=0, quant_max=15)
        assert_same_bits(actual, tq.fake_quantize(x, 0.1, effective, quant_min=0, quant_max=15))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("axis", [None, 0])
def test_integer_zero_points(dtype, axis):
    x, count = torch.randn(6, 40), 1 if axis is None else 6
    scale, zero_point = torch.rand(count) + 0.01, torch.randint(0, 100, (count,))
    actual = tq.fake_quantize(x, scale, zero_point.to(dtype), axis=axis, quant_min=0, quant_max=255)
    expected = tq.fake_quantize(x, scale, zero_point.float(), axis=axis, quant_min=0, quant_max=255)
    assert_same_bits(actual, expected)


@pytest.mark.parametrize("shape, axis, group_size", [((0,), None, None), ((3, 0), 0, None), ((0, 3), 1, None),
                                                      ((0, 3), 0, None), ((0, 8), 1, 4), ((4, 0), 0, 2)])  # fmt: skip
def test_empty_tensors(shape, axis, group_size):
    count = parameter_shape(shape, axis, group_size)
    x, scale, zero_point = torch.empty(shape), torch.ones(count), torch.zeros(count)
    inputs = [t.requires_grad_() for t in (x, scale, zero_point)]
    y = tq.fake_quantize(*inputs, axis=axis, group_size=group_size, quant_min=0, quant_max=255)
    assert y.shape == shape
    y.sum().backward()
    assert [t.grad.shape for t in inputs] == [shape, count, count]
    assert all(not t.grad.any() for t in inputs)


def test_zero_dimensional_input():
    assert tq.fake_quantize(torch.tensor(0.3), 0.25, 0, quant_min=-8, quant_max=7).item() == 0.25


def test_expanded_gradient():
    """sum().backward() hands over one value with stride 0."""
    x = torch.randn(5, 7, requires_grad=True)
    tq.fake_quantize(x, 0.01, 0, quant_min=-8, quant_max=7).sum().backward()
    assert_same_bits(x.grad, ((x / 0.01).round().abs() <= 7.5).float())


@granularities
def test_results_do_not_depend_on_the_number_of_threads(granularity):
    shape, axis, group_size = granularity
    shape = (shape[0] * 50, *shape[1:-1], shape[-1] * 48) if axis in (None, 0, 1) else (shape[0] * 2400, *shape[1:])
    scale, zero_point = (t.requires_grad_() for t in make_parameters(shape, axis, group_size, -8, 7))
    x, grad = torch.randn(shape), torch.randn(shape)
    kwargs = dict(axis=axis, group_size=group_size, quant_min=-8, quant_max=7)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(
                torch.ops.torchquant.fake_quantize_learnable_backward(grad, x, scale, zero_point, **kwargs)
                + (tq.fake_quantize(x, scale, zero_point, **kwargs),)
            )
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_same_bits(a, b)


def test_second_derivative_is_an_error_not_a_zero():
    x = torch.randn(5, requires_grad=True)
    scale = torch.tensor([0.1], requires_grad=True)
    for inputs, op in [((x,), "fake_quantize_backward"), ((x, scale), "fake_quantize_learnable_backward")]:
        y = tq.fake_quantize(x, scale if len(inputs) == 2 else 0.1, 0, quant_min=-8, quant_max=7)
        grads = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        with pytest.raises(RuntimeError, match=f"{op}: has no derivative"):
            torch.autograd.grad(grads[0].sum(), x)


def test_forward_mode_is_an_error_not_a_zero():
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(torch.randn(3), torch.ones(3))
        with pytest.raises(RuntimeError, match="jvp is not implemented"):
            tq.fake_quantize(x, 0.1, 0, quant_min=-8, quant_max=7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_keeps_the_dtype_of_x_and_fp32_parameters(dtype):
    a, b, scale = torch.randn(4, 4), torch.randn(4, 4, requires_grad=True), torch.tensor([0.1], requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        x = a @ b
        y = tq.fake_quantize(x, scale, 0, quant_min=-8, quant_max=7)
        lowered = tq.fake_quantize(x, scale.to(dtype), 0, quant_min=-8, quant_max=7)
        full = tq.fake_quantize(a, scale, 0, quant_min=-8, quant_max=7)
    assert x.dtype == y.dtype == lowered.dtype == dtype and full.dtype == torch.float32
    assert_same_bits(y, reference.fake_quantize(x, scale, torch.zeros(1), quant_min=-8, quant_max=7))
    (y + lowered).float().sum().backward()
    assert b.grad.dtype == scale.grad.dtype == torch.float32


def test_no_node_without_gradients():
    with torch.no_grad():
        x = torch.randn(3, requires_grad=True)
        assert tq.fake_quantize(x, 0.1, 0, quant_min=-8, quant_max=7).grad_fn is None
    assert tq.fake_quantize(torch.randn(3), 0.1, 0, quant_min=-8, quant_max=7).grad_fn is None
    with torch.inference_mode():
        assert not tq.fake_quantize(torch.randn(3), 0.1, 0, quant_min=-8, quant_max=7).requires_grad


def test_an_input_changed_in_place_before_backward_is_noticed():
    x = torch.randn(3, requires_grad=True)
    hidden = x * 1
    y = tq.fake_quantize(hidden, 0.1, 0, quant_min=-8, quant_max=7)
    hidden.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
