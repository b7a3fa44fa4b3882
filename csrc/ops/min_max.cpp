// Implements ops/min_max.h.
#include "ops/min_max.h"

#include <atomic>
#include <limits>

namespace torchquant::ops {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void widen(numerics::Range& range, float min_val, float max_val) {
  range = numerics::merge_ranges(range, {min_val, max_val});
}

void observe_runs(const at::Tensor& dense, const Pieces& pieces, ObservedRanges& observed) {
  const auto& kernels = kernels::fake_quantize_kernels();
  const auto type = float_type(dense);
  const auto size = static_cast<int64_t>(dense.element_size());
  const auto* x = static_cast<const std::byte*>(dense.const_data_ptr());
  reduce_runs<kernels::MinMax>(
      pieces, [&](int64_t begin, int64_t n, int64_t /*param*/) { return kernels.min_max_run(x + begin * size, n, type); },
      [&](int64_t param, kernels::MinMax part) {
        widen(observed.ranges[param], part.min_val, part.max_val);
        observed.nonfinite += part.nonfinite;
      });
}

void observe_rows(const at::Tensor& dense, const Pieces& pieces, ObservedRanges& observed) {
  const auto& kernels = kernels::fake_quantize_kernels();
  const auto type = float_type(dense);
  const auto size = static_cast<int64_t>(dense.element_size());
  const auto* x = static_cast<const std::byte*>(dense.const_data_ptr());
  const int64_t accumulators = accumulator_copies(pieces) * pieces.slots;
  std::vector<float> min_val(accumulators, kInfinity);
  std::vector<float> max_val(accumulators, -kInfinity);
  std::atomic<int64_t> nonfinite{0};
  reduce_rows(pieces, [&](int64_t begin, int64_t n, int64_t /*slot*/, int64_t accumulator) {
    const int64_t bad = kernels.min_max_each(x + begin * size, n, type, &min_val[accumulator], &max_val[accumulator]);
    if (bad != 0) nonfinite += bad;
  });
  for (int64_t i = 0; i < accumulators; ++i) {
    widen(observed.ranges[pieces.param_of_slot(i % pieces.slots)], min_val[i], max_val[i]);
  }
  observed.nonfinite = nonfinite;
}

}  // namespace

ObservedRanges observe_ranges(const at::Tensor& dense, const Granularity& granularity) {
  const Pieces pieces = cut_into_pieces(param_layout(dense, granularity));
  ObservedRanges observed{std::vector<numerics::Range>(pieces.params, {kInfinity, -kInfinity}), 0};
  if (pieces.rows) {
    observe_rows(dense, pieces, observed);
  } else {
    observe_runs(dense, pieces, observed);
  }
  return observed;
}

}  // namespace torchquant::ops
