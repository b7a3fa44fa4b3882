// Raw-pointer training kernels over runs of contiguous elements; chosen per instruction set by kernels/isa.h and called
// by csrc/ops/, which turns every granularity and memory format into such runs and splits them over threads.
//
// Two forms of each kernel:
//   *_run   n elements that share one (scale, zero_point)         per tensor, per channel, per group on the last axis
//   *_each  n elements, element i with its own parameters[i]      channels-last per channel, groups on an inner axis
#pragma once

#include <cstdint>

#include "kernels/isa.h"
#include "numerics/affine.h"

namespace torchquant::kernels {

using numerics::QParams;
using numerics::QRange;

enum class FloatType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// Parameter arrays of an *_each kernel, all of length n.
struct QParamArrays {
  const float* scale;
  const float* inv_scale;
  const float* zero_point;  // effective (rounded and clamped) zero points
};

// Sums over one run, in an order that is the same for every instruction set: within a block of kReductionBlock
// elements, element i is added to fp32 lane i % kReductionLanes; then the lanes of each block, block after block, are
// added to one fp64 sum. A caller that splits a run over threads gets the same bits for every thread count if it splits
// at fixed multiples of kReductionBlock and adds the parts in order.
struct QParamGrads {
  double scale;
  double zero_point;
};

inline constexpr int64_t kReductionBlock = 4096;
inline constexpr int kReductionLanes = 16;

// Range of the finite values, and how many values were not finite. min = +inf, max = -inf where no value is finite.
// A negative zero counts as zero, so that the result does not depend on the order of the values.
struct MinMax {
  float min_val;
  float max_val;
  int64_t nonfinite;
};

struct FakeQuantizeKernels {
  // y[i] = fake_quantize(x[i]); x and y have `type`. `y == x` is allowed.
  void (*fake_quantize_run)(const void* x, void* y, int64_t n, FloatType type, QParams p, QRange range);
  void (*fake_quantize_each)(const void* x, void* y, int64_t n, FloatType type, QParamArrays p, QRange range);

  // grad_x[i] = ste_grad(grad[i], x[i])
  void (*backward_run)(const void* grad, const void* x, void* grad_x, int64_t n, FloatType type, QParams p,
                       QRange range);
  void (*backward_each)(const void* grad, const void* x, void* grad_x, int64_t n, FloatType type, QParamArrays p,
                        QRange range);

  // Straight-through grad_x, and the sums of scale_grad and zero_point_grad over the run.
  QParamGrads (*learnable_backward_run)(const void* grad, const void* x, void* grad_x, int64_t n, FloatType type,
                                        QParams p, QRange range);
  // As above; adds element i's gradients to scale_grad[i] and zero_point_grad[i] (fp64 accumulators).
  void (*learnable_backward_each)(const void* grad, const void* x, void* grad_x, int64_t n, FloatType type,
                                  QParamArrays p, QRange range, double* scale_grad, double* zero_point_grad);

  // q[i] = quantize(x[i]) stored as one byte: int8 or uint8 by the range, which fits the one or the other.
  void (*quantize_run)(const void* x, void* q, int64_t n, FloatType type, QParams p, QRange range);
  void (*quantize_each)(const void* x, void* q, int64_t n, FloatType type, QParamArrays p, QRange range);

  // y[i] = dequantize(q[i]); `q_signed` tells int8 from uint8.
  void (*dequantize_run)(const void* q, void* y, int64_t n, bool q_signed, FloatType type, QParams p);
  void (*dequantize_each)(const void* q, void* y, int64_t n, bool q_signed, FloatType type, QParamArrays p);

  // n may be 0.
  MinMax (*min_max_run)(const void* x, int64_t n, FloatType type);
  // Widens min_val[i], max_val[i] by x[i] and returns how many values were not finite.
  int64_t (*min_max_each)(const void* x, int64_t n, FloatType type, float* min_val, float* max_val);
};

// The table of the instruction set that isa.h selected.
const FakeQuantizeKernels& fake_quantize_kernels();

// The table of one instruction set, which must be among available_isas(). For tests and benchmarks.
const FakeQuantizeKernels& fake_quantize_kernels(Isa isa);

}  // namespace torchquant::kernels
