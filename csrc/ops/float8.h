// C++ entry points of the fp8 ops, and the checks that they share; csrc/ops/float8.cpp, fake_quantize_fp8.cpp and
// quantized_linear_fp8.cpp implement them. numerics/float8.h states the arithmetic.
//
// Common arguments
//   x      float32, bfloat16 or float16, at least one dimension, any strides
//   dtype  at::kFloat8_e4m3fn or at::kFloat8_e5m2
//   scale  float32, finite and > 0: one element, or the shape of x without its last dimension, one for each row
// A wrong argument raises c10::Error naming the op, the argument, what is allowed and what it got.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "export.h"
#include "kernels/float8.h"
#include "ops/quantized_common.h"

namespace torchquant {

// Codes of x * (1 / scale), rounded to nearest even, saturated; NaN stays NaN. Contiguous.
TQ_API at::Tensor quantize_fp8(const at::Tensor& x, const at::Tensor& scale, at::ScalarType dtype);

// The same with a scale for each row from its own largest finite magnitude, over 448 or 57344: (codes, scale).
TQ_API std::tuple<at::Tensor, at::Tensor> quantize_fp8_dynamic(const at::Tensor& x, at::ScalarType dtype);

// q * scale in `dtype`, which is float32, bfloat16 or float16; q is float8_e4m3fn or float8_e5m2.
TQ_API at::Tensor dequantize_fp8(const at::Tensor& q, const at::Tensor& scale, at::ScalarType dtype = at::kFloat);

// dequantize_fp8(quantize_fp8(x)) in x's dtype; without scale, that of quantize_fp8_dynamic. The gradient of x passes
// straight through where the value is not clipped; scale has none.
TQ_API at::Tensor fake_quantize_fp8(const at::Tensor& x, const std::optional<at::Tensor>& scale, at::ScalarType dtype);
TQ_API at::Tensor fake_quantize_fp8_backward(const at::Tensor& grad, const at::Tensor& x,
                                             const std::optional<at::Tensor>& scale, at::ScalarType dtype);

namespace ops {

// Checks that `dtype` is one of the two formats, and names it for kernels.
TQ_API kernels::Float8Type check_float8(const char* op, const char* argument, at::ScalarType dtype);

// x and its scale: types, shapes and devices.
TQ_API void check_rows(const char* op, const at::Tensor& x, const std::optional<at::Tensor>& scale);

// CPU: floats of any type as dense fp32 rows.
struct CpuRows {
  explicit CpuRows(const at::Tensor& x) : dense(x.to(at::kFloat).contiguous()), depth(x.size(-1)) {
    rows = depth == 0 ? 0 : dense.numel() / depth;
  }
  const float* data() const { return dense.const_data_ptr<float>(); }

  at::Tensor dense;
  int64_t depth;
  int64_t rows;
};

// Calls run(index of the scale, first element, elements) for runs that share a scale, split over threads.
template <typename Run>
void for_each_run(const CpuRows& x, bool per_row, const Run& run) {
  constexpr int64_t kPiece = 4096;  // of a tensor with one scale
  const int64_t total = x.rows * x.depth;
  const int64_t length = per_row ? x.depth : kPiece;
  if (total == 0) return;
  parallel_range((total + length - 1) / length, length, [&](kernels::IndexRange range) {
    for (int64_t i = range.begin; i < range.end; ++i) {
      run(per_row ? i : 0, i * length, std::min(length, total - i * length));
    }
  });
}

}  // namespace ops
}  // namespace torchquant
