// observe_min_max and observe_moving_average: the range of a tensor's finite values into running state; and the merge
// of two averages. (Running extremes merge by at::minimum and at::maximum.)
#include <torch/library.h>

#include "ops/dispatch.h"
#include "ops/min_max.h"
#include "ops/observe.h"
#include "ops/observer_state.h"

namespace torchquant {

void observe_min_max(const at::Tensor& x, const at::Tensor& min_val, const at::Tensor& max_val,
                     const at::Tensor& nonfinite_count, std::optional<int64_t> axis,
                     std::optional<int64_t> group_size) {
  static const auto op = ops::find_op<decltype(observe_min_max)>("torchquant::observe_min_max");
  op.call(x, min_val, max_val, nonfinite_count, axis, group_size);
}

void observe_moving_average(const at::Tensor& x, const at::Tensor& min_val, const at::Tensor& max_val,
                            const at::Tensor& nonfinite_count, std::optional<int64_t> axis,
                            std::optional<int64_t> group_size, double averaging_constant) {
  static const auto op = ops::find_op<decltype(observe_moving_average)>("torchquant::observe_moving_average");
  op.call(x, min_val, max_val, nonfinite_count, axis, group_size, averaging_constant);
}

void merge_moving_average(const at::Tensor& min_val, const at::Tensor& max_val, const at::Tensor& merged,
                          const at::Tensor& other_min_val, const at::Tensor& other_max_val,
                          const at::Tensor& other_merged) {
  static const auto op = ops::find_op<decltype(merge_moving_average)>("torchquant::merge_moving_average");
  op.call(min_val, max_val, merged, other_min_val, other_max_val, other_merged);
}

namespace ops {
namespace {

using numerics::Range;

constexpr const char* kMinMaxOp = "observe_min_max";
constexpr const char* kAverageOp = "observe_moving_average";
constexpr const char* kMergeOp = "merge_moving_average";

using MinMaxOp = InPlaceOp<observe_min_max, 1, 2, 3>;
using AverageOp = InPlaceOp<observe_moving_average, 1, 2, 3>;
using MergeOp = InPlaceOp<merge_moving_average, 0, 1, 2>;

void check_average(const at::Tensor& x, const at::Tensor& min_val, const at::Tensor& max_val,
                   const at::Tensor& nonfinite_count, const Granularity& granularity, double averaging_constant) {
  check_range_state(kAverageOp, x, min_val, max_val, nonfinite_count, granularity);
  check_averaging_constant(kAverageOp, averaging_constant);
}

// Replaces every running range by update(running, x's).
template <typename Update>
void update_ranges(const at::Tensor& x, const at::Tensor& min_val, const at::Tensor& max_val,
                   const at::Tensor& nonfinite_count, const Granularity& granularity, const Update& update) {
  // Group ranges come in memory order, which must be the order of the state.
  const ObservedRanges observed = observe_ranges(granularity.group_size ? x.contiguous() : to_dense(x), granularity);
  auto* low = min_val.mutable_data_ptr<float>();
  auto* high = max_val.mutable_data_ptr<float>();
  for (size_t i = 0; i < observed.ranges.size(); ++i) {
    const Range updated = update(Range{low[i], high[i]}, observed.ranges[i]);
    low[i] = updated.min_val;
    high[i] = updated.max_val;
  }
  *nonfinite_count.mutable_data_ptr<int64_t>() += observed.nonfinite;
}

void min_max_meta(const at::Tensor& x, const at::Tensor& min_val, const at::Tensor& max_val,
                  const at::Tensor& nonfinite_count, std::optional<int64_t> axis, std::optional<int64_t> group_size) {
  check_range_state(kMinMaxOp, x, min_val, max_val, nonfinite_count, {axis, group_size});
}

void min_max_cpu(const at::Tensor& x, const at::Tensor& min_val, const at::Tensor& max_val,
                 const at::Tensor& nonfinite_count, std::optional<int64_t> axis, std::optional<int64_t> group_size) {
  const Granularity granularity{axis, group_size};
  check_range_state(kMinMaxOp, x, min_val, max_val, nonfinite_count, granularity);
  update_ranges(x, min_val, max_val, nonfinite_count, granularity, numerics::merge_ranges);
}

void average_meta(const at::Tensor& x, const at::Tensor& min_val, const at::Tensor& max_val,
                  const at::Tensor& nonfinite_count, std::optional<int64_t> axis, std::optional<int64_t> group_size,
                  double averaging_constant) {
  check_average(x, min_val, max_val, nonfinite_count, {axis, group_size}, averaging_constant);
}

void average_cpu(const at::Tensor& x, const at::Tensor& min_val, const at::Tensor& max_val,
                 const at::Tensor& nonfinite_count, std::optional<int64_t> axis, std::optional<int64_t> group_size,
                 double averaging_constant) {
  const Granularity granularity{axis, group_size};
  check_average(x, min_val, max_val, nonfinite_count, granularity, averaging_constant);
  const auto constant = static_cast<float>(averaging_constant);
  update_ranges(x, min_val, max_val, nonfinite_count, granularity,
                [=](Range running, Range batch) { return numerics::moving_average(running, batch, constant); });
}

void merge_meta(const at::Tensor& min_val, const at::Tensor& max_val, const at::Tensor& merged,
                const at::Tensor& other_min_val, const at::Tensor& other_max_val, const at::Tensor& other_merged) {
  const c10::SymIntArrayRef shape = min_val.sym_sizes();
  check_state_tensor(kMergeOp, "min_val", min_val, at::kFloat, shape, min_val);
  check_state_tensor(kMergeOp, "max_val", max_val, at::kFloat, shape, min_val);
  check_state_tensor(kMergeOp, "merged", merged, at::kLong, shape, min_val);
  check_state_tensor(kMergeOp, "other_min_val", other_min_val, at::kFloat, shape, min_val);
  check_state_tensor(kMergeOp, "other_max_val", other_max_val, at::kFloat, shape, min_val);
  check_state_tensor(kMergeOp, "other_merged", other_merged, at::kLong, shape, min_val);
}

// On the CPU for every device: merging is no part of a training step.
void merge_any(const at::Tensor& min_val, const at::Tensor& max_val, const at::Tensor& merged,
               const at::Tensor& other_min_val, const at::Tensor& other_max_val, const at::Tensor& other_merged) {
  merge_meta(min_val, max_val, merged, other_min_val, other_max_val, other_merged);
  const at::Tensor low = min_val.cpu(), high = max_val.cpu(), count = merged.cpu();
  const at::Tensor other_low = other_min_val.cpu(), other_high = other_max_val.cpu(), other_count = other_merged.cpu();
  for (int64_t i = 0; i < low.numel(); ++i) {
    const auto result = numerics::merge_averages(
        {{low.const_data_ptr<float>()[i], high.const_data_ptr<float>()[i]}, count.const_data_ptr<int64_t>()[i]},
        {{other_low.const_data_ptr<float>()[i], other_high.const_data_ptr<float>()[i]},
         other_count.const_data_ptr<int64_t>()[i]});
    low.mutable_data_ptr<float>()[i] = result.range.min_val;
    high.mutable_data_ptr<float>()[i] = result.range.max_val;
    count.mutable_data_ptr<int64_t>()[i] = result.merged;
  }
  min_val.copy_(low);
  max_val.copy_(high);
  merged.copy_(count);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  m.def(
      "observe_min_max(Tensor x, Tensor(a!) min_val, Tensor(b!) max_val, Tensor(c!) nonfinite_count, *, "
      "int? axis=None, int? group_size=None) -> ()",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "observe_moving_average(Tensor x, Tensor(a!) min_val, Tensor(b!) max_val, Tensor(c!) nonfinite_count, *, "
      "int? axis=None, int? group_size=None, float averaging_constant) -> ()",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "merge_moving_average(Tensor(a!) min_val, Tensor(b!) max_val, Tensor(c!) merged, Tensor other_min_val, "
      "Tensor other_max_val, Tensor other_merged) -> ()",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) {
  m.impl(kMinMaxOp, min_max_cpu);
  m.impl(kAverageOp, average_cpu);
}
TORCH_LIBRARY_IMPL(torchquant, CompositeExplicitAutograd, m) { m.impl(kMergeOp, merge_any); }
TORCH_LIBRARY_IMPL(torchquant, Meta, m) {
  m.impl(kMinMaxOp, min_max_meta);
  m.impl(kAverageOp, average_meta);
  m.impl(kMergeOp, merge_meta);
}
TORCH_LIBRARY_IMPL(torchquant, Autograd, m) {
  m.impl(kMinMaxOp, MinMaxOp::autograd);
  m.impl(kAverageOp, AverageOp::autograd);
  m.impl(kMergeOp, MergeOp::autograd);
}
TORCH_LIBRARY_IMPL(torchquant, ADInplaceOrView, m) {
  m.impl(kMinMaxOp, MinMaxOp::count_mutations);
  m.impl(kAverageOp, AverageOp::count_mutations);
  m.impl(kMergeOp, MergeOp::count_mutations);
}

}  // namespace ops
}  // namespace torchquant
