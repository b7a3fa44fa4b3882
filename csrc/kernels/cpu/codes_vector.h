// From codes to values and back on 16 lanes: what the integer kernels for vector instruction sets share. V is the
// Vector of vector_avx2.h or vector_avx512.h. Included by quantized_*_vector.h.
//
// int8 codes are read with their sign bit flipped, which makes them uint8 codes whose zero point is 128 higher: one
// loop serves both types, and differences of code and zero point stay what they are.
#pragma once

#include <cstdint>

#include "kernels/cpu/lanes.h"
#include "kernels/quantized_types.h"

namespace torchquant::kernels {

TQ_HOST_DEVICE uint8_t sign_flip(ElementType type) { return type == ElementType::kInt8 ? 0x80 : 0; }

// Reads codes minus their zero point.
template <typename V>
struct CentredCodes {
  using Float = typename V::Float;

  TQ_HOST_DEVICE CentredCodes(ElementType type, int32_t zero_point)
      : flip(_mm_set1_epi8(static_cast<char>(sign_flip(type)))),
        offset(zero_point + sign_flip(type)),
        zero(V::set(static_cast<float>(offset))) {}

  // The code plus 128 if it is an int8, so minus `offset` the centred code.
  template <typename Lanes>
  TQ_HOST_DEVICE typename V::Int integers(const uint8_t* codes, Lanes lanes) const {
    return V::widen(_mm_xor_si128(V::load_bytes(codes, lanes), flip));
  }
  template <typename Lanes>
  TQ_HOST_DEVICE Float values(const uint8_t* codes, Lanes lanes) const {
    return V::sub(V::to_float(integers(codes, lanes)), zero);
  }

  __m128i flip;
  int32_t offset;
  Float zero;
};

// Whether the two stores below know the activation; other kernels evaluate it one value at a time.
TQ_HOST_DEVICE bool is_clamp_or_none(const OutputSpec& spec) {
  return spec.activation.kind == numerics::Activation::kNone || spec.activation.kind == numerics::Activation::kClamp;
}

// Stores numerics::output_code. It grows with v, so a clamp of v is a clamp of the code: its bounds become those of the
// range, once.
template <typename V>
struct CodeStore {
  using Float = typename V::Float;

  TQ_HOST_DEVICE CodeStore(const OutputSpec& spec, void* data)
      : out(static_cast<uint8_t*>(data)),
        zero_point(V::set(spec.zero_point)),
        lowest(V::set(bound(spec, spec.activation.clamp.quant_min, spec.range.quant_min))),
        highest(V::set(bound(spec, spec.activation.clamp.quant_max, spec.range.quant_max))) {}

  template <typename Lanes>
  TQ_HOST_DEVICE void operator()(int64_t i, Float v, Lanes lanes) const {
    const Float code = V::add(V::round_half_even(v), zero_point);
    const Float clamped = V::min(highest, V::max(lowest, code));
    V::store_codes(out + i, V::select(V::is_nan(code), zero_point, clamped), lanes);
  }

  TQ_HOST_DEVICE static float bound(const OutputSpec& spec, float clamp, float limit) {
    if (spec.activation.kind == numerics::Activation::kNone) return limit;
    return numerics::output_code(clamp, spec.zero_point, spec.range);
  }

  uint8_t* out;
  Float zero_point, lowest, highest;
};

// Stores the activated value itself.
template <typename V>
struct FloatStore {
  using Float = typename V::Float;

  TQ_HOST_DEVICE FloatStore(const OutputSpec& spec, void* data) : out(static_cast<float*>(data)) {
    const bool none = spec.activation.kind == numerics::Activation::kNone;
    lowest = V::set(none ? -__builtin_inff() : spec.activation.clamp.quant_min);
    highest = V::set(none ? __builtin_inff() : spec.activation.clamp.quant_max);
  }

  template <typename Lanes>
  TQ_HOST_DEVICE void operator()(int64_t i, Float v, Lanes lanes) const {
    V::store(out + i, V::min(highest, V::max(lowest, v)), lanes);  // NaN stays NaN: see V::min
  }

  float* out;
  Float lowest, highest;
};

// body(store) with the one of the two stores that the output needs.
template <typename V, typename Body>
TQ_HOST_DEVICE void with_store(const OutputSpec& spec, void* out, Body&& body) {
  if (spec.type == ElementType::kFloat32) {
    body(FloatStore<V>(spec, out));
  } else {
    body(CodeStore<V>(spec, out));
  }
}

}  // namespace torchquant::kernels
