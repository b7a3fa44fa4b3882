// fp8 kernels over runs of contiguous floats (numerics/float8.h), chosen by instruction set. Called by csrc/ops/*fp8*,
// which convert half types at the boundary and split rows over threads.
#pragma once

#include <cstdint>

#include "kernels/isa.h"

namespace torchquant::kernels {

enum class Float8Type : int { kE4M3 = 0, kE5M2 = 1 };

struct Float8Kernels {
  // The scale of n values that share one: their largest finite magnitude over the format's largest value.
  float (*scale_of)(const float* x, int64_t n, Float8Type type);
  // codes[i] = float8_code(x[i] * (1 / scale))
  void (*quantize)(const float* x, int64_t n, float scale, Float8Type type, uint8_t* codes);
  // y[i] = float8_value(codes[i]) * scale
  void (*dequantize)(const uint8_t* codes, int64_t n, float scale, Float8Type type, float* y);
  // dequantize(quantize(x)); y == x is allowed.
  void (*fake_quantize)(const float* x, int64_t n, float scale, Float8Type type, float* y);
};

// Of the instruction set that kernels/isa.h selects, and of any.
const Float8Kernels& float8_kernels();
const Float8Kernels& float8_kernels(Isa isa);

}  // namespace torchquant::kernels
