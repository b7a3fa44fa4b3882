"""quantize, dequantize, choose_qparams and qparams_from_min_max against the contract."""

import pytest
import torch
from support import reference
from support.reference import GRANULARITIES, parameter_shape

import torchquant as tq

ops = torch.ops.torchquant

granularities = pytest.mark.parametrize("granularity", GRANULARITIES.values(), ids=GRANULARITIES.keys())
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
CODES = {torch.int8: (-128, 127), torch.uint8: (0, 255)}


def layouts(x):
    yield x
    yield x.transpose(0, -1).contiguous().transpose(0, -1)
    if x.dim() == 4:
        yield x.to(memory_format=torch.channels_last)
    yield torch.stack([x, x], dim=-1)[..., 0]


@granularities
@dtypes
@pytest.mark.parametrize("code_dtype", CODES, ids=str)
def test_quantize_and_dequantize(granularity, dtype, code_dtype):
    shape, axis, group_size = granularity
    quant_min, quant_max = CODES[code_dtype]
    count = parameter_shape(shape, axis, group_size)
    scale, zero_point = torch.rand(count) * 0.05 + 0.01, torch.randint(quant_min, quant_max + 1, count)
    x = (torch.randn(shape) * 3).to(dtype)
    where = dict(axis=axis, group_size=group_size)
    expected = reference.quantize(x, scale, zero_point, **where, dtype=code_dtype, quant_min=quant_min, quant_max=quant_max)
    values = reference.dequantize(expected, scale, zero_point, **where, dtype=dtype)
    for view in layouts(x):
        q = tq.quantize(view, scale, zero_point, **where, dtype=code_dtype)
        assert q.dtype == code_dtype and q.stride() == torch.empty_like(view).stride()
        assert torch.equal(q, expected)
        y = tq.dequantize(q, scale, zero_point, **where, dtype=dtype)
        assert y.dtype == dtype and y.stride() == q.stride()
        assert torch.equal(y, values)


def test_quantize_narrow_range():
    x = torch.linspace(-20, 20, 401)
    assert tq.quantize(x, 1.0, 0, quant_min=-8, quant_max=7).unique().tolist() == list(range(-8, 8))
    assert tq.quantize(x, 1.0, 0, dtype=torch.uint8, quant_max=15).unique().tolist() == list(range(16))


def test_quantize_values_that_are_not_finite():
    x = torch.tensor([float("nan"), float("inf"), -float("inf")])
    assert tq.quantize(x, 0.5, 3, dtype=torch.uint8).tolist() == [3, 255, 0]


@pytest.mark.parametrize("code_dtype", CODES, ids=str)
def test_every_code_and_zero_point_round_trips(code_dtype):
    quant_min, quant_max = CODES[code_dtype]
    codes = torch.arange(quant_min, quant_max + 1).to(code_dtype).repeat(256, 1)
    zero_point = torch.arange(quant_min, quant_max + 1)
    scale = torch.full((256,), 0.1)
    values = tq.dequantize(codes, scale, zero_point, axis=0)
    assert torch.equal(tq.quantize(values, scale, zero_point, axis=0, dtype=code_dtype), codes)


def test_empty():
    assert tq.quantize(torch.empty(0, 3), 1.0, 0).shape == (0, 3)
    assert tq.dequantize(torch.empty(2, 0, dtype=torch.uint8), 1.0, 0).shape == (2, 0)


def test_dequantize_has_no_derivative():
    scale = torch.ones(1, requires_grad=True)
    y = tq.dequantize(torch.zeros(3, dtype=torch.int8), scale, torch.zeros(1))
    with pytest.raises(RuntimeError, match="dequantize: has no derivative"):
        y.sum().backward()


def expected_qparams(low, high, symmetric, quant_min, quant_max):
    """The contract in fp32, one parameter at a time."""
    if symmetric:
        zero_point = (quant_min + quant_max + 1) // 2
        return torch.maximum(low.abs(), high.abs()) / (quant_max - zero_point), torch.full_like(low, zero_point)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / (quant_max - quant_min)
    return scale, (quant_min - torch.round(low / scale)).clamp(quant_min, quant_max)


@granularities
@dtypes
@pytest.mark.parametrize("symmetric", [True, False])
def test_choose_qparams(granularity, dtype, symmetric):
    shape, axis, group_size = granularity
    x = (torch.randn(shape) + 0.5).to(dtype)
    count = parameter_shape(shape, axis, group_size)
    # The elements of a parameter share an index, so a scatter of the extremes finds its range.
    index = reference.expand(torch.arange(torch.Size(count).numel()).view(count), x, axis, group_size).expand(shape)
    flat, values = index.reshape(-1), x.float().reshape(-1)
    low = torch.full((flat.max() + 1,), float("inf")).scatter_reduce(0, flat, values, "amin").view(count)
    high = torch.full((flat.max() + 1,), -float("inf")).scatter_reduce(0, flat, values, "amax").view(count)
    quant_min, quant_max = (-127, 127) if symmetric else (0, 255)
    expected = expected_qparams(low, high, symmetric, quant_min, quant_max)
    for view in layouts(x):
        actual = ops.choose_qparams(
            view, axis=axis, group_size=group_size, symmetric=symmetric, quant_min=quant_min, quant_max=quant_max
        )
        for a, e in zip(actual, expected, strict=True):
            assert a.shape == count and a.dtype == torch.float32 and a.is_contiguous()
            assert torch.equal(a, e)


def test_choose_qparams_reads_finite_values_only():
    x = torch.tensor([[1.0, -2.0, float("nan")], [float("inf"), -float("inf"), 4.0], [float("nan")] * 3])
    scale, zero_point = ops.choose_qparams(x, axis=0, symmetric=True, quant_min=-2, quant_max=1)
    assert scale.tolist() == [2.0, 4.0, 1.0] and zero_point.tolist() == [0.0, 0.0, 0.0]


def test_choose_qparams_carries_no_gradient():
    scale, zero_point = ops.choose_qparams(torch.randn(4, requires_grad=True), symmetric=False, quant_min=0, quant_max=255)
    assert not scale.requires_grad and not zero_point.requires_grad


def test_zero_and_empty_ranges_give_scale_one():
    for x in (torch.zeros(5), torch.empty(0), torch.full((3,), 1e-38)):
        for symmetric, zero_point in ((True, 128.0), (False, 0.0)):
            chosen = ops.choose_qparams(x, symmetric=symmetric, quant_min=0, quant_max=255)
            assert [t.item() for t in chosen] == [1.0, zero_point]
    inf = float("inf")
    nothing_seen = ops.qparams_from_min_max(
        torch.tensor([inf]), torch.tensor([-inf]), symmetric=True, quant_min=-127, quant_max=127
    )
    assert [t.item() for t in nothing_seen] == [1.0, 0.0]


def test_the_widest_finite_range_has_a_finite_scale():
    largest = torch.finfo(torch.float32).max
    scale, zero_point = ops.qparams_from_min_max(
        torch.tensor([-largest]), torch.tensor([largest]), symmetric=False, quant_min=0, quant_max=255
    )
    assert scale.isfinite().all() and zero_point.item() in (127.0, 128.0)


def test_qparams_from_min_max_matches_choose_qparams():
    x = torch.randn(6, 20)
    for symmetric in (True, False):
        kwargs = dict(symmetric=symmetric, quant_min=-128, quant_max=127)
        expected = ops.choose_qparams(x, axis=0, **kwargs)
        actual = ops.qparams_from_min_max(x.amin(1), x.amax(1), **kwargs)
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
