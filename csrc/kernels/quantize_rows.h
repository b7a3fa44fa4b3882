// Quantizes rows of floats inside a dynamic integer op: symmetric, s = absmax / 127 over the row's finite values.
// Called by csrc/ops/quantized_linear_dynamic.cpp.
#pragma once

#include <cstdint>

#include "kernels/isa.h"

namespace torchquant::kernels {

// Writes code + 128 of n values (codes are in [-127, 127], so uint8 with zero point 128) and returns the scale.
using QuantizeRow = float (*)(const float* x, int64_t n, uint8_t* codes);

QuantizeRow quantize_row(Isa isa);

inline constexpr int32_t kDynamicZeroPoint = 128;

}  // namespace torchquant::kernels
