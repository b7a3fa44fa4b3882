// Quantization of a row by its own largest value: symmetric int8, s = absmax / 127 over the row's finite values. Called
// by the row kernels of dynamic linear layers and of the key-value cache, on every device.
#pragma once

#include <cstdint>

#include "numerics/affine.h"
#include "numerics/float16.h"
#include "numerics/macros.h"
#include "numerics/qparams.h"

namespace torchquant::numerics {

inline constexpr QRange kDynamicRange{-127.0f, 127.0f};

// |x| as bits, which order like the values themselves; 0 for NaN and infinities, which count as nothing.
TQ_HOST_DEVICE int32_t finite_magnitude_bits(float x) {
  const auto bits = static_cast<int32_t>(float_to_bits(x) & 0x7fffffffu);
  return bits < 0x7f800000 ? bits : 0;
}

// The largest of a row. Compared as bits, because compilers do not turn a maximum of floats into vectors.
TQ_HOST_DEVICE int32_t largest_finite_bits(const float* x, int64_t n) {
  int32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t finite = finite_magnitude_bits(x[i]);
    largest = finite > largest ? finite : largest;
  }
  return largest;
}

// From the largest_finite_bits() of the row.
TQ_HOST_DEVICE QParams dynamic_qparams(int32_t largest_bits) {
  const float largest = bits_to_float(static_cast<uint32_t>(largest_bits));
  const ScaleZeroPoint chosen = choose_symmetric_qparams(-largest, largest, kDynamicRange);
  return make_qparams(chosen.scale, chosen.zero_point, kDynamicRange);
}

TQ_HOST_DEVICE int32_t dynamic_code(float x, QParams qparams) {
  return static_cast<int32_t>(quantize_value(x, qparams, kDynamicRange));
}

}  // namespace torchquant::numerics
