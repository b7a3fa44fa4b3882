// The CPU loop of fake_quantize, shared with fused_observe_fake_quantize, which has its own checks and parameters.
#pragma once

#include "ops/granularity.h"

namespace torchquant::ops {

at::Tensor fake_quantize_dense(const at::Tensor& dense, const CpuQParams& params, numerics::QRange range);

}  // namespace torchquant::ops
