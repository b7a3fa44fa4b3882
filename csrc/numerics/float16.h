// IEEE half precision (fp16) and bfloat16 to and from fp32, in integer arithmetic: the same bits on every host and
// device. Called by the kernels, which compute in fp32 whatever they load and store, and by tests.
//
// Narrowing rounds to nearest even and overflows to infinity; subnormal results are kept. NaN stays NaN with its sign
// and the upper bits of its payload, made quiet, which is what the x86 conversion instructions do.
#pragma once

#include <cstdint>
#include <cstring>

#include "numerics/macros.h"

namespace torchquant::numerics {

// Storage of one element; the layout of c10::Half and c10::BFloat16.
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

TQ_HOST_DEVICE uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

TQ_HOST_DEVICE float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

TQ_HOST_DEVICE float to_float(float value) { return value; }

TQ_HOST_DEVICE float to_float(BFloat16 value) { return bits_to_float(static_cast<uint32_t>(value.bits) << 16); }

TQ_HOST_DEVICE float to_float(Float16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t exponent = (value.bits >> 10) & 0x1fu;
  const uint32_t mantissa = value.bits & 0x3ffu;
  if (exponent == 0x1fu) {
    const uint32_t quiet = mantissa != 0 ? 0x00400000u : 0u;
    return bits_to_float(sign | 0x7f800000u | (mantissa << 13) | quiet);
  }
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, which fp32 holds exactly
    return bits_to_float(sign | float_to_bits(static_cast<float>(mantissa) * 5.9604644775390625e-8f));
  }
  return bits_to_float(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

// from_float<T>(value): value rounded to T.
template <typename T>
TQ_HOST_DEVICE T from_float(float value);

template <>
TQ_HOST_DEVICE float from_float<float>(float value) {
  return value;
}

template <>
TQ_HOST_DEVICE BFloat16 from_float<BFloat16>(float value) {
  const uint32_t bits = float_to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits | 0x00400000u) >> 16)};
  // Half of the last kept bit, less one where that bit is even: a tie carries only into an odd one.
  const uint32_t rounding = 0x7fffu + ((bits >> 16) & 1u);
  return {static_cast<uint16_t>((bits + rounding) >> 16)};
}

template <>
TQ_HOST_DEVICE Float16 from_float<Float16>(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x47800000u) {  // 2^16; what rounds up to it carries into infinity below
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14 the result is a multiple of 2^-24, which is the last bit of 0.5f: the addition rounds for us.
    half = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    const uint32_t rounding = 0x0fffu + ((magnitude >> 13) & 1u);
    half = (magnitude + rounding - (112u << 23)) >> 13;
  }
  return {static_cast<uint16_t>(sign | half)};
}

}  // namespace torchquant::numerics
