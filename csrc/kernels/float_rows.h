// Float work between integer layers, layer norm and sums, with one order of operations, so that every instruction set
// gives the same bits: what follows is quantized, and codes must not depend on the machine. Called by
// csrc/ops/layer_norm.cpp and by islands.
//
// Layer norm of a row of n values, with 16 lanes; value i belongs to lane i % 16, and the lanes' sums are added in
// pairs 8, 4, 2 and 1 apart:
//   mean = (sum of x_i) / n                each lane in the order of i, from 0
//   var  = (sum of (x_i - mean)^2) / n     each lane a chain of fmaf in the order of i, from 0
//   r    = 1 / sqrt(var + eps)
//   y_i  = fmaf((x_i - mean) * r, weight_i, bias_i)
#pragma once

#include <cstdint>

#include "kernels/isa.h"
#include "kernels/quantized_types.h"

namespace torchquant::kernels {

// Dense rows.
struct LayerNormArgs {
  int64_t columns;  // at least 1
  const float* x;
  const float* weight;  // [columns]; null for 1
  const float* bias;    // [columns]; null for 0
  float eps;
  float* out;
};

struct AddFloatsArgs {
  const float* a;
  const float* b;
  float* out;  // may be either
};

struct FloatRowKernels {
  void (*layer_norm)(const LayerNormArgs& args, IndexRange rows);
  void (*add)(const AddFloatsArgs& args, IndexRange elements);
};

// The kernels of an instruction set, which must be among available_isas().
const FloatRowKernels& float_row_kernels(Isa isa);

}  // namespace torchquant::kernels
