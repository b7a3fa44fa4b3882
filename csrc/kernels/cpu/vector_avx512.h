// Sixteen fp32 lanes in one AVX-512 register (F + BW + DQ + VL). Included only by *_avx512.cpp; vector_avx2.h has the
// same members, so kernels are written once over either.
#pragma once

// GCC 12 calls the deliberately undefined operands inside its own intrinsics uninitialized (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <cstdint>

#include "kernels/cpu/lanes.h"
#include "numerics/float16.h"

namespace torchquant::kernels::avx512 {

using numerics::BFloat16;
using numerics::Float16;

struct Vector {
  using Float = __m512;
  using Mask = __mmask16;
  using Int = __m512i;              // sixteen int32
  using Codes = __m128i;            // sixteen bytes
  static constexpr int kBatch = 8;  // steps of map_vectors(): their results fill a quarter of the registers
  // weight_only_vector.h: rows that share a decoded vector, and sums that they keep
  static constexpr int kDecodedRows = 8, kSums = 8;
  // attention_vector.h: rows and vectors of one tile of sums
  static constexpr int kTileRows = 8, kTileVectors = 2;

  TQ_HOST_DEVICE static Mask mask(AllLanes) { return 0xffff; }
  TQ_HOST_DEVICE static Mask mask(FirstLanes lanes) { return static_cast<Mask>((1u << lanes.count) - 1u); }

  // ---- memory ----
  TQ_HOST_DEVICE static Float load(const float* p, AllLanes) { return _mm512_loadu_ps(p); }
  TQ_HOST_DEVICE static Float load(const float* p, FirstLanes lanes) { return _mm512_maskz_loadu_ps(mask(lanes), p); }
  TQ_HOST_DEVICE static void store(float* p, Float v, AllLanes) { _mm512_storeu_ps(p, v); }
  TQ_HOST_DEVICE static void store(float* p, Float v, FirstLanes lanes) { _mm512_mask_storeu_ps(p, mask(lanes), v); }

  TQ_HOST_DEVICE static __m256i load16(const void* p, AllLanes) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  TQ_HOST_DEVICE static __m256i load16(const void* p, FirstLanes lanes) {
    return _mm256_maskz_loadu_epi16(mask(lanes), p);
  }
  TQ_HOST_DEVICE static void store16(void* p, __m256i v, AllLanes) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
  TQ_HOST_DEVICE static void store16(void* p, __m256i v, FirstLanes lanes) {
    _mm256_mask_storeu_epi16(p, mask(lanes), v);
  }

  template <typename Lanes>
  TQ_HOST_DEVICE static Float load(const Float16* p, Lanes lanes) {
    return _mm512_cvtph_ps(load16(p, lanes));
  }
  template <typename Lanes>
  TQ_HOST_DEVICE static void store(Float16* p, Float v, Lanes lanes) {
    store16(p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), lanes);
  }

  template <typename Lanes>
  TQ_HOST_DEVICE static Float load(const BFloat16* p, Lanes lanes) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load16(p, lanes)), 16));
  }
  // numerics::from_float<BFloat16>, lane by lane. VCVTNEPS2BF16 would flush subnormals.
  template <typename Lanes>
  TQ_HOST_DEVICE static void store(BFloat16* p, Float v, Lanes lanes) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x00400000));
    const __m512i kept = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), quiet);
    store16(p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)), lanes);
  }

  TQ_HOST_DEVICE static Float load_codes(const int8_t* p, AllLanes) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  TQ_HOST_DEVICE static Float load_codes(const int8_t* p, FirstLanes lanes) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask(lanes), p)));
  }
  TQ_HOST_DEVICE static Float load_codes(const uint8_t* p, AllLanes) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  TQ_HOST_DEVICE static Float load_codes(const uint8_t* p, FirstLanes lanes) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask(lanes), p)));
  }
  // Stores the low byte of each code, which is the int8 or the uint8.
  TQ_HOST_DEVICE static void store_codes(uint8_t* p, Float v, AllLanes) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
  }
  TQ_HOST_DEVICE static void store_codes(uint8_t* p, Float v, FirstLanes lanes) {
    _mm512_mask_cvtepi32_storeu_epi8(p, mask(lanes), _mm512_cvtps_epi32(v));
  }

  TQ_HOST_DEVICE static Codes load_bytes(const uint8_t* p, AllLanes) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  TQ_HOST_DEVICE static Codes load_bytes(const uint8_t* p, FirstLanes lanes) {
    return _mm_maskz_loadu_epi8(mask(lanes), p);
  }
  TQ_HOST_DEVICE static void store_bytes(uint8_t* p, Codes v, AllLanes) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), v);
  }
  TQ_HOST_DEVICE static void store_bytes(uint8_t* p, Codes v, FirstLanes lanes) {
    _mm_mask_storeu_epi8(p, mask(lanes), v);
  }
  // uint8 codes as values, and the low bytes of whole-numbered values.
  TQ_HOST_DEVICE static Int widen(Codes codes) { return _mm512_cvtepu8_epi32(codes); }
  TQ_HOST_DEVICE static Codes narrow(Float v) { return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)); }

  TQ_HOST_DEVICE static Int widen_signed(Codes codes) { return _mm512_cvtepi8_epi32(codes); }
  // The 4-bit codes of 16 words as values, by look-up in a table of all 16: a permutation ignores the upper bits of its
  // index.
  struct Nibbles {
    TQ_HOST_DEVICE explicit Nibbles(int32_t quant_min) {
      float values[kLanes];
      for (int i = 0; i < kLanes; ++i) values[i] = static_cast<float>(i + quant_min);
      table = _mm512_loadu_ps(values);
    }
    // body(i, nibble i), i = 0 being the lowest.
    template <typename Body>
    TQ_HOST_DEVICE void operator()(Int words, Body&& body) const {
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) body(i, _mm512_permutexvar_ps(_mm512_srli_epi32(words, 4 * i), table));
    }
    Float table;
  };
  // The empty statement keeps the words in a register: GCC would load them anew for every shift of them.
  TQ_HOST_DEVICE static Int load_words(const uint8_t* p) {
    Int words = _mm512_loadu_si512(p);
    asm("" : "+v"(words));
    return words;
  }

  // sums[i] += lane i
  TQ_HOST_DEVICE static void add_to(double* sums, Float v, AllLanes) {
    _mm512_storeu_pd(sums, _mm512_add_pd(_mm512_loadu_pd(sums), _mm512_cvtps_pd(_mm512_castps512_ps256(v))));
    _mm512_storeu_pd(sums + 8, _mm512_add_pd(_mm512_loadu_pd(sums + 8), _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1))));
  }
  TQ_HOST_DEVICE static void add_to(double* sums, Float v, FirstLanes lanes) {
    float values[kLanes];
    _mm512_storeu_ps(values, v);
    for (int i = 0; i < lanes.count; ++i) sums[i] += static_cast<double>(values[i]);
  }

  // ---- arithmetic ----
  TQ_HOST_DEVICE static Float set(float v) { return _mm512_set1_ps(v); }
  TQ_HOST_DEVICE static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  TQ_HOST_DEVICE static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  TQ_HOST_DEVICE static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  TQ_HOST_DEVICE static Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
  TQ_HOST_DEVICE static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  TQ_HOST_DEVICE static Float negate(Float v) { return _mm512_xor_ps(v, _mm512_set1_ps(-0.0f)); }
  // a < b ? a : b and a > b ? a : b, so b where either is NaN or both are zero.
  TQ_HOST_DEVICE static Float min(Float a, Float b) { return _mm512_min_ps(a, b); }
  TQ_HOST_DEVICE static Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
  TQ_HOST_DEVICE static Float round_half_even(Float v) {
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }

  TQ_HOST_DEVICE static Int set_int(int32_t v) { return _mm512_set1_epi32(v); }
  TQ_HOST_DEVICE static Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
  TQ_HOST_DEVICE static Int sub(Int a, Int b) { return _mm512_sub_epi32(a, b); }
  TQ_HOST_DEVICE static Float to_float(Int v) { return _mm512_cvtepi32_ps(v); }

  // ---- masks ----
  TQ_HOST_DEVICE static Mask between(Float v, Float lo, Float hi) {
    return _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(v, lo, _CMP_GE_OQ), v, hi, _CMP_LE_OQ);
  }
  TQ_HOST_DEVICE static Mask is_nan(Float v) { return _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q); }
  TQ_HOST_DEVICE static Mask is_finite(Float v) {
    return _mm512_cmp_ps_mask(_mm512_abs_ps(v), _mm512_set1_ps(__builtin_inff()), _CMP_LT_OQ);
  }
  TQ_HOST_DEVICE static Mask both(Mask a, Mask b) { return a & b; }
  TQ_HOST_DEVICE static int count(Mask m) { return __builtin_popcount(m); }
  // m ? a : b
  TQ_HOST_DEVICE static Float select(Mask m, Float a, Float b) { return _mm512_mask_mov_ps(b, m, a); }
};

}  // namespace torchquant::kernels::avx512
