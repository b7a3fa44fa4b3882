// The two 8-bit floating-point formats, e4m3fn and e5m2 of the OCP 8-bit floating point specification (Micikevicius et
// al., "FP8 formats for deep learning", 2022), and quantization with them. Called by the fp8 kernels of every device.
//
// Encoding rounds to nearest even and saturates: what lies beyond the largest finite value becomes that value,
// infinities included. Subnormals and the sign of zero are kept. NaN becomes 0x7f, whatever its sign and payload.
// Decoding is exact for all 256 codes. Like torch's casts on finite results; torch's own do not saturate.
#pragma once

#include <cstdint>

#include "numerics/affine.h"
#include "numerics/float16.h"
#include "numerics/macros.h"
#include "numerics/qparams.h"

namespace torchquant::numerics {

struct Float8E4M3 {  // torch.float8_e4m3fn: no infinities, NaN is 0x7f and 0xff
  static constexpr int32_t kMantissaBits = 3;
  static constexpr int32_t kBias = 7;
  static constexpr int32_t kLargestCode = 0x7e;
  static constexpr float kLargest = 448.0f;
  static constexpr float kLastInside = 464.0f;  // a tie, which goes to the even 448
};

struct Float8E5M2 {  // torch.float8_e5m2: infinities 0x7c and 0xfc, NaN above them
  static constexpr int32_t kMantissaBits = 2;
  static constexpr int32_t kBias = 15;
  static constexpr int32_t kLargestCode = 0x7b;
  static constexpr float kLargest = 57344.0f;
  static constexpr float kLastInside = 61439.99609375f;  // 61440 is a tie, which goes to what would be 65536
};

inline constexpr uint8_t kFloat8Nan = 0x7f;

// Code of the nearest value to |x| as if the format went on beyond its largest one. Without branches, so that compilers
// turn loops over it into vectors.
template <typename Format>
TQ_HOST_DEVICE int32_t unclamped_float8_code(float x) {
  constexpr int32_t kShift = 23 - Format::kMantissaBits;
  constexpr int32_t kRebias = (127 - Format::kBias) << 23;
  constexpr int32_t kSmallestNormal = (128 - Format::kBias) << 23;
  // Below the smallest normal a result is a multiple of 2^(1 - bias - mantissa bits), which is the last bit of this
  // power of two: the addition rounds for us.
  constexpr int32_t kAligner = (127 + 24 - Format::kBias - Format::kMantissaBits) << 23;
  const auto magnitude = static_cast<int32_t>(float_to_bits(x) & 0x7fffffffu);
  // Half of the last kept bit, less one where that bit is even: a tie carries only into an odd one.
  const int32_t rounding = (1 << (kShift - 1)) - 1 + ((magnitude >> kShift) & 1);
  const int32_t normal = (magnitude - kRebias + rounding) >> kShift;
  const float sum = bits_to_float(static_cast<uint32_t>(magnitude)) + bits_to_float(static_cast<uint32_t>(kAligner));
  const int32_t subnormal = static_cast<int32_t>(float_to_bits(sum)) - kAligner;
  return magnitude < kSmallestNormal ? subnormal : normal;
}

// x as a code of Format.
template <typename Format>
TQ_HOST_DEVICE uint8_t float8_code(float x) {
  const uint32_t bits = float_to_bits(x);
  const int32_t unclamped = unclamped_float8_code<Format>(x);
  const int32_t clamped = unclamped < Format::kLargestCode ? unclamped : Format::kLargestCode;
  const auto code = static_cast<uint8_t>(((bits >> 24) & 0x80u) | static_cast<uint32_t>(clamped));
  return (bits & 0x7fffffffu) > 0x7f800000u ? kFloat8Nan : code;
}

// The value of a code.
template <typename Format>
TQ_HOST_DEVICE float float8_value(uint8_t code) {
  constexpr int32_t kShift = 23 - Format::kMantissaBits;
  const int32_t magnitude = code & 0x7f;
  const float unit = bits_to_float(static_cast<uint32_t>(128 - Format::kBias - Format::kMantissaBits) << 23);
  const uint32_t subnormal = float_to_bits(static_cast<float>(magnitude) * unit);
  const auto normal = static_cast<uint32_t>((magnitude << kShift) + ((127 - Format::kBias) << 23));
  const uint32_t special = Format::kBias == 15 && magnitude == 0x7c ? 0x7f800000u : 0x7fc00000u;
  const uint32_t finite = magnitude < 1 << Format::kMantissaBits ? subnormal : normal;
  const uint32_t bits = magnitude > Format::kLargestCode ? special : finite;
  return bits_to_float(bits | static_cast<uint32_t>(code & 0x80) << 24);
}

// ---- quantization ---------------------------------------------------------------------------------------------------
// q = float8_code(x * (1/scale)),  x_hat = float8_value(q) * scale

// Of values whose largest finite magnitude has these bits (numerics/dynamic.h).
template <typename Format>
TQ_HOST_DEVICE float float8_scale(int32_t largest_bits) {
  return usable_scale(bits_to_float(static_cast<uint32_t>(largest_bits)) / Format::kLargest);
}

template <typename Format>
TQ_HOST_DEVICE uint8_t quantize_float8(float x, float inv_scale) {
  return float8_code<Format>(x * inv_scale);
}

template <typename Format>
TQ_HOST_DEVICE float fake_quantize_float8(float x, float scale, float inv_scale) {
  return float8_value<Format>(quantize_float8<Format>(x, inv_scale)) * scale;
}

// Straight-through mask: true where the code before saturation is none beyond the largest, |x / scale| <= kLastInside;
// false for NaN.
template <typename Format>
TQ_HOST_DEVICE bool float8_ste_mask(float x, float inv_scale) {
  return fabsf(x * inv_scale) <= Format::kLastInside;
}

}  // namespace torchquant::numerics
