// The training kernels as plain loops over numerics/affine.h: what every other instruction set must equal bit for bit.
// Portable; chosen where no faster table fits, or by TORCHQUANT_ISA=reference.
#include <cmath>
#include <limits>

#include "kernels/cpu/float_type.h"
#include "kernels/fake_quantize.h"
#include "numerics/float16.h"

namespace torchquant::kernels::reference {
namespace {

using numerics::from_float;
using numerics::to_float;

// How element i of a run and of an *_each kernel finds its parameters.
QParams qparams_at(const QParams& p, int64_t) { return p; }
QParams qparams_at(const QParamArrays& p, int64_t i) { return {p.scale[i], p.inv_scale[i], p.zero_point[i]}; }

template <typename Params>
void fake_quantize(const void* x, void* y, int64_t n, FloatType type, Params p, QRange range) {
  with_float_type(type, [&](auto element) {
    using T = decltype(element);
    for (int64_t i = 0; i < n; ++i) {
      const float value = to_float(static_cast<const T*>(x)[i]);
      static_cast<T*>(y)[i] = from_float<T>(numerics::fake_quantize_value(value, qparams_at(p, i), range));
    }
  });
}

template <typename Params>
void backward(const void* grad, const void* x, void* grad_x, int64_t n, FloatType type, Params p, QRange range) {
  with_float_type(type, [&](auto element) {
    using T = decltype(element);
    for (int64_t i = 0; i < n; ++i) {
      const float g = to_float(static_cast<const T*>(grad)[i]);
      const float value = to_float(static_cast<const T*>(x)[i]);
      static_cast<T*>(grad_x)[i] = from_float<T>(numerics::ste_grad(g, value, qparams_at(p, i), range));
    }
  });
}

QParamGrads learnable_backward_run(const void* grad, const void* x, void* grad_x, int64_t n, FloatType type, QParams p,
                                   QRange range) {
  backward(grad, x, grad_x, n, type, p, range);
  QParamGrads sums{0.0, 0.0};
  with_float_type(type, [&](auto element) {
    using T = decltype(element);
    for (int64_t begin = 0; begin < n; begin += kReductionBlock) {
      const int64_t size = n - begin < kReductionBlock ? n - begin : kReductionBlock;
      float scale[kReductionLanes] = {};
      float zero_point[kReductionLanes] = {};
      for (int64_t i = 0; i < size; ++i) {
        const float g = to_float(static_cast<const T*>(grad)[begin + i]);
        const float value = to_float(static_cast<const T*>(x)[begin + i]);
        scale[i % kReductionLanes] += numerics::scale_grad(g, value, p, range);
        zero_point[i % kReductionLanes] += numerics::zero_point_grad(g, value, p, range);
      }
      for (int lane = 0; lane < kReductionLanes; ++lane) {
        sums.scale += static_cast<double>(scale[lane]);
        sums.zero_point += static_cast<double>(zero_point[lane]);
      }
    }
  });
  return sums;
}

void learnable_backward_each(const void* grad, const void* x, void* grad_x, int64_t n, FloatType type, QParamArrays p,
                             QRange range, double* scale_grad, double* zero_point_grad) {
  with_float_type(type, [&](auto element) {
    using T = decltype(element);
    for (int64_t i = 0; i < n; ++i) {
      const float g = to_float(static_cast<const T*>(grad)[i]);
      const float value = to_float(static_cast<const T*>(x)[i]);
      const QParams q = qparams_at(p, i);
      static_cast<T*>(grad_x)[i] = from_float<T>(numerics::ste_grad(g, value, q, range));
      scale_grad[i] += static_cast<double>(numerics::scale_grad(g, value, q, range));
      zero_point_grad[i] += static_cast<double>(numerics::zero_point_grad(g, value, q, range));
    }
  });
}

template <typename Params>
void quantize(const void* x, void* q, int64_t n, FloatType type, Params p, QRange range) {
  with_float_type(type, [&](auto element) {
    using T = decltype(element);
    for (int64_t i = 0; i < n; ++i) {
      const float code = numerics::quantize_value(to_float(static_cast<const T*>(x)[i]), qparams_at(p, i), range);
      static_cast<uint8_t*>(q)[i] = static_cast<uint8_t>(static_cast<int32_t>(code));
    }
  });
}

template <typename Params>
void dequantize(const void* q, void* y, int64_t n, bool q_signed, FloatType type, Params p) {
  with_float_type(type, [&](auto element) {
    using T = decltype(element);
    for (int64_t i = 0; i < n; ++i) {
      const int code = q_signed ? static_cast<const int8_t*>(q)[i] : static_cast<const uint8_t*>(q)[i];
      static_cast<T*>(y)[i] = from_float<T>(numerics::dequantize_value(static_cast<float>(code), qparams_at(p, i)));
    }
  });
}

// Widens the range by one value; returns 1 if the value is not finite and was left out.
int64_t widen(float value, float* min_val, float* max_val) {
  if (!(fabsf(value) < std::numeric_limits<float>::infinity())) return 1;
  value += 0.0f;  // turns a negative zero into zero
  if (value < *min_val) *min_val = value;
  if (value > *max_val) *max_val = value;
  return 0;
}

int64_t min_max_each(const void* x, int64_t n, FloatType type, float* min_val, float* max_val) {
  int64_t nonfinite = 0;
  with_float_type(type, [&](auto element) {
    using T = decltype(element);
    for (int64_t i = 0; i < n; ++i) {
      nonfinite += widen(to_float(static_cast<const T*>(x)[i]), &min_val[i], &max_val[i]);
    }
  });
  return nonfinite;
}

MinMax min_max_run(const void* x, int64_t n, FloatType type) {
  MinMax result{std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(), 0};
  with_float_type(type, [&](auto element) {
    using T = decltype(element);
    for (int64_t i = 0; i < n; ++i) {
      result.nonfinite += widen(to_float(static_cast<const T*>(x)[i]), &result.min_val, &result.max_val);
    }
  });
  return result;
}

}  // namespace

extern const FakeQuantizeKernels fake_quantize_table;
constinit const FakeQuantizeKernels fake_quantize_table = {
    .fake_quantize_run = fake_quantize<QParams>,
    .fake_quantize_each = fake_quantize<QParamArrays>,
    .backward_run = backward<QParams>,
    .backward_each = backward<QParamArrays>,
    .learnable_backward_run = learnable_backward_run,
    .learnable_backward_each = learnable_backward_each,
    .quantize_run = quantize<QParams>,
    .quantize_each = quantize<QParamArrays>,
    .dequantize_run = dequantize<QParams>,
    .dequantize_each = dequantize<QParamArrays>,
    .min_max_run = min_max_run,
    .min_max_each = min_max_each,
};

}  // namespace torchquant::kernels::reference
