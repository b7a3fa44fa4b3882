// observe_histogram and merge_histogram: counts of a tensor's finite values in bins that widen with the range seen.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <atomic>

#include "kernels/observe.h"
#include "ops/dispatch.h"
#include "ops/min_max.h"
#include "ops/observe.h"
#include "ops/observer_state.h"

namespace torchquant {

void observe_histogram(const at::Tensor& x, const at::Tensor& histogram, const at::Tensor& min_val,
                       const at::Tensor& max_val, const at::Tensor& nonfinite_count, std::optional<int64_t> axis) {
  static const auto op = ops::find_op<decltype(observe_histogram)>("torchquant::observe_histogram");
  op.call(x, histogram, min_val, max_val, nonfinite_count, axis);
}

void merge_histogram(const at::Tensor& histogram, const at::Tensor& min_val, const at::Tensor& max_val,
                     const at::Tensor& other_histogram, const at::Tensor& other_min_val,
                     const at::Tensor& other_max_val) {
  static const auto op = ops::find_op<decltype(merge_histogram)>("torchquant::merge_histogram");
  op.call(histogram, min_val, max_val, other_histogram, other_min_val, other_max_val);
}

namespace ops {
namespace {

using numerics::HistogramGrid;
using numerics::Range;

constexpr const char* kObserveOp = "observe_histogram";
constexpr const char* kMergeOp = "merge_histogram";

using ObserveOp = InPlaceOp<observe_histogram, 1, 2, 3, 4>;
using MergeOp = InPlaceOp<merge_histogram, 0, 1, 2>;

// Widens channel ranges to `more` and moves the counts to the bins of the wider ranges.
class HistogramState {
 public:
  HistogramState(const at::Tensor& histogram, const at::Tensor& min_val, const at::Tensor& max_val)
      : bins_(static_cast<int32_t>(histogram.size(-1))),
        counts_(histogram.mutable_data_ptr<int64_t>()),
        min_val_(min_val.mutable_data_ptr<float>()),
        max_val_(max_val.mutable_data_ptr<float>()) {}

  int32_t bins() const { return bins_; }
  int64_t* counts(int64_t channel) const { return counts_ + channel * bins_; }
  HistogramGrid grid(int64_t channel) const { return numerics::histogram_grid(range(channel), bins_); }

  void widen(int64_t channel, Range more) {
    const HistogramGrid from = grid(channel);
    const Range wider = numerics::merge_ranges(range(channel), more);
    min_val_[channel] = wider.min_val;
    max_val_[channel] = wider.max_val;
    const HistogramGrid to = grid(channel);
    if (to.exponent == from.exponent && to.negative == from.negative) return;
    const std::vector<int64_t> before(counts(channel), counts(channel) + bins_);
    std::fill_n(counts(channel), bins_, 0);
    kernels::add_rebinned(before.data(), from, counts(channel), to);
  }

 private:
  Range range(int64_t channel) const { return {min_val_[channel], max_val_[channel]}; }

  int32_t bins_;
  int64_t* counts_;
  float* min_val_;
  float* max_val_;
};

void observe_meta(const at::Tensor& x, const at::Tensor& histogram, const at::Tensor& min_val,
                  const at::Tensor& max_val, const at::Tensor& nonfinite_count, std::optional<int64_t> axis) {
  check_range_state(kObserveOp, x, min_val, max_val, nonfinite_count, {axis, std::nullopt});
  check_histogram_state(kObserveOp, histogram, min_val, max_val);
  TORCH_CHECK((histogram.dim() == 2) == axis.has_value(), kObserveOp,
              ": histogram must have shape [bins] when axis is None and [channels, bins] otherwise, got ",
              histogram.sym_sizes());
  check_same_device(kObserveOp, "histogram", histogram, x);
}

// Float32 values as [channels, values of each], contiguous.
at::Tensor values_of_channels(const at::Tensor& x, std::optional<int64_t> axis) {
  if (!axis) return to_dense(x.to(at::kFloat)).as_strided({1, x.numel()}, {x.numel(), 1});
  return x.movedim(*axis, 0).to(at::kFloat).contiguous().view({x.size(*axis), -1});
}

// Counts a stretch of one channel apart from the other threads and then adds it.
void count_stretch(const float* x, int64_t n, HistogramGrid grid, std::vector<int64_t>& scratch, int64_t* counts) {
  scratch.assign(grid.bins, 0);
  kernels::count_into_bins(x, n, grid, scratch.data());
  for (int32_t bin = 0; bin < grid.bins; ++bin) {
    if (scratch[bin] != 0) std::atomic_ref(counts[bin]).fetch_add(scratch[bin], std::memory_order_relaxed);
  }
}

void observe_cpu(const at::Tensor& x, const at::Tensor& histogram, const at::Tensor& min_val, const at::Tensor& max_val,
                 const at::Tensor& nonfinite_count, std::optional<int64_t> axis) {
  constexpr int64_t kGrain = 65536;
  observe_meta(x, histogram, min_val, max_val, nonfinite_count, axis);
  if (x.numel() == 0) return;
  const at::Tensor values = values_of_channels(x, axis);
  const ObservedRanges observed = observe_ranges(values, {0, std::nullopt});
  HistogramState state(histogram, min_val, max_val);
  std::vector<HistogramGrid> grids;
  for (size_t channel = 0; channel < observed.ranges.size(); ++channel) {
    state.widen(channel, observed.ranges[channel]);
    grids.push_back(state.grid(channel));
  }
  *nonfinite_count.mutable_data_ptr<int64_t>() += observed.nonfinite;
  const auto* data = values.const_data_ptr<float>();
  const int64_t length = values.size(1);
  at::parallel_for(0, values.numel(), kGrain, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> scratch;
    while (begin < end) {
      const int64_t channel = begin / length;
      const int64_t n = std::min((channel + 1) * length, end) - begin;
      count_stretch(data + begin, n, grids[channel], scratch, state.counts(channel));
      begin += n;
    }
  });
}

void merge_meta(const at::Tensor& histogram, const at::Tensor& min_val, const at::Tensor& max_val,
                const at::Tensor& other_histogram, const at::Tensor& other_min_val, const at::Tensor& other_max_val) {
  check_histogram_state(kMergeOp, histogram, min_val, max_val);
  check_state_tensor(kMergeOp, "other_histogram", other_histogram, at::kLong, histogram.sym_sizes(), histogram);
  check_state_tensor(kMergeOp, "other_min_val", other_min_val, at::kFloat, min_val.sym_sizes(), histogram);
  check_state_tensor(kMergeOp, "other_max_val", other_max_val, at::kFloat, min_val.sym_sizes(), histogram);
}

// On the CPU for every device: merging is no part of a training step.
void merge_any(const at::Tensor& histogram, const at::Tensor& min_val, const at::Tensor& max_val,
               const at::Tensor& other_histogram, const at::Tensor& other_min_val, const at::Tensor& other_max_val) {
  merge_meta(histogram, min_val, max_val, other_histogram, other_min_val, other_max_val);
  const at::Tensor counts = histogram.cpu(), low = min_val.cpu(), high = max_val.cpu();
  const at::Tensor other_counts = other_histogram.cpu(), other_low = other_min_val.cpu(),
                   other_high = other_max_val.cpu();
  HistogramState state(counts, low, high);
  for (int64_t channel = 0; channel < low.numel(); ++channel) {
    const Range other{other_low.const_data_ptr<float>()[channel], other_high.const_data_ptr<float>()[channel]};
    state.widen(channel, other);
    kernels::add_rebinned(other_counts.const_data_ptr<int64_t>() + channel * state.bins(),
                          numerics::histogram_grid(other, state.bins()), state.counts(channel), state.grid(channel));
  }
  histogram.copy_(counts);
  min_val.copy_(low);
  max_val.copy_(high);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  m.def(
      "observe_histogram(Tensor x, Tensor(a!) histogram, Tensor(b!) min_val, Tensor(c!) max_val, "
      "Tensor(d!) nonfinite_count, *, int? axis=None) -> ()",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "merge_histogram(Tensor(a!) histogram, Tensor(b!) min_val, Tensor(c!) max_val, Tensor other_histogram, "
      "Tensor other_min_val, Tensor other_max_val) -> ()",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) { m.impl(kObserveOp, observe_cpu); }
TORCH_LIBRARY_IMPL(torchquant, CompositeExplicitAutograd, m) { m.impl(kMergeOp, merge_any); }
TORCH_LIBRARY_IMPL(torchquant, Meta, m) {
  m.impl(kObserveOp, observe_meta);
  m.impl(kMergeOp, merge_meta);
}
TORCH_LIBRARY_IMPL(torchquant, Autograd, m) {
  m.impl(kObserveOp, ObserveOp::autograd);
  m.impl(kMergeOp, MergeOp::autograd);
}
TORCH_LIBRARY_IMPL(torchquant, ADInplaceOrView, m) {
  m.impl(kObserveOp, ObserveOp::count_mutations);
  m.impl(kMergeOp, MergeOp::count_mutations);
}

}  // namespace ops
}  // namespace torchquant
