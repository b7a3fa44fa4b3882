// The affine quantization contract for one value: quantize, dequantize, fake-quantize and its gradients.
// Called by every kernel (CPU and CUDA), by observers and by the converter. `docs/numerics.md` states each rule.
#pragma once

#include <cmath>
#include <cstdint>

#include "numerics/macros.h"

namespace torchquant::numerics {

// Smallest scale that is kept (2^-100); a smaller one, including zero, becomes 1 when it is chosen from data and is
// clamped to this value when it is learned.
inline constexpr float kMinScale = 7.888609052210118e-31f;

// One (scale, zero_point) pair as kernels use it. `zero_point` holds an integer value inside the range.
struct QParams {
  float scale;
  float inv_scale;  // 1 / scale, divided once in fp32
  float zero_point;
};

// Inclusive integer range of the codes, held as floats because codes are compared in fp32.
struct QRange {
  float quant_min;
  float quant_max;
};

inline constexpr float kMaxFloat = 3.4028234663852886e38f;

// What a caller may pass as a scale: positive, finite, and with a finite reciprocal (from 2^-128 up); below that, zero
// times 1/scale would be NaN. NaN fails every comparison.
TQ_HOST_DEVICE bool valid_scale(float scale) { return scale > 0.0f && scale <= kMaxFloat && 1.0f / scale <= kMaxFloat; }

// Nearest integer, ties to even. Relies on the default rounding mode, which nothing here changes.
TQ_HOST_DEVICE float round_half_even(float x) {
#if defined(__CUDA_ARCH__)
  return rintf(x);
#else
  return __builtin_nearbyintf(x);
#endif
}

// NaN stays NaN: both comparisons are false.
TQ_HOST_DEVICE float saturate(float v, QRange range) {
  if (v < range.quant_min) return range.quant_min;
  if (v > range.quant_max) return range.quant_max;
  return v;
}

// clamp(rhe(zero_point)): how a stored or learned (fractional) offset enters the arithmetic.
TQ_HOST_DEVICE float effective_zero_point(float zero_point, QRange range) {
  return saturate(round_half_even(zero_point), range);
}

TQ_HOST_DEVICE QParams make_qparams(float scale, float zero_point, QRange range) {
  return QParams{scale, 1.0f / scale, effective_zero_point(zero_point, range)};
}

// rhe(x * (1/scale)) + zero_point, before saturation. The zero point is added after rounding, so there is no
// multiply-add to contract and CPU and CUDA agree bit for bit.
TQ_HOST_DEVICE float unclamped_code(float x, QParams p) { return round_half_even(x * p.inv_scale) + p.zero_point; }

// q = clamp(rhe(x * (1/scale)) + zero_point, quant_min, quant_max); NaN gives the zero point, infinities saturate.
TQ_HOST_DEVICE float quantize_value(float x, QParams p, QRange range) {
  const float v = unclamped_code(x, p);
  return v != v ? p.zero_point : saturate(v, range);
}

// x_hat = (q - zero_point) * scale
TQ_HOST_DEVICE float dequantize_value(float q, QParams p) { return (q - p.zero_point) * p.scale; }

// dequantize(quantize(x)), except that NaN passes through so that divergence stays visible in training.
TQ_HOST_DEVICE float fake_quantize_value(float x, QParams p, QRange range) {
  return (saturate(unclamped_code(x, p), range) - p.zero_point) * p.scale;
}

// Straight-through mask: true where the unclamped code lies inside [quant_min, quant_max]; false for NaN.
TQ_HOST_DEVICE bool ste_mask(float x, QParams p, QRange range) {
  const float v = unclamped_code(x, p);
  return v >= range.quant_min && v <= range.quant_max;
}

// dL/dx = grad inside the range, 0 outside.
TQ_HOST_DEVICE float ste_grad(float grad, float x, QParams p, QRange range) {
  return ste_mask(x, p, range) ? grad : 0.0f;
}

// dx_hat/dscale after LSQ (Esser et al., 2020): rhe(t) - t inside, q - zero_point outside, with t = x * (1/scale).
TQ_HOST_DEVICE float scale_grad(float grad, float x, QParams p, QRange range) {
  const float t = x * p.inv_scale;
  const float r = round_half_even(t);
  const float v = r + p.zero_point;
  const bool inside = v >= range.quant_min && v <= range.quant_max;
  return grad * (inside ? r - t : saturate(v, range) - p.zero_point);
}

// dx_hat/dzero_point after LSQ+ (Bhalgat et al., 2020): 0 inside, -scale outside.
TQ_HOST_DEVICE float zero_point_grad(float grad, float x, QParams p, QRange range) {
  return ste_mask(x, p, range) ? 0.0f : -(grad * p.scale);
}

}  // namespace torchquant::numerics
