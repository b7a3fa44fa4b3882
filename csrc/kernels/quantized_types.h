// What the integer kernels share, as plain data: element types, weights in storage order, and what is done with an
// accumulator. Filled by csrc/ops/, read by the kernels of kernels/quantized_*.h; the arithmetic is
// numerics/requantize.h.
#pragma once

#include <cstdint>

#include "numerics/requantize.h"

namespace torchquant::kernels {

using numerics::ActivationSpec;
using numerics::QRange;

struct IndexRange {
  int64_t begin;
  int64_t end;
};

// Part `i` of `parts` nearly equal ones.
constexpr IndexRange share_of(int64_t items, int64_t parts, int64_t i) {
  return {items * i / parts, items * (i + 1) / parts};
}

// How one stored code or value is typed. Half types never reach these kernels: ops convert at the float boundary.
enum class ElementType : int { kUInt8 = 0, kInt8 = 1, kFloat32 = 2 };

// Codes of a residual branch, laid out like the output. `data` is null where there is none.
struct Residual {
  const void* data = nullptr;
  ElementType type = ElementType::kUInt8;
  int32_t zero_point = 0;
  float multiplier = 0.0f;
};

// Activation, rounding and saturation; a float output is stored without rounding and ignores zero_point and range.
struct OutputSpec {
  ElementType type;
  float zero_point;
  QRange range;
  ActivationSpec activation;
};

// v = fmaf(float(acc), multiplier[c], bias[c]), then the residual, then `output`.
struct Epilogue {
  const float* multiplier;  // one per output channel
  const float* bias;        // one per output channel
  Residual residual;
  OutputSpec output;
};

// Integer weights in storage order, rows of `columns` codes; 4-bit rows are packed (numerics/int4.h).
struct StoredWeight {
  const void* data;
  int64_t columns;
  int32_t bits;       // 8 or 4
  int32_t quant_min;  // what a stored 4-bit 0 stands for
};

}  // namespace torchquant::kernels
