// The activations of the integer contract, in fp32, written with fmaf so that every host and device gives the same
// bits. Called by numerics/requantize.h. Only +, -, *, /, fmaf and rounding are used, all of them correctly rounded
// everywhere; libm's exp, tanh and erf differ from machine to machine.
//
// Polynomials: weighted least squares, reweighted until the error is level (Lawson), each coefficient rounded to fp32
// before the next is fitted. Largest errors against fp64 (tests/cpp/numerics/quantized_activation_test.cpp):
//   exp        relative 1.0e-7      where the result is a normal number
//   sigmoid    relative 2.0e-7      x >= -87
//   tanh       relative 1.6e-7
//   erf        relative 1.0e-7
//   silu, gelu, gelu_tanh, hardswish, hardsigmoid    absolute 1.6e-7 * max(1, |x|)
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "numerics/affine.h"
#include "numerics/macros.h"

namespace torchquant::numerics {

// What stands between the accumulator and the rounding. Relu, relu6 and hardtanh are all kClamp with different bounds.
enum class Activation : int {
  kNone = 0,
  kClamp,
  kHardswish,
  kHardsigmoid,
  kSilu,
  kGelu,
  kGeluTanh,
  kSigmoid,
  kTanh,
};

// 2^n for -126 <= n <= 127
TQ_HOST_DEVICE float power_of_two(int32_t n) {
  const uint32_t bits = static_cast<uint32_t>(n + 127) << 23;
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// exp(x) = 2^n * exp(r) with n = rhe(x / ln 2) and |r| <= ln 2 / 2. Overflows to +inf, underflows through the
// subnormal numbers to 0; NaN stays NaN.
TQ_HOST_DEVICE float exp_f32(float x) {
  if (x != x) return x;
  if (x > 88.8f) return INFINITY;
  if (x < -104.0f) return 0.0f;
  const float n = round_half_even(x * 1.44269504f);
  // ln 2 in two parts; n times the first is exact.
  float r = fmaf(n, -0.693359375f, x);
  r = fmaf(n, 0.000212194442f, r);
  float p = 0.00138201367f;
  p = fmaf(p, r, 0.00836868584f);
  p = fmaf(p, r, 0.0416682735f);
  p = fmaf(p, r, 0.166665211f);
  p = fmaf(p, r, 0.49999994f);
  p = fmaf(r * r, p, r) + 1.0f;
  // Two factors, because 2^n itself leaves the normal range at both ends.
  const int32_t whole = static_cast<int32_t>(n);
  const int32_t half = whole / 2;
  return p * power_of_two(half) * power_of_two(whole - half);
}

// Both signs go through exp(-|x|), which cannot overflow.
TQ_HOST_DEVICE float sigmoid_f32(float x) {
  const float z = exp_f32(-fabsf(x));
  return (x < 0.0f ? z : 1.0f) / (1.0f + z);
}

TQ_HOST_DEVICE float tanh_f32(float x) {
  const float magnitude = fabsf(x);
  if (magnitude < 0.625f) {
    const float t = x * x;
    float q = -0.00569734583f;
    q = fmaf(q, t, 0.0206317231f);
    q = fmaf(q, t, -0.0537372679f);
    q = fmaf(q, t, 0.133314103f);
    q = fmaf(q, t, -0.333332807f);
    return fmaf(x * t, q, x);
  }
  // 1 - 2 / (exp(2|x|) + 1); an overflowing exp gives exactly 1.
  return copysignf(1.0f - 2.0f / (exp_f32(2.0f * magnitude) + 1.0f), x);
}

// erfc(z) for 1 <= z <= 4 as exp(-g(z)); 0 above, where 1 - erfc(z) rounds to 1.
TQ_HOST_DEVICE float erfc_tail_f32(float z) {
  float g = 2.17026118e-05f;
  g = fmaf(g, z, -0.000441519223f);
  g = fmaf(g, z, 0.00420546439f);
  g = fmaf(g, z, -0.0252107065f);
  g = fmaf(g, z, 0.108422518f);
  g = fmaf(g, z, 0.633216143f);
  g = fmaf(g, z, 1.12958038f);
  g = fmaf(g, z, -0.000188470178f);
  const float e = exp_f32(-g);
  return z > 4.0f ? 0.0f : e;
}

// erf(x) for |x| < 1
TQ_HOST_DEVICE float erf_centre_f32(float x) {
  const float t = x * x;
  float q = 7.80690316e-05f;
  q = fmaf(q, t, -0.00079978531f);
  q = fmaf(q, t, 0.0051871622f);
  q = fmaf(q, t, -0.0268533472f);
  q = fmaf(q, t, 0.112835787f);
  q = fmaf(q, t, -0.37612626f);
  q = fmaf(q, t, 0.128379166f);
  return fmaf(x, q, x);
}

TQ_HOST_DEVICE float erf_f32(float x) {
  if (fabsf(x) < 1.0f) return erf_centre_f32(x);
  return copysignf(1.0f - erfc_tail_f32(fabsf(x)), x);
}

// x * Phi(x); the negative tail uses erfc, where 1 + erf would cancel. Both sides are computed, and one of them chosen:
// compilers do not turn a loop over branches this deep into vectors.
TQ_HOST_DEVICE float gelu_f32(float x) {
  const float z = x * 0.707106781f;
  const float centre = 0.5f * x * (1.0f + erf_centre_f32(z));
  const float tail = 0.5f * erfc_tail_f32(fabsf(z));
  const float outer = x * (x < 0.0f ? tail : 1.0f - tail);
  return fabsf(z) < 1.0f ? centre : outer;
}

// 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
TQ_HOST_DEVICE float gelu_tanh_f32(float x) {
  const float u = 0.797884561f * fmaf(0.044715f * x * x, x, x);
  return x * sigmoid_f32(2.0f * u);
}

TQ_HOST_DEVICE float silu_f32(float x) { return x * sigmoid_f32(x); }

// clamp(x + 3, 0, 6) * (1/6)
TQ_HOST_DEVICE float hardsigmoid_f32(float x) { return saturate(x + 3.0f, QRange{0.0f, 6.0f}) * 0.166666667f; }

TQ_HOST_DEVICE float hardswish_f32(float x) { return x * hardsigmoid_f32(x); }

// An activation on a real value. kNone and kClamp act on the scaled value instead (numerics/requantize.h).
TQ_HOST_DEVICE float activate_real(Activation kind, float x) {
  switch (kind) {
    case Activation::kHardswish:
      return hardswish_f32(x);
    case Activation::kHardsigmoid:
      return hardsigmoid_f32(x);
    case Activation::kSilu:
      return silu_f32(x);
    case Activation::kGelu:
      return gelu_f32(x);
    case Activation::kGeluTanh:
      return gelu_tanh_f32(x);
    case Activation::kSigmoid:
      return sigmoid_f32(x);
    case Activation::kTanh:
      return tanh_f32(x);
    case Activation::kNone:
    case Activation::kClamp:
      break;
  }
  return x;
}

}  // namespace torchquant::numerics
