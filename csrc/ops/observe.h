// Typed C++ entry points of the observer ops, beside those of ops/ops.h, whose common arguments hold here too. They
// write the state that they are given, in place and on its device, and read nothing back.
//
// State
//   min_val, max_val   float32, contiguous: one of each per parameter; +inf and -inf where nothing finite was seen
//   nonfinite_count    int64 [1]: NaN and infinite values met, which the statistics leave out
//   histogram          int64, [bins] or [channels, bins], 16 to 2^20 bins; numerics/stats.h says which values a bin
//   holds
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "export.h"

namespace torchquant {

// Widens the range to that of x.
TQ_API void observe_min_max(const at::Tensor& x, const at::Tensor& min_val, const at::Tensor& max_val,
                            const at::Tensor& nonfinite_count, std::optional<int64_t> axis = std::nullopt,
                            std::optional<int64_t> group_size = std::nullopt);

// Moves the range towards that of x: m += averaging_constant * (x's - m); the first x sets it.
TQ_API void observe_moving_average(const at::Tensor& x, const at::Tensor& min_val, const at::Tensor& max_val,
                                   const at::Tensor& nonfinite_count, std::optional<int64_t> axis,
                                   std::optional<int64_t> group_size, double averaging_constant);

// Counts the values of x, after widening the range and the bins to hold them.
TQ_API void observe_histogram(const at::Tensor& x, const at::Tensor& histogram, const at::Tensor& min_val,
                              const at::Tensor& max_val, const at::Tensor& nonfinite_count,
                              std::optional<int64_t> axis = std::nullopt);

// Takes another observer's averages in; `merged` (int64, one per parameter, from 0) says how many went into each so
// far. The order of merges matters up to fp32 rounding.
TQ_API void merge_moving_average(const at::Tensor& min_val, const at::Tensor& max_val, const at::Tensor& merged,
                                 const at::Tensor& other_min_val, const at::Tensor& other_max_val,
                                 const at::Tensor& other_merged);

// Adds another histogram of as many bins. Exact: the order of merges does not matter.
TQ_API void merge_histogram(const at::Tensor& histogram, const at::Tensor& min_val, const at::Tensor& max_val,
                            const at::Tensor& other_histogram, const at::Tensor& other_min_val,
                            const at::Tensor& other_max_val);

// (scale, zero_point) of the range that cuts (100 - percentile) % of the values off each tail; 50 < percentile <= 100.
TQ_API std::tuple<at::Tensor, at::Tensor> qparams_from_histogram_percentile(const at::Tensor& histogram,
                                                                            const at::Tensor& min_val,
                                                                            const at::Tensor& max_val,
                                                                            double percentile, bool symmetric,
                                                                            int64_t quant_min, int64_t quant_max);

// ... of the range with the least mean squared quantization error.
TQ_API std::tuple<at::Tensor, at::Tensor> qparams_from_histogram_mse(const at::Tensor& histogram,
                                                                     const at::Tensor& min_val,
                                                                     const at::Tensor& max_val, bool symmetric,
                                                                     int64_t quant_min, int64_t quant_max);

// ... of the range with the least Kullback-Leibler divergence of the quantized values' distribution.
TQ_API std::tuple<at::Tensor, at::Tensor> qparams_from_histogram_entropy(const at::Tensor& histogram,
                                                                         const at::Tensor& min_val,
                                                                         const at::Tensor& max_val, bool symmetric,
                                                                         int64_t quant_min, int64_t quant_max);

}  // namespace torchquant
