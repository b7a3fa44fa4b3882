// Scale and zero point from a histogram: qparams_from_histogram_percentile, _mse and _entropy. The searches of
// numerics/histogram_search.h run here on the CPU, for every device but CUDA, which has its own
// (qparams_from_histogram_cuda.cpp).
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "numerics/histogram_search.h"
#include "ops/dispatch.h"
#include "ops/observe.h"
#include "ops/observer_state.h"

namespace torchquant {

using QParamTensors = std::tuple<at::Tensor, at::Tensor>;

QParamTensors qparams_from_histogram_percentile(const at::Tensor& histogram, const at::Tensor& min_val,
                                                const at::Tensor& max_val, double percentile, bool symmetric,
                                                int64_t quant_min, int64_t quant_max) {
  static const auto op =
      ops::find_op<decltype(qparams_from_histogram_percentile)>("torchquant::qparams_from_histogram_percentile");
  return op.call(histogram, min_val, max_val, percentile, symmetric, quant_min, quant_max);
}

QParamTensors qparams_from_histogram_mse(const at::Tensor& histogram, const at::Tensor& min_val,
                                         const at::Tensor& max_val, bool symmetric, int64_t quant_min,
                                         int64_t quant_max) {
  static const auto op = ops::find_op<decltype(qparams_from_histogram_mse)>("torchquant::qparams_from_histogram_mse");
  return op.call(histogram, min_val, max_val, symmetric, quant_min, quant_max);
}

QParamTensors qparams_from_histogram_entropy(const at::Tensor& histogram, const at::Tensor& min_val,
                                             const at::Tensor& max_val, bool symmetric, int64_t quant_min,
                                             int64_t quant_max) {
  static const auto op =
      ops::find_op<decltype(qparams_from_histogram_entropy)>("torchquant::qparams_from_histogram_entropy");
  return op.call(histogram, min_val, max_val, symmetric, quant_min, quant_max);
}

namespace ops {
namespace {

using numerics::Histogram;
using numerics::Range;

constexpr const char* kPercentileOp = "qparams_from_histogram_percentile";
constexpr const char* kMseOp = "qparams_from_histogram_mse";
constexpr const char* kEntropyOp = "qparams_from_histogram_entropy";

void check(const char* op, const at::Tensor& histogram, const at::Tensor& min_val, const at::Tensor& max_val,
           int64_t quant_min, int64_t quant_max) {
  check_histogram_state(op, histogram, min_val, max_val);
  check_range(op, quant_min, quant_max);
}

void check_percentile(double percentile) {
  TORCH_CHECK(percentile > 50.0 && percentile <= 100.0, kPercentileOp,
              ": percentile must be greater than 50 and at most 100, got ", percentile);
}

QParamTensors empty_qparams(const at::Tensor& min_val) {
  return {at::empty_symint(min_val.sym_sizes(), min_val.options()),
          at::empty_symint(min_val.sym_sizes(), min_val.options())};
}

// search(histogram) -> range to quantize, for every channel.
template <typename Search>
QParamTensors search_channels(const at::Tensor& histogram, const at::Tensor& min_val, const at::Tensor& max_val,
                              bool symmetric, numerics::QRange codes, const Search& search) {
  const at::Tensor counts = histogram.cpu();
  const at::Tensor low = min_val.cpu();
  const at::Tensor high = max_val.cpu();
  auto [scale, zero_point] = empty_qparams(low);
  const auto bins = static_cast<int32_t>(histogram.size(-1));
  const auto* count = counts.const_data_ptr<int64_t>();
  const auto* lows = low.const_data_ptr<float>();
  const auto* highs = high.const_data_ptr<float>();
  auto* scales = scale.mutable_data_ptr<float>();
  auto* zero_points = zero_point.mutable_data_ptr<float>();
  at::parallel_for(0, low.numel(), /*grain_size=*/1, [&](int64_t first, int64_t last) {
    for (int64_t channel = first; channel < last; ++channel) {
      const Range seen{lows[channel], highs[channel]};
      const Range best = search(Histogram{count + channel * bins, seen, numerics::histogram_grid(seen, bins)});
      const auto chosen = numerics::choose_qparams(best.min_val, best.max_val, symmetric, codes);
      scales[channel] = chosen.scale;
      zero_points[channel] = chosen.zero_point;
    }
  });
  return {scale.to(min_val.device()), zero_point.to(min_val.device())};
}

QParamTensors percentile_meta(const at::Tensor& histogram, const at::Tensor& min_val, const at::Tensor& max_val,
                              double percentile, bool /*symmetric*/, int64_t quant_min, int64_t quant_max) {
  check(kPercentileOp, histogram, min_val, max_val, quant_min, quant_max);
  check_percentile(percentile);
  return empty_qparams(min_val);
}

QParamTensors percentile_any(const at::Tensor& histogram, const at::Tensor& min_val, const at::Tensor& max_val,
                             double percentile, bool symmetric, int64_t quant_min, int64_t quant_max) {
  check(kPercentileOp, histogram, min_val, max_val, quant_min, quant_max);
  check_percentile(percentile);
  return search_channels(histogram, min_val, max_val, symmetric, to_range(quant_min, quant_max),
                         [&](const Histogram& h) { return numerics::percentile_range(h, percentile, symmetric); });
}

QParamTensors mse_meta(const at::Tensor& histogram, const at::Tensor& min_val, const at::Tensor& max_val,
                       bool /*symmetric*/, int64_t quant_min, int64_t quant_max) {
  check(kMseOp, histogram, min_val, max_val, quant_min, quant_max);
  return empty_qparams(min_val);
}

QParamTensors mse_any(const at::Tensor& histogram, const at::Tensor& min_val, const at::Tensor& max_val, bool symmetric,
                      int64_t quant_min, int64_t quant_max) {
  check(kMseOp, histogram, min_val, max_val, quant_min, quant_max);
  const auto codes = to_range(quant_min, quant_max);
  return search_channels(histogram, min_val, max_val, symmetric, codes, [&](const Histogram& h) {
    std::vector<numerics::Moments> scratch(h.grid.bins + 1);
    return numerics::mse_range(h, symmetric, codes, scratch.data());
  });
}

QParamTensors entropy_meta(const at::Tensor& histogram, const at::Tensor& min_val, const at::Tensor& max_val,
                           bool /*symmetric*/, int64_t quant_min, int64_t quant_max) {
  check(kEntropyOp, histogram, min_val, max_val, quant_min, quant_max);
  return empty_qparams(min_val);
}

QParamTensors entropy_any(const at::Tensor& histogram, const at::Tensor& min_val, const at::Tensor& max_val,
                          bool symmetric, int64_t quant_min, int64_t quant_max) {
  check(kEntropyOp, histogram, min_val, max_val, quant_min, quant_max);
  const auto codes = to_range(quant_min, quant_max);
  return search_channels(histogram, min_val, max_val, symmetric, codes, [&](const Histogram& h) {
    std::vector<numerics::EntropySums> scratch(h.grid.bins + 1);
    return numerics::entropy_range(h, symmetric, codes, scratch.data());
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  m.def(
      "qparams_from_histogram_percentile(Tensor histogram, Tensor min_val, Tensor max_val, *, float percentile, "
      "bool symmetric, int quant_min, int quant_max) -> (Tensor scale, Tensor zero_point)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "qparams_from_histogram_mse(Tensor histogram, Tensor min_val, Tensor max_val, *, bool symmetric, int quant_min, "
      "int quant_max) -> (Tensor scale, Tensor zero_point)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "qparams_from_histogram_entropy(Tensor histogram, Tensor min_val, Tensor max_val, *, bool symmetric, "
      "int quant_min, int quant_max) -> (Tensor scale, Tensor zero_point)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(torchquant, CompositeExplicitAutograd, m) {
  m.impl(kPercentileOp, percentile_any);
  m.impl(kMseOp, mse_any);
  m.impl(kEntropyOp, entropy_any);
}
TORCH_LIBRARY_IMPL(torchquant, Meta, m) {
  m.impl(kPercentileOp, percentile_meta);
  m.impl(kMseOp, mse_meta);
  m.impl(kEntropyOp, entropy_meta);
}
TORCH_LIBRARY_IMPL(torchquant, Autograd, m) {
  m.impl(kPercentileOp, NoGradient<qparams_from_histogram_percentile>::call);
  m.impl(kMseOp, NoGradient<qparams_from_histogram_mse>::call);
  m.impl(kEntropyOp, NoGradient<qparams_from_histogram_entropy>::call);
}

}  // namespace ops
}  // namespace torchquant
