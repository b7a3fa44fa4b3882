// Shapes of the pooling ops: 1-d and 2-d windows, their checks and output sizes. Called by
// csrc/ops/quantized_*_pool.cpp.
#pragma once

#include <vector>

#include "ops/quantized_common.h"

namespace torchquant::ops {

struct PoolParams {
  at::IntArrayRef kernel_size;
  at::IntArrayRef stride;
  at::IntArrayRef padding;
  at::IntArrayRef dilation;
  bool ceil_mode;
};

// `length` 1: x is [batch, channels, length]; 2: [batch, channels, height, width].
void check_pool_input(const char* op, const at::Tensor& x, size_t length, const char* length_argument);
void check_pool(const char* op, const at::Tensor& x, const PoolParams& params);
std::vector<c10::SymInt> pool_output_sizes(const char* op, const at::Tensor& x, const PoolParams& params);

// Windows of one axis, clipped to the input. The count is that of the clipped window, or with include_pad that of the
// window clipped to the padded input: what lies beyond the padding (ceil_mode) never counts. `height` picks the axis; a
// missing height is one row.
std::vector<kernels::PoolWindow> pool_windows(int64_t in_size, int64_t out_size, const PoolParams& params, bool height,
                                              bool include_pad);
// Window o covers [floor(o * in / out), ceil((o + 1) * in / out)), as in PyTorch.
std::vector<kernels::PoolWindow> adaptive_windows(int64_t in_size, int64_t out_size);

// Requantization of an average pool, and the checks of its arguments.
kernels::OutputSpec avg_pool_output(const char* op, const at::Tensor& x, int64_t x_zero_point, double multiplier,
                                    int64_t output_zero_point, int64_t output_quant_min, int64_t output_quant_max,
                                    at::ScalarType output_dtype);
// Averages x over the windows into a new channels-last tensor of `sizes`. divisor 0: the windows' own counts.
at::Tensor run_avg_pool(const char* op, const at::Tensor& x, const std::vector<kernels::PoolWindow>& rows,
                        const std::vector<kernels::PoolWindow>& columns, c10::SymIntArrayRef sizes, int64_t divisor,
                        int64_t x_zero_point, double multiplier, const kernels::OutputSpec& output,
                        at::ScalarType output_dtype);

// Schema text of the arguments of avg_pool_output.
inline constexpr const char* kAvgPoolSchema =
    "int x_zero_point, float multiplier, int output_zero_point=0, int output_quant_min=0, int output_quant_max=255, "
    "ScalarType output_dtype";

}  // namespace torchquant::ops
