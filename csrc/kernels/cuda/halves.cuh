// Codes and floats as the 16-bit pairs that the tensor cores multiply. Used by linear_weight_only.cuh and kv_cache.cu.
#pragma once

#include "kernels/cuda/device.cuh"
#include "numerics/float16.h"
#include "numerics/float8.h"

namespace torchquant::kernels::cuda {

// The 16-bit type that the tensor cores multiply for an input type. fp32 goes as the sum of three bf16, which holds all
// of its 24 bits.
template <typename T>
inline constexpr bool kAsBFloat16 = !std::is_same_v<T, __half>;
template <typename T>
inline constexpr int kParts = std::is_same_v<T, float> ? 3 : 1;

// A value in both halves of a word.
template <bool BFLOAT16>
__device__ __forceinline__ uint32_t twice(float value) {
  const auto half = from_float<std::conditional_t<BFLOAT16, __nv_bfloat16, __half>>(value);
  uint16_t bits;
  memcpy(&bits, &half, sizeof(bits));
  return bits | static_cast<uint32_t>(bits) << 16;
}

// Bytes minus a whole zero point, exactly. They become floats without a conversion: put into the lowest bits of a
// number whose unit they are, which is then subtracted together with the zero point.
template <bool BFLOAT16>
class BytesToHalves {
 public:
  __device__ explicit BytesToHalves(float zero_point) : minus_(twice<false>(-(1024.0f + zero_point))) {}

  // Bytes 2 * pair and the next of a word.
  __device__ __forceinline__ uint32_t pair(uint32_t word, int pair) const {
    return multiply_add_pair<false>(__byte_perm(word, 0x64646464u, pair == 0 ? 0x4140u : 0x4342u), 0x3c003c00u, minus_);
  }

 private:
  uint32_t minus_;
};

// bf16 has 8 bits: too few for an offset beside the code, so this goes through fp32, whose upper half is the bf16.
template <>
class BytesToHalves<true> {
 public:
  __device__ explicit BytesToHalves(float zero_point) : offset_(8388608.0f + zero_point) {}

  __device__ __forceinline__ uint32_t pair(uint32_t word, int pair) const {
    return pair_of(word, 2 * pair, word, 2 * pair + 1);
  }
  // One byte of each of two words.
  __device__ __forceinline__ uint32_t pair_of(uint32_t low, int low_byte, uint32_t high, int high_byte) const {
    return __byte_perm(numerics::float_to_bits(value(low, low_byte)), numerics::float_to_bits(value(high, high_byte)),
                       0x7632u);
  }

 private:
  __device__ __forceinline__ float value(uint32_t word, int byte) const {
    return numerics::bits_to_float(__byte_perm(word, 0x4b000000u, 0x7440u + static_cast<unsigned>(byte))) - offset_;
  }

  float offset_;
};

// fp8 codes as fp16 or bf16, exactly. Exponent and mantissa stand there in the same order, only wider: shifted to their
// place, a code is its value times a power of two, subnormals included, which a product takes out again. What is no
// number (0x7f, of e5m2 from 0x7c on) has become one by that, and gets its exponent back.
template <typename Format, bool BFLOAT16>
class Float8ToHalves {
 public:
  // Bytes 2 * pair and the next of a word.
  __device__ __forceinline__ uint32_t pair(uint32_t word, int pair) const {
    return from_upper_bytes(__byte_perm(word, word, pair == 0 ? 0x1000u : 0x3020u));
  }
  // One byte of each of two words.
  __device__ __forceinline__ uint32_t pair_of(uint32_t low, int low_byte, uint32_t high, int high_byte) const {
    return from_upper_bytes(__byte_perm(
        low, high, 0x4000u + 0x1000u * static_cast<unsigned>(high_byte) + 0x10u * static_cast<unsigned>(low_byte)));
  }

 private:
  static constexpr int kMantissaBits = BFLOAT16 ? 7 : 10;
  static constexpr int kBias = BFLOAT16 ? 127 : 15;
  static constexpr uint32_t kInEachHalf = 0x00010001u;

  // Codes in the upper bytes of both halves, anything in the lower ones.
  static __device__ __forceinline__ uint32_t from_upper_bytes(uint32_t codes) {
    if constexpr (kBias == Format::kBias) {  // e5m2 is the upper byte of fp16
      return codes & 0xff00ff00u;
    } else {
      constexpr uint32_t kPower = static_cast<uint32_t>(2 * kBias - Format::kBias) << kMantissaBits;
      constexpr uint32_t kSpecial = static_cast<uint32_t>(0x7f - Format::kLargestCode) << 8;
      constexpr uint32_t kMinusZero = 0x8000u * kInEachHalf;  // keeps the sign of a zero
      const uint32_t magnitude = codes & 0x7f007f00u;
      const uint32_t bits = (codes & 0x80008000u) | magnitude >> (8 + Format::kMantissaBits - kMantissaBits);
      const uint32_t value = multiply_add_pair<BFLOAT16>(bits, kPower * kInEachHalf, kMinusZero);
      const uint32_t special = (magnitude + kSpecial * kInEachHalf) & 0x80008000u;
      return value | (special - (special >> (15 - kMantissaBits)));  // the bits of the exponent
    }
  }
};

// The three bf16 whose sum is a pair of floats, in the halves of a word each. An infinity or NaN is its first alone.
__device__ __forceinline__ void split_pair(float low, float high, uint32_t (&parts)[3]) {
  const float values[2] = {low, high};
  parts[0] = parts[1] = parts[2] = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float rest = values[i];
    const uint32_t bits = numerics::float_to_bits(rest);
    const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
    // Cutting bits off a NaN may leave an infinity.
    const uint32_t quiet = (bits & 0x7fffffffu) > 0x7f800000u ? 0x00400000u : 0u;
#pragma unroll
    for (uint32_t& part : parts) {
      const uint32_t upper = (numerics::float_to_bits(rest) | quiet) & 0xffff0000u;
      part |= i == 0 ? upper >> 16 : upper;
      rest = finite ? rest - numerics::bits_to_float(upper) : 0.0f;
      if (!finite) break;
    }
  }
}

}  // namespace torchquant::kernels::cuda
