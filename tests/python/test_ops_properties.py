"""Properties of fake_quantize and quantize that hold for all inputs, searched by Hypothesis."""

import hypothesis.extra.numpy as hnp
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

import torchquant as tq

RANGES = st.sampled_from([(0, 255), (-128, 127), (-127, 127), (0, 15), (-8, 7), (-2, 1), (-1, 1), (3, 200)])
# Powers of two make x / scale exact, so that properties can be stated without a tolerance.
EXACT_SCALES = st.integers(-20, 20).map(lambda e: 2.0**e)
SCALES = st.floats(2.0**-20, 2.0**20, width=32)
VALUES = hnp.arrays(np.float32, st.integers(1, 70), elements=st.floats(-1e6, 1e6, width=32))


@st.composite
def calls(draw, scales=SCALES):
    quant_min, quant_max = draw(RANGES)
    return (
        torch.from_numpy(draw(VALUES)),
        draw(scales),
        draw(st.integers(quant_min, quant_max)),
        dict(quant_min=quant_min, quant_max=quant_max),
    )


@given(calls())
def test_idempotent(arguments):
    x, scale, zero_point, quant_range = arguments
    once = tq.fake_quantize(x, scale, zero_point, **quant_range)
    assert torch.equal(tq.fake_quantize(once, scale, zero_point, **quant_range), once)


@given(calls())
def test_monotone(arguments):
    x, scale, zero_point, quant_range = arguments
    y = tq.fake_quantize(x.sort().values, scale, zero_point, **quant_range)
    assert (y.diff() >= 0).all()


@given(calls(EXACT_SCALES))
def test_error_is_at_most_half_a_step_inside_the_range(arguments):
    x, scale, zero_point, quant_range = arguments
    y = tq.fake_quantize(x, scale, zero_point, **quant_range)
    low, high = ((quant_range[end] - zero_point) * scale for end in ("quant_min", "quant_max"))
    inside = (x >= low) & (x <= high)
    assert ((y - x).abs()[inside] <= scale / 2).all()
    assert (y[x < low] == low).all() and (y[x > high] == high).all()


@given(calls())
def test_zero_is_exact(arguments):
    _, scale, zero_point, quant_range = arguments
    assert tq.fake_quantize(torch.zeros(3), scale, zero_point, **quant_range).tolist() == [0.0] * 3


@given(calls())
def test_is_dequantize_of_quantize(arguments):
    x, scale, zero_point, quant_range = arguments
    dtype = torch.int8 if quant_range["quant_max"] <= 127 else torch.uint8
    q = tq.quantize(x, scale, zero_point, dtype=dtype, **quant_range)
    assert q.min() >= quant_range["quant_min"] and q.max() <= quant_range["quant_max"]
    y = tq.fake_quantize(x, scale, zero_point, **quant_range)
    assert torch.equal(tq.dequantize(q, scale, zero_point), y)


@given(calls(), st.integers(1, 5), st.integers(1, 5))
def test_granularities_agree_where_parameters_are_equal(arguments, rows, columns):
    x, scale, zero_point, quant_range = arguments
    x = x.repeat(rows * columns).view(rows, -1)
    expected = tq.fake_quantize(x, scale, zero_point, **quant_range)
    for axis, group_size, shape in [
        (0, None, (rows,)),
        (1, None, (x.size(1),)),
        (1, x.size(1) // columns, (rows, columns)),
        (0, rows, (1, x.size(1))),
    ]:
        scales, zero_points = torch.full(shape, scale), torch.full(shape, zero_point)
        actual = tq.fake_quantize(x, scales, zero_points, axis=axis, group_size=group_size, **quant_range)
        assert torch.equal(actual, expected)
        actual = tq.fake_quantize(x.t(), scales.t() if group_size else scales, zero_points.t() if group_size else
                                  zero_points, axis=1 - axis, group_size=group_size, **quant_range)  # fmt: skip
        assert torch.equal(actual, expected.t())


@given(VALUES, st.booleans(), RANGES)
def test_chosen_parameters_cover_the_data(values, symmetric, quant_range):
    x = torch.from_numpy(values)
    kwargs = dict(quant_min=quant_range[0], quant_max=quant_range[1])
    scale, zero_point = torch.ops.torchquant.choose_qparams(x, symmetric=symmetric, **kwargs)
    assert scale > 0 and quant_range[0] <= zero_point <= quant_range[1] and zero_point == zero_point.round()
    if x.abs().max() < 1e-30 or quant_range == (3, 200) and symmetric:  # a tiny range counts as zero
        return
    y = tq.fake_quantize(x, scale, zero_point, **kwargs)
    # The affine zero point is rounded too, so either end may lose half a step more.
    assert ((y - x).abs() <= scale * (1 + 1e-4) + x.abs() * 1e-6).all()
