// Arguments of the integer kernels as tests draw them: every type, zero point and activation, multipliers that make
// ties and saturate. Used by the tests that compare an instruction set or the CUDA kernels with the reference.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/quantized_kernels.h"
#include "support/rng.h"

namespace torchquant::test {

using kernels::ElementType;
using kernels::Operand;
using kernels::OutputSpec;

inline std::vector<uint8_t> random_bytes(int64_t n, Random& random) {
  std::vector<uint8_t> bytes(n);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.integer(0, 255));
  return bytes;
}

inline ElementType random_code_type(Random& random) {
  return random.integer(0, 1) == 0 ? ElementType::kUInt8 : ElementType::kInt8;
}

inline int32_t random_zero_point(ElementType type, Random& random) {
  return static_cast<int32_t>(random.integer(0, 255)) - (type == ElementType::kInt8 ? 128 : 0);
}

// Multipliers that make ties (halves), that saturate, that give values of every size, and infinities and NaN.
inline float random_multiplier(Random& random) {
  switch (random.integer(0, 3)) {
    case 0:
      return 0.5f * static_cast<float>(random.integer(-3, 3));
    case 1:
      return random.uniform(-0.02f, 0.02f);
    case 2:
      return random.uniform(-2.0f, 2.0f);
    default:
      return random.integer(0, 1) == 0 ? 3e38f : -3e38f;
  }
}

// All output types; no activation, a clamp, and one that vectors leave to scalar code.
inline OutputSpec random_output(Random& random) {
  OutputSpec spec{static_cast<ElementType>(random.integer(0, 2)), 0.0f, {0.0f, 255.0f}, numerics::no_activation()};
  if (spec.type == ElementType::kInt8) spec.range = {-128.0f, 127.0f};
  if (random.integer(0, 3) == 0) spec.range = {spec.range.quant_min + 30.0f, spec.range.quant_max - 1.0f};
  spec.zero_point = static_cast<float>(
      random.integer(static_cast<int64_t>(spec.range.quant_min), static_cast<int64_t>(spec.range.quant_max)));
  const int64_t activation = random.integer(0, 3);
  if (activation == 1) {
    const float lo = random.uniform(-20.0f, 5.0f);
    spec.activation.kind = numerics::Activation::kClamp;
    spec.activation.clamp = {lo, lo + random.uniform(0.0f, 40.0f)};
  } else if (activation == 2) {
    spec.activation = {numerics::Activation::kHardswish, {0.0f, 0.0f}, 0.1f, 10.0f};
  }
  return spec;
}

inline int64_t element_size(ElementType type) { return type == ElementType::kFloat32 ? 4 : 1; }

inline Operand random_operand(const std::vector<uint8_t>& codes, Random& random) {
  const ElementType type = random_code_type(random);
  return {codes.data(), type, random_zero_point(type, random)};
}

}  // namespace torchquant::test
