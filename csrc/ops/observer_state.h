// Checks of the state that observer ops are given, on any device. Called by their Meta kernels too.
#pragma once

#include <ATen/core/Tensor.h>

#include "export.h"
#include "ops/checks.h"

namespace torchquant::ops {

// `tensor` has this dtype and shape, lies on the device of `like` and is contiguous, because kernels write it in place.
TQ_API void check_state_tensor(const char* op, const char* argument, const at::Tensor& tensor, at::ScalarType dtype,
                               c10::SymIntArrayRef shape, const at::Tensor& like);

// min_val, max_val and nonfinite_count of an observation of x; x, axis and group_size are checked as well.
TQ_API void check_range_state(const char* op, const at::Tensor& x, const at::Tensor& min_val, const at::Tensor& max_val,
                              const at::Tensor& nonfinite_count, const Granularity& granularity);

// Weight of the newest batch: greater than 0, at most 1.
TQ_API void check_averaging_constant(const char* op, double averaging_constant);

// histogram is int64 with bins along its last axis, one row for each element of min_val and max_val.
TQ_API void check_histogram_state(const char* op, const at::Tensor& histogram, const at::Tensor& min_val,
                                  const at::Tensor& max_val);

}  // namespace torchquant::ops
