// The order in which the sums of 16 lanes become one (kernels/float_rows.h). Used by the reference and the vector
// kernels.
#pragma once

#include "kernels/cpu/lanes.h"

namespace torchquant::kernels {

TQ_HOST_DEVICE float fold_lanes(const float (&lanes)[kLanes]) {
  float sums[kLanes];
  for (int i = 0; i < kLanes; ++i) sums[i] = lanes[i];
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

}  // namespace torchquant::kernels
