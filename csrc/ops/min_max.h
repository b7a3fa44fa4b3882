// Range of the finite values of a CPU tensor at any granularity. Called by choose_qparams, fused_observe_fake_quantize and
// the observer ops.
#pragma once

#include "numerics/stats.h"
#include "ops/granularity.h"

namespace torchquant::ops {

struct ObservedRanges {
  std::vector<numerics::Range> ranges;  // one for each parameter, in the memory order of param_layout()
  int64_t nonfinite;                    // NaN and infinite values, left out of the ranges
};

TQ_API ObservedRanges observe_ranges(const at::Tensor& dense, const Granularity& granularity);

}  // namespace torchquant::ops
