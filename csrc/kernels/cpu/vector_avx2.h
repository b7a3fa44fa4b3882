// Sixteen fp32 lanes in two AVX2 registers (with F16C). Included only by *_avx2.cpp; vector_avx512.h has the same
// members, so kernels are written once over either, and sums over lanes run in the same order.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/cpu/lanes.h"
#include "numerics/float16.h"

namespace torchquant::kernels::avx2 {

using numerics::BFloat16;
using numerics::Float16;

struct Vector {
  struct Float {
    __m256 lo, hi;
  };
  struct Mask {  // all bits of a lane set, or none
    __m256 lo, hi;
  };
  struct Int {  // sixteen int32
    __m256i lo, hi;
  };
  using Codes = __m128i;            // sixteen bytes
  static constexpr int kBatch = 4;  // steps of map_vectors(): their results fill half of the registers
  // weight_only_vector.h: rows that share a decoded vector, and sums that they keep
  static constexpr int kDecodedRows = 2, kSums = 2;
  // attention_vector.h: rows and vectors of one tile of sums
  static constexpr int kTileRows = 6, kTileVectors = 1;

  TQ_HOST_DEVICE static Mask mask(AllLanes) {
    const __m256 all = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
    return {all, all};
  }
  TQ_HOST_DEVICE static Mask mask(FirstLanes lanes) {
    const __m256i count = _mm256_set1_epi32(lanes.count);
    const __m256i lo = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i hi = _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15);
    return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(count, lo)), _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, hi))};
  }

  // ---- memory ----
  TQ_HOST_DEVICE static Float load(const float* p, AllLanes) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  TQ_HOST_DEVICE static void store(float* p, Float v, AllLanes) {
    _mm256_storeu_ps(p, v.lo);
    _mm256_storeu_ps(p + 8, v.hi);
  }

  TQ_HOST_DEVICE static Float load(const Float16* p, AllLanes) {
    const __m128i* halves = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
  }
  TQ_HOST_DEVICE static void store(Float16* p, Float v, AllLanes) {
    __m128i* halves = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(halves, _mm256_cvtps_ph(v.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128(halves + 1, _mm256_cvtps_ph(v.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  TQ_HOST_DEVICE static __m256 widen_bfloat16(__m128i bits) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  TQ_HOST_DEVICE static Float load(const BFloat16* p, AllLanes) {
    const __m128i* halves = reinterpret_cast<const __m128i*>(p);
    return {widen_bfloat16(_mm_loadu_si128(halves)), widen_bfloat16(_mm_loadu_si128(halves + 1))};
  }
  // numerics::from_float<BFloat16>, lane by lane; the result fills the low half of each lane.
  TQ_HOST_DEVICE static __m256i narrow_bfloat16(__m256 v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  }
  TQ_HOST_DEVICE static void store(BFloat16* p, Float v, AllLanes) {
    const __m256i packed = _mm256_packus_epi32(narrow_bfloat16(v.lo), narrow_bfloat16(v.hi));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
  }

  TQ_HOST_DEVICE static Float load_codes(const int8_t* p, AllLanes) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
  }
  TQ_HOST_DEVICE static Float load_codes(const uint8_t* p, AllLanes) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)))};
  }
  TQ_HOST_DEVICE static Codes load_bytes(const uint8_t* p, AllLanes) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  TQ_HOST_DEVICE static void store_bytes(uint8_t* p, Codes v, AllLanes) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), v);
  }
  // uint8 codes as values, and the low bytes of whole-numbered values.
  TQ_HOST_DEVICE static Int widen(Codes codes) {
    return {_mm256_cvtepu8_epi32(codes), _mm256_cvtepu8_epi32(_mm_srli_si128(codes, 8))};
  }
  TQ_HOST_DEVICE static Codes narrow(Float v) {
    const __m256i byte = _mm256_set1_epi32(0xff);
    const __m256i lo = _mm256_and_si256(_mm256_cvtps_epi32(v.lo), byte);
    const __m256i hi = _mm256_and_si256(_mm256_cvtps_epi32(v.hi), byte);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(lo, hi), 0xd8);
    return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  }
  // Stores the low byte of each code, which is the int8 or the uint8.
  TQ_HOST_DEVICE static void store_codes(uint8_t* p, Float v, AllLanes lanes) { store_bytes(p, narrow(v), lanes); }

  // AVX2 has no masked access to 8 and 16 bit elements, so the end of a run goes through a full vector on the stack.
  template <typename T>
  TQ_HOST_DEVICE static Float load(const T* p, FirstLanes lanes) {
    T all[kLanes] = {};
    memcpy(all, p, lanes.count * sizeof(T));
    return load(all, AllLanes{});
  }
  template <typename T>
  TQ_HOST_DEVICE static void store(T* p, Float v, FirstLanes lanes) {
    T all[kLanes];
    store(all, v, AllLanes{});
    memcpy(p, all, lanes.count * sizeof(T));
  }
  template <typename T>
  TQ_HOST_DEVICE static Float load_codes(const T* p, FirstLanes lanes) {
    T all[kLanes] = {};
    memcpy(all, p, lanes.count);
    return load_codes(all, AllLanes{});
  }
  TQ_HOST_DEVICE static Codes load_bytes(const uint8_t* p, FirstLanes lanes) {
    uint8_t all[kLanes] = {};
    memcpy(all, p, lanes.count);
    return load_bytes(all, AllLanes{});
  }
  TQ_HOST_DEVICE static void store_bytes(uint8_t* p, Codes v, FirstLanes lanes) {
    uint8_t all[kLanes];
    store_bytes(all, v, AllLanes{});
    memcpy(p, all, lanes.count);
  }
  TQ_HOST_DEVICE static void store_codes(uint8_t* p, Float v, FirstLanes lanes) { store_bytes(p, narrow(v), lanes); }

  TQ_HOST_DEVICE static Int widen_signed(Codes codes) {
    return {_mm256_cvtepi8_epi32(codes), _mm256_cvtepi8_epi32(_mm_srli_si128(codes, 8))};
  }
  // The 4-bit codes of 16 words as values.
  struct Nibbles {
    TQ_HOST_DEVICE explicit Nibbles(int32_t quant_min)
        : smallest(_mm256_set1_epi32(quant_min)), mask(_mm256_set1_epi32(15)) {}
    TQ_HOST_DEVICE __m256 value(__m256i words, int i) const {
      const __m256i nibble = _mm256_and_si256(_mm256_srli_epi32(words, 4 * i), mask);
      return _mm256_cvtepi32_ps(_mm256_add_epi32(nibble, smallest));
    }
    // body(i, nibble i), i = 0 being the lowest.
    template <typename Body>
    TQ_HOST_DEVICE void operator()(Int words, Body&& body) const {
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) body(i, Float{value(words.lo, i), value(words.hi, i)});
    }
    __m256i smallest, mask;
  };
  TQ_HOST_DEVICE static Int load_words(const uint8_t* p) {
    const __m256i* halves = reinterpret_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
  }

  TQ_HOST_DEVICE static void add_to_4(double* sums, __m128 v) {
    _mm256_storeu_pd(sums, _mm256_add_pd(_mm256_loadu_pd(sums), _mm256_cvtps_pd(v)));
  }
  // sums[i] += lane i
  TQ_HOST_DEVICE static void add_to(double* sums, Float v, AllLanes) {
    add_to_4(sums, _mm256_castps256_ps128(v.lo));
    add_to_4(sums + 4, _mm256_extractf128_ps(v.lo, 1));
    add_to_4(sums + 8, _mm256_castps256_ps128(v.hi));
    add_to_4(sums + 12, _mm256_extractf128_ps(v.hi, 1));
  }
  TQ_HOST_DEVICE static void add_to(double* sums, Float v, FirstLanes lanes) {
    float values[kLanes];
    store(values, v, AllLanes{});
    for (int i = 0; i < lanes.count; ++i) sums[i] += static_cast<double>(values[i]);
  }

  // ---- arithmetic ----
  TQ_HOST_DEVICE static Float set(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
  TQ_HOST_DEVICE static Float add(Float a, Float b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
  TQ_HOST_DEVICE static Float sub(Float a, Float b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
  TQ_HOST_DEVICE static Float mul(Float a, Float b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
  TQ_HOST_DEVICE static Float div(Float a, Float b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
  TQ_HOST_DEVICE static Float fma(Float a, Float b, Float c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
  }
  TQ_HOST_DEVICE static Float negate(Float v) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_xor_ps(v.lo, sign), _mm256_xor_ps(v.hi, sign)};
  }
  // a < b ? a : b and a > b ? a : b, so b where either is NaN or both are zero.
  TQ_HOST_DEVICE static Float min(Float a, Float b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
  TQ_HOST_DEVICE static Float max(Float a, Float b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
  TQ_HOST_DEVICE static Float round_half_even(Float v) {
    return {_mm256_round_ps(v.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
            _mm256_round_ps(v.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }

  TQ_HOST_DEVICE static Int set_int(int32_t v) { return {_mm256_set1_epi32(v), _mm256_set1_epi32(v)}; }
  TQ_HOST_DEVICE static Int add(Int a, Int b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
  TQ_HOST_DEVICE static Int sub(Int a, Int b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
  TQ_HOST_DEVICE static Float to_float(Int v) { return {_mm256_cvtepi32_ps(v.lo), _mm256_cvtepi32_ps(v.hi)}; }

  // ---- masks ----
  TQ_HOST_DEVICE static __m256 between(__m256 v, __m256 lo, __m256 hi) {
    return _mm256_and_ps(_mm256_cmp_ps(v, lo, _CMP_GE_OQ), _mm256_cmp_ps(v, hi, _CMP_LE_OQ));
  }
  TQ_HOST_DEVICE static Mask between(Float v, Float lo, Float hi) {
    return {between(v.lo, lo.lo, hi.lo), between(v.hi, lo.hi, hi.hi)};
  }
  TQ_HOST_DEVICE static Mask is_nan(Float v) {
    return {_mm256_cmp_ps(v.lo, v.lo, _CMP_UNORD_Q), _mm256_cmp_ps(v.hi, v.hi, _CMP_UNORD_Q)};
  }
  TQ_HOST_DEVICE static __m256 is_finite(__m256 v) {
    const __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v);
    return _mm256_cmp_ps(magnitude, _mm256_set1_ps(__builtin_inff()), _CMP_LT_OQ);
  }
  TQ_HOST_DEVICE static Mask is_finite(Float v) { return {is_finite(v.lo), is_finite(v.hi)}; }
  TQ_HOST_DEVICE static Mask both(Mask a, Mask b) { return {_mm256_and_ps(a.lo, b.lo), _mm256_and_ps(a.hi, b.hi)}; }
  TQ_HOST_DEVICE static int count(Mask m) {
    return __builtin_popcount(static_cast<unsigned>(_mm256_movemask_ps(m.lo) | _mm256_movemask_ps(m.hi) << 8));
  }
  // m ? a : b
  TQ_HOST_DEVICE static Float select(Mask m, Float a, Float b) {
    return {_mm256_blendv_ps(b.lo, a.lo, m.lo), _mm256_blendv_ps(b.hi, a.hi, m.hi)};
  }
};

}  // namespace torchquant::kernels::avx2
