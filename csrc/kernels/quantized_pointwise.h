// Integer elementwise kernels, over dense runs and over images. Called by csrc/ops/quantized_{add,mul,lookup}.cpp.
#pragma once

#include <cstdint>

#include "kernels/image.h"
#include "kernels/quantized_types.h"

namespace torchquant::kernels {

struct Operand {
  const void* data;
  ElementType type;
  int32_t zero_point;
};

// How an elementwise kernel walks images. Sizes are those of `out`; an operand whose pitches are 0 repeats ([N, 1, 1,
// C] against [N, H, W, C]). Kernels of one operand take `b` like `a`.
struct PointwiseImages {
  int64_t channels;
  ImageLayout a;
  ImageLayout b;
  ImageLayout out;
};

// add: v = fmaf(float(b - z_b), b_multiplier, float(a - z_a) * a_multiplier)
struct AddArgs {
  Operand a;
  Operand b;
  float a_multiplier;
  float b_multiplier;
  OutputSpec output;
  void* out;
};

// mul: v = float((a - z_a) * (b - z_b)) * multiplier; the product of two codes is exact in fp32.
struct MulArgs {
  Operand a;
  Operand b;
  float multiplier;
  OutputSpec output;
  void* out;
};

// out[i] = table[x[i] - table_min]; 256 entries of `element_size` bytes (1, 2 or 4).
struct LookupArgs {
  const void* x;
  ElementType x_type;  // kUInt8 or kInt8, with table_min 0 or -128
  const void* table;
  int64_t element_size;
  void* out;
};

}  // namespace torchquant::kernels
