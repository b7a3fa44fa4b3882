// How observed ranges move from batch to batch. Called by observer kernels (CPU and CUDA) and ops.
#pragma once

#include "numerics/macros.h"

namespace torchquant::numerics {

// Range of the values seen so far; min = +inf and max = -inf where nothing (or nothing finite) was seen.
struct Range {
  float min_val;
  float max_val;

  TQ_HOST_DEVICE bool empty() const { return min_val > max_val; }
};

// m + averaging_constant * (current - m). A constant of 1 gives `current` itself, without the rounding of the formula.
TQ_HOST_DEVICE float moving_average(float m, float current, float averaging_constant) {
  return averaging_constant == 1.0f ? current : m + averaging_constant * (current - m);
}

// The first batch that saw anything sets the range; a batch that saw nothing leaves it.
TQ_HOST_DEVICE Range moving_average(Range seen, Range batch, float averaging_constant) {
  if (batch.empty()) return seen;
  if (seen.empty()) return batch;
  return {moving_average(seen.min_val, batch.min_val, averaging_constant),
          moving_average(seen.max_val, batch.max_val, averaging_constant)};
}

}  // namespace torchquant::numerics
