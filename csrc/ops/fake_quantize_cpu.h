// The CPU loop of fake_quantize, shared with fused_observe_fake_quantize, which has its own checks and parameters.
#pragma once

#include "ops/granularity.h"

namespace torchquant::ops {

// Fake-quantizes a dense tensor into `output`, which has its strides.
void fake_quantize_into(const at::Tensor& output, const at::Tensor& dense, const CpuQParams& params,
                        numerics::QRange range);

}  // namespace torchquant::ops
