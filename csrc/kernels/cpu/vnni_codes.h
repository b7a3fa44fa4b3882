// From an output's specification to the constants with which VNNI kernels write codes. Called by the AVX512-VNNI
// engines.
#pragma once

#include "kernels/cpu/vnni_tile.h"
#include "kernels/integer_conv.h"

namespace torchquant::kernels::avx512_vnni {

// Whether rounding, adding the zero point and two byte clamps are the whole output step.
bool is_byte_clamp(const OutputSpec& output);

// The constants of such an output.
CodeVectors code_vectors(const OutputSpec& output);

// Largest |acc| of a channel whose weights have absolute values that add up to `magnitude`.
inline float largest_accumulator(int32_t magnitude) { return 255.0f * static_cast<float>(magnitude); }

// Below this a value is converted to int32 and its zero point added without overflow.
inline constexpr float kLargestDirectValue = 0x1p30f;

// How much a residual can add.
inline float largest_residual(const ConvProblem& problem) {
  const float multiplier = problem.epilogue.residual.multiplier;
  return problem.residual.has_value() ? 255.0f * (multiplier < 0.0f ? -multiplier : multiplier) : 0.0f;
}

}  // namespace torchquant::kernels::avx512_vnni
