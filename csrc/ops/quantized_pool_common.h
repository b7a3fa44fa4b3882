// Shapes of the pooling ops: 1-d and 2-d windows, their checks and output sizes. Called by
// csrc/ops/quantized_*_pool.cpp.
#pragma once

#include <vector>

#include "kernels/image_axes.h"
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

// One axis of average pooling; `height` picks it, and a missing height is one row.
TQ_API kernels::PoolAxis pool_axis(int64_t in_size, int64_t out_size, const PoolParams& params, bool height,
                                   bool include_pad);
TQ_API kernels::PoolAxis adaptive_axis(int64_t in_size, int64_t out_size);
// One axis of max pooling.
TQ_API kernels::MaxPoolAxis max_pool_axis(const PoolParams& params, bool height);
// Every window of an axis, as the CPU kernels read them.
std::vector<kernels::PoolWindow> windows_of(const kernels::PoolAxis& axis);

// Requantization of an average pool, and the checks of its arguments.
TQ_API kernels::OutputSpec avg_pool_output(const char* op, const at::Tensor& x, int64_t x_zero_point, double multiplier,
                                           int64_t output_zero_point, int64_t output_quant_min,
                                           int64_t output_quant_max, at::ScalarType output_dtype);
// Refuses windows whose sums could overflow; returns the elements of the largest one.
TQ_API int64_t check_window(const char* op, const kernels::PoolAxis& rows, const kernels::PoolAxis& columns);
// Averages x over the windows into a new channels-last tensor of `sizes`. divisor 0: the windows' own counts.
at::Tensor run_avg_pool(const char* op, const at::Tensor& x, const kernels::PoolAxis& rows,
                        const kernels::PoolAxis& columns, c10::SymIntArrayRef sizes, int64_t divisor,
                        int64_t x_zero_point, double multiplier, const kernels::OutputSpec& output,
                        at::ScalarType output_dtype);

// Schema text of the arguments of avg_pool_output.
inline constexpr const char* kAvgPoolSchema =
    "int x_zero_point, float multiplier, int output_zero_point=0, int output_quant_min=0, int output_quant_max=255, "
    "ScalarType output_dtype";

}  // namespace torchquant::ops
