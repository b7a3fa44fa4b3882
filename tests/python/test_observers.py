"""Observer modules and the ops below them, against plain PyTorch."""

import copy
import io
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchquant.observers import (
    EntropyObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MSEObserver,
    PercentileObserver,
    make_observer,
)
from torchquant.qconfig import QuantSpec

KINDS = ["min_max", "moving_average", "percentile", "mse", "entropy"]
HISTOGRAM_KINDS = ["percentile", "mse", "entropy"]
ops = torch.ops.torchquant


def spec_of(kind, **changes):
    return QuantSpec.activation(observer=kind, averaging_constant=0.5, bins=512, **changes)


def observe(observer, *batches):
    for batch in batches:
        observer(batch)
    return observer


def assert_same_state(a, b):
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name]), name


def test_each_kind_has_its_class():
    classes = [MinMaxObserver, MovingAverageMinMaxObserver, PercentileObserver, MSEObserver, EntropyObserver]
    assert [type(make_observer(spec_of(kind))) for kind in KINDS] == classes


# ---- ranges


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_min_max_keeps_the_extremes(dtype):
    batches = [torch.randn(5, 7).to(dtype) for _ in range(3)]
    observer = observe(make_observer(spec_of("min_max")), *batches)
    assert observer.min_val.item() == torch.cat(batches).min().item()
    assert observer.max_val.item() == torch.cat(batches).max().item()


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_ranges_per_channel(axis, layout):
    x = torch.randn(4, 6, 5, 3)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    if layout == "strided":
        x = torch.randn(8, 6, 5, 6)[::2, :, :, ::2]
    others = [d for d in range(4) if d != axis % 4]
    for kind in ("min_max", "mse"):
        observer = observe(make_observer(spec_of(kind, axis=axis)), x)
        assert torch.equal(observer.min_val, x.amin(others))
        assert torch.equal(observer.max_val, x.amax(others))


@pytest.mark.parametrize("transposed", [False, True])
def test_ranges_per_group(transposed):
    x = torch.randn(24, 6).t() if transposed else torch.randn(6, 24)
    observer = observe(make_observer(spec_of("min_max", axis=1, group_size=8)), x)
    assert torch.equal(observer.min_val, x.reshape(6, 3, 8).amin(-1))
    assert torch.equal(observer.max_val, x.reshape(6, 3, 8).amax(-1))


def test_moving_average_follows_the_batches():
    batches = [torch.tensor([-1.0, 2.0]), torch.tensor([-3.0, 4.0]), torch.tensor([0.0, 1.0])]
    observer = observe(make_observer(spec_of("moving_average")), *batches)
    assert observer.min_val.item() == ((-1.0 - 3.0) / 2 + 0.0) / 2
    assert observer.max_val.item() == ((2.0 + 4.0) / 2 + 1.0) / 2


def test_an_averaging_constant_of_one_keeps_the_newest_batch():
    spec = replace(spec_of("moving_average"), averaging_constant=1.0)
    observer = observe(make_observer(spec), torch.tensor([-1e8, 1e8]), torch.tensor([-0.1, 0.3]))
    assert (observer.min_val.item(), observer.max_val.item()) == pytest.approx((-0.1, 0.3))


@pytest.mark.parametrize("kind", KINDS)
def test_non_finite_values_are_counted_and_ignored(kind):
    x = torch.tensor([float("nan"), 1.0, float("inf"), -2.0, float("-inf")])
    observer = observe(make_observer(spec_of(kind)), x)
    assert observer.nonfinite_count.item() == 3
    assert (observer.min_val.item(), observer.max_val.item()) == (-2.0, 1.0)
    if isinstance(observer, HistogramObserver):
        assert observer.histogram.sum().item() == 2


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_finite_gives_a_scale_of_one(kind):
    for x in (torch.empty(0, 3), torch.tensor([float("nan")])):
        for symmetric in (False, True):
            observer = observe(make_observer(replace(spec_of(kind), symmetric=symmetric)), x)
            assert not observer.observed
            assert observer.calculate_qparams()[0].tolist() == [1.0]


# ---- histograms


@pytest.mark.parametrize("axis", [None, 0, 2])
def test_a_histogram_counts_every_value_once_in_the_bin_that_holds_it(axis):
    x = torch.randn(40, 30, 5) * torch.tensor([0.01, 1.0, 3.0, 100.0, 1e-30])
    observer = observe(make_observer(spec_of("mse", axis=axis)), x[:, :13], x[:, 13:])
    rows = x.reshape(1, -1) if axis is None else x.movedim(axis, 0).reshape(x.size(axis), -1)
    histograms = observer.histogram.view(-1, 512)
    assert histograms.sum(1).tolist() == [rows.size(1)] * rows.size(0)
    for row, histogram in zip(rows.double(), histograms):
        fits = (e for e in range(-120, 0 + 20) if bins_needed(row, 2.0**e) <= 512)
        width = 2.0 ** next(fits)
        negative = int(torch.ceil(-row.min() / width)) if row.min() < 0 else 0
        magnitude = (torch.ceil(row.abs() / width) - 1).clamp(min=0).long()
        bins = torch.where(row < 0, negative - 1 - magnitude, negative + magnitude)
        assert torch.equal(histogram, torch.bincount(bins, minlength=512))


def bins_needed(values, width):
    below = torch.ceil(-values.min().clamp(max=0) / width)
    above = torch.ceil(values.max().clamp(min=0) / width)
    return int(below + max(above, 1))


def test_large_tensors_are_counted_in_parallel():
    x = torch.randn(3, 200_003)
    parts = observe(make_observer(spec_of("mse", axis=0)), *x.split(70_000, dim=1))
    assert torch.equal(observe(make_observer(spec_of("mse", axis=0)), x).histogram, parts.histogram)


def test_percentile_cuts_the_tails():
    x = torch.linspace(-1.0, 3.0, 100_001)
    scale, zero_point = observe(make_observer(replace(spec_of("percentile"), percentile=95.0, bins=4096)), x).calculate_qparams()
    low, high = x.quantile(0.05).item(), x.quantile(0.95).item()
    assert scale.item() * 255 == pytest.approx(high - low, abs=4 * 2**-9)
    assert zero_point.item() == round(-low / (high - low) * 255)


def mean_squared_error(x, scale, zero_point, quant_min, quant_max):
    y = ops.fake_quantize(x, scale, zero_point, quant_min=quant_min, quant_max=quant_max)
    return (y - x).square().mean().item()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_beats_min_max_on_heavy_tails(bits, symmetric):
    x = torch.distributions.StudentT(3.0).sample((50_000,))
    error = {}
    for kind in ("min_max", "mse"):
        spec = replace(QuantSpec.weight(bits, axis=None), observer=kind, symmetric=symmetric)
        qparams = observe(make_observer(spec), x).calculate_qparams()
        error[kind] = mean_squared_error(x, *qparams, spec.quant_min, spec.quant_max)
    assert error["mse"] < (0.92 if bits == 8 else 0.6) * error["min_max"]  # 8 bits leave less to gain


@pytest.mark.parametrize("kind", HISTOGRAM_KINDS)
def test_searches_clip_an_outlier_per_channel(kind):
    x = torch.randn(2, 100_000).relu()
    x[1, 0] = 100.0
    spec = replace(spec_of(kind, axis=0), quant_max=15, bins=4096)
    scale, zero_point = observe(make_observer(spec), x).calculate_qparams()
    assert zero_point.tolist() == [0.0, 0.0]
    assert scale[0] * 15 < 5.0
    assert scale[1] * 15 < 50.0


# ---- merging


@st.composite
def three_batches(draw):
    """Batches of very different ranges, one of which may be empty."""
    seed = draw(st.integers(0, 2**31))
    exponents = draw(st.tuples(*[st.integers(-30, 30)] * 3))
    sizes = draw(st.tuples(*[st.integers(0, 40)] * 3))
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator) * 2.0**e for n, e in zip(sizes, exponents)]


@pytest.mark.parametrize("kind", ["min_max", *HISTOGRAM_KINDS])
@given(batches=three_batches())
def test_merging_equals_observing_everything_in_any_order(kind, batches):
    a, b, c = (observe(make_observer(spec_of(kind)), batch) for batch in batches)
    whole = observe(make_observer(spec_of(kind)), *batches)
    left, right = copy.deepcopy(a), copy.deepcopy(c)
    left.merge(b)
    left.merge(c)
    b.merge(a)
    right.merge(b)
    assert_same_state(left, whole)
    assert_same_state(right, whole)


@given(batches=three_batches())
def test_merging_averages_is_order_free_up_to_rounding(batches):
    a, b, c = (observe(make_observer(spec_of("moving_average")), batch) for batch in batches)
    left, right = copy.deepcopy(a), copy.deepcopy(c)
    left.merge(b)
    left.merge(c)
    b.merge(a)
    right.merge(b)
    # Rounding is relative to the largest of the three.
    largest = max([batch.abs().max().item() for batch in batches if batch.numel()], default=1.0)
    torch.testing.assert_close(left.min_val, right.min_val, rtol=0, atol=1e-6 * largest)
    torch.testing.assert_close(left.max_val, right.max_val, rtol=0, atol=1e-6 * largest)
    assert torch.equal(left.merged, right.merged)


@pytest.mark.parametrize("kind", KINDS)
def test_merging_into_and_from_an_observer_that_saw_nothing(kind):
    spec = spec_of(kind, axis=1)
    seen = observe(make_observer(spec), torch.randn(4, 3))
    before = copy.deepcopy(seen.state_dict())
    seen.merge(make_observer(spec))
    fresh = make_observer(spec)
    fresh.merge(seen)
    for state in (seen.state_dict(), fresh.state_dict()):
        assert all(torch.equal(value, before[name]) for name, value in state.items())


def test_only_like_observers_merge():
    with pytest.raises(ValueError, match="MinMaxObserver.merge: other must be of the same kind and spec, got MSEObserver"):
        make_observer(spec_of("min_max")).merge(make_observer(spec_of("mse")))


# ---- state


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis", [None, 0])
def test_state_dict_round_trip_into_a_fresh_observer(kind, axis):
    spec = spec_of(kind, axis=axis)
    observer = observe(make_observer(spec), torch.randn(3, 50))
    file = io.BytesIO()
    torch.save(observer.state_dict(), file)
    file.seek(0)
    fresh = make_observer(spec)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert_same_state(fresh, observer)
    more = torch.randn(3, 50) * 4
    assert_same_state(observe(fresh, more), observe(observer, more))


@pytest.mark.parametrize("kind", KINDS)
def test_reset_forgets(kind):
    observer = observe(make_observer(spec_of(kind)), torch.tensor([1.0, float("nan")]))
    observer.reset()
    assert_same_state(observer, make_observer(spec_of(kind)))


def test_state_keeps_its_dtype_and_follows_the_device():
    model = nn.Sequential(nn.Linear(3, 3), observe(make_observer(spec_of("mse")), torch.tensor([1.00390625])))
    for change in (nn.Module.half, nn.Module.bfloat16, nn.Module.double, lambda m: m.to(torch.float16)):
        change(model)
        assert model[1].max_val.dtype == torch.float32
        assert model[1].max_val.item() == 1.00390625  # which no half has
    assert model.to("meta")[1].max_val.device.type == "meta"


@pytest.mark.parametrize("kind", KINDS)
def test_observing_reads_nothing_back(kind):
    """FakeTensors have no values: reading one raises."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        observe(make_observer(spec_of(kind)), torch.randn(3, 4))
        observe(make_observer(spec_of(kind, axis=1)), torch.randn(3, 4))


# ---- errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, lo, hi, n: ops.observe_min_max(x.int(), lo, hi, n), "observe_min_max: x must be float32, .*, got int32"),
        (lambda x, lo, hi, n: ops.observe_min_max(x, lo.double(), hi, n), "observe_min_max: min_val must be float32, got float64"),
        (lambda x, lo, hi, n: ops.observe_min_max(x, lo, hi, n.int()), "nonfinite_count must be int64, got int32"),
        (lambda x, lo, hi, n: ops.observe_min_max(x, lo, hi, n, axis=1), r"min_val must have shape \[3\], got \[1\]"),
        (lambda x, lo, hi, n: ops.observe_min_max(x, lo, hi, n, axis=2), r"axis must be in \[-2, 1\] .*got 2"),
        (lambda x, lo, hi, n: ops.observe_min_max(x, lo, hi, n, axis=1, group_size=2), "group_size must divide .* got 2"),
        (lambda x, lo, hi, n: ops.observe_moving_average(x, lo, hi, n, averaging_constant=0.0),
         "averaging_constant must be greater than 0 and at most 1, got 0"),
        (lambda x, lo, hi, n: ops.observe_histogram(x, torch.zeros(8, dtype=torch.int64), lo, hi, n),
         "observe_histogram: histogram must have from 16 to 1048576 bins, got 8"),
        (lambda x, lo, hi, n: ops.observe_histogram(x, torch.zeros(1, 64, dtype=torch.int64), lo, hi, n),
         r"histogram must have shape \[bins\] when axis is None .*got \[1, 64\]"),
        (lambda x, lo, hi, n: ops.observe_histogram(x, torch.zeros(64), lo, hi, n), "histogram must be int64, got float32"),
        (lambda x, lo, hi, n: ops.qparams_from_histogram_percentile(torch.zeros(64, dtype=torch.int64), lo, hi,
         percentile=50.0, symmetric=True, quant_min=0, quant_max=255), "percentile must be greater than 50 .*got 50"),
        (lambda x, lo, hi, n: ops.qparams_from_histogram_mse(torch.zeros(2, 64, dtype=torch.int64), lo, hi, symmetric=True,
         quant_min=0, quant_max=255), r"histogram must have shape \[1, 64\], got \[2, 64\]"),
        (lambda x, lo, hi, n: ops.qparams_from_histogram_entropy(torch.zeros(64, dtype=torch.int64), lo, hi,
         symmetric=True, quant_min=5, quant_max=5), "quant_min must be less than quant_max, got quant_min 5"),
        (lambda x, lo, hi, n: ops.merge_histogram(torch.zeros(64, dtype=torch.int64), lo, hi,
         torch.zeros(32, dtype=torch.int64), lo, hi), r"other_histogram must have shape \[64\], got \[32\]"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(RuntimeError, match=message):
        call(torch.randn(2, 3), torch.full((1,), torch.inf), torch.full((1,), -torch.inf), torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("kind", ["percentile", "mse", "entropy"])
@pytest.mark.parametrize("axis", [None, 1])
def test_a_histogram_takes_the_same_memory_after_any_number_of_batches_and_ranges(kind, axis):
    observer = make_observer(spec_of(kind, axis=axis))

    def held():
        return sum(buffer.numel() * buffer.element_size() for buffer in observer.buffers())

    observer(torch.randn(4, 3))
    first = held()
    for step in range(20):
        observer(torch.randn(64, 3) * 10**step)
        observer.calculate_qparams()
        assert held() == first
