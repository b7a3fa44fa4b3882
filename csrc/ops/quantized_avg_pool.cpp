// torchquant::quantized_avg_pool: average of each window, requantized. Emitted by the converter.
#include "ops/quantized_pool_common.h"

namespace torchquant::ops {
namespace {

constexpr const char* kOp = "quantized_avg_pool";

at::Tensor quantized_avg_pool(const at::Tensor& x, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                              at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                              std::optional<int64_t> divisor_override, int64_t x_zero_point, double multiplier,
                              int64_t output_zero_point, int64_t output_quant_min, int64_t output_quant_max,
                              at::ScalarType output_dtype) {
  const std::vector<int64_t> dilation(kernel_size.size(), 1);
  const PoolParams p{kernel_size, stride, padding, dilation, ceil_mode};
  check_pool(kOp, x, p);
  TORCH_CHECK(divisor_override.value_or(1) >= 1, kOp, ": divisor_override must be at least 1 or None, got ",
              divisor_override.value_or(1));
  const auto output = avg_pool_output(kOp, x, x_zero_point, multiplier, output_zero_point, output_quant_min,
                                      output_quant_max, output_dtype);
  const auto sizes = pool_output_sizes(kOp, x, p);
  if (!x.is_cpu()) return empty_channels_last(sizes, x.options().dtype(output_dtype));

  const int64_t in_height = x.dim() == 3 ? 1 : x.size(2);
  const int64_t out_height = x.dim() == 3 ? 1 : sizes[2].expect_int();
  const int64_t out_width = sizes.back().expect_int();
  return run_avg_pool(kOp, x, pool_axis(in_height, out_height, p, /*height=*/true, count_include_pad),
                      pool_axis(x.size(-1), out_width, p, /*height=*/false, count_include_pad), sizes,
                      divisor_override.value_or(0), x_zero_point, multiplier, output, output_dtype);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  define(m, std::string("quantized_avg_pool(Tensor x, *, int[] kernel_size, int[] stride, int[] padding, "
                        "bool ceil_mode=False, bool count_include_pad=True, int? divisor_override=None, ") +
                kAvgPoolSchema + ") -> Tensor");
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) { m.impl("quantized_avg_pool", quantized_avg_pool); }
TORCH_LIBRARY_IMPL(torchquant, Meta, m) { m.impl("quantized_avg_pool", quantized_avg_pool); }

}  // namespace torchquant::ops
