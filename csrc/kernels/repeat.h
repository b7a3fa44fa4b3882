// How an operand of an elementwise kernel repeats over the output. Filled by ops/repeated_operand.cpp, read by the CUDA
// kernels.
#pragma once

#include <cstdint>

#include "numerics/macros.h"

namespace torchquant::kernels {

// Element i of the output reads element i / (inner * count) * inner + i % inner of the operand. A count of 1 is element
// i itself. [N, 1, 1, C] against [N, H, W, C]: inner = C, count = H * W.
struct Repeat {
  int64_t inner = 1;
  int64_t count = 1;

  TQ_HOST_DEVICE int64_t index(int64_t i) const { return count == 1 ? i : i / (inner * count) * inner + i % inner; }
};

}  // namespace torchquant::kernels
