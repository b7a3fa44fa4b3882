// torchquant::quantized_adaptive_avg_pool: average pooling to a given output size, requantized; output size 1 is the
// global average. Emitted by the converter, also for a mean over the spatial dimensions.
#include "ops/quantized_pool_common.h"

namespace torchquant::ops {
namespace {

constexpr const char* kOp = "quantized_adaptive_avg_pool";

at::Tensor quantized_adaptive_avg_pool(const at::Tensor& x, at::IntArrayRef output_size, int64_t x_zero_point,
                                       double multiplier, int64_t output_zero_point, int64_t output_quant_min,
                                       int64_t output_quant_max, at::ScalarType output_dtype) {
  check_pool_input(kOp, x, output_size.size(), "output_size");
  std::vector<c10::SymInt> sizes{x.sym_size(0), x.sym_size(1)};
  for (size_t i = 0; i < output_size.size(); ++i) {
    TORCH_CHECK(output_size[i] >= 1, kOp, ": output_size must be at least 1, got ", output_size);
    TORCH_CHECK(x.sym_size(2 + static_cast<int64_t>(i)) >= 1, kOp,
                ": x must have at least one position to average, got ", x.sym_sizes());
    sizes.emplace_back(output_size[i]);
  }
  const auto output = avg_pool_output(kOp, x, x_zero_point, multiplier, output_zero_point, output_quant_min,
                                      output_quant_max, output_dtype);
  if (!x.is_cpu()) return empty_channels_last(sizes, x.options().dtype(output_dtype));

  const bool has_height = x.dim() == 4;
  return run_avg_pool(kOp, x, adaptive_axis(has_height ? x.size(2) : 1, has_height ? output_size[0] : 1),
                      adaptive_axis(x.size(-1), output_size.back()), sizes, /*divisor=*/0, x_zero_point, multiplier,
                      output, output_dtype);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  define(m,
         std::string("quantized_adaptive_avg_pool(Tensor x, *, int[] output_size, ") + kAvgPoolSchema + ") -> Tensor");
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) { m.impl("quantized_adaptive_avg_pool", quantized_adaptive_avg_pool); }
TORCH_LIBRARY_IMPL(torchquant, Meta, m) { m.impl("quantized_adaptive_avg_pool", quantized_adaptive_avg_pool); }

}  // namespace torchquant::ops
