// Scale and zero point from an observed range. Called by observers, choose_qparams kernels and the converter.
#pragma once

#include <cmath>

#include "numerics/affine.h"

namespace torchquant::numerics {

struct ScaleZeroPoint {
  float scale;
  float zero_point;
};

// Middle code of the range: 0 for signed ranges ([-127, 127], [-128, 127], [-8, 7]), 128 for [0, 255], 8 for [0, 15].
TQ_HOST_DEVICE float symmetric_zero_point(QRange range) {
  return floorf((range.quant_min + range.quant_max + 1.0f) * 0.5f);
}

TQ_HOST_DEVICE float usable_scale(float scale) { return scale < kMinScale ? 1.0f : scale; }

// scale = max(|min|, |max|) / (quant_max - zero_point)
TQ_HOST_DEVICE ScaleZeroPoint choose_symmetric_qparams(float min_val, float max_val, QRange range) {
  const float zero_point = symmetric_zero_point(range);
  const float abs_max = fmaxf(fabsf(min_val), fabsf(max_val));
  return {usable_scale(abs_max / (range.quant_max - zero_point)), zero_point};
}

// The range always contains 0: scale = (max - min) / (quant_max - quant_min),
// zero_point = clamp(quant_min - rhe(min / scale)).
TQ_HOST_DEVICE ScaleZeroPoint choose_affine_qparams(float min_val, float max_val, QRange range) {
  const float lo = fminf(min_val, 0.0f);
  const float hi = fmaxf(max_val, 0.0f);
  const float steps = range.quant_max - range.quant_min;
  float scale = (hi - lo) / steps;
  // Two finite ends can be further apart than the largest float; each part alone cannot.
  if (scale > kMaxFloat) scale = hi / steps - lo / steps;
  scale = usable_scale(scale);
  return {scale, saturate(range.quant_min - round_half_even(lo / scale), range)};
}

// An empty range (min +inf, max -inf: nothing was seen) counts as [0, 0].
TQ_HOST_DEVICE ScaleZeroPoint choose_qparams(float min_val, float max_val, bool symmetric, QRange range) {
  if (min_val > max_val) min_val = max_val = 0.0f;
  return symmetric ? choose_symmetric_qparams(min_val, max_val, range) : choose_affine_qparams(min_val, max_val, range);
}

// The smallest power of two that is not below `scale`, exactly; 2^127, the largest, for what lies above it. A scale
// that is not usable (zero, negative, infinite, NaN) stays what it is.
TQ_HOST_DEVICE float power_of_two_scale(float scale) {
  if (!(scale > 0.0f && scale <= kMaxFloat)) return scale;
  int exponent = 0;
  const float mantissa = frexpf(scale, &exponent);  // in [0.5, 1)
  if (mantissa == 0.5f) --exponent;
  return ldexpf(1.0f, exponent < 127 ? exponent : 127);
}

// Parameters of (nearly) the same range whose scale is a power of two, so that rescaling is a shift. Rounding up loses
// nothing of the range but half a step; an affine zero point moves with its lower end.
TQ_HOST_DEVICE ScaleZeroPoint power_of_two_qparams(ScaleZeroPoint chosen, bool symmetric, QRange range) {
  const float scale = power_of_two_scale(chosen.scale);
  if (symmetric) return {scale, chosen.zero_point};
  const float below = (chosen.zero_point - range.quant_min) * (chosen.scale / scale);
  return {scale, saturate(range.quant_min + round_half_even(below), range)};
}

}  // namespace torchquant::numerics
