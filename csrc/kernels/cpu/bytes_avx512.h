// Sixty-four bytes in one AVX-512 register. Included only by *_avx512.cpp; bytes_avx2.h has the same members, so
// kernels on bytes are written once over either.
#pragma once

#include "kernels/cpu/vector_avx512.h"

namespace torchquant::kernels::avx512 {

struct Bytes {
  using Vector = __m512i;
  static constexpr int64_t kWidth = 64;

  // Bytes [0, count) of a vector, 0 < count < kWidth; loads leave zero in the others and stores do not touch them.
  TQ_HOST_DEVICE static __mmask64 first(int64_t count) { return (uint64_t{1} << count) - 1; }

  TQ_HOST_DEVICE static Vector load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  TQ_HOST_DEVICE static Vector load(const uint8_t* p, int64_t count) {
    return _mm512_maskz_loadu_epi8(first(count), p);
  }
  TQ_HOST_DEVICE static void store(uint8_t* p, Vector v) { _mm512_storeu_si512(p, v); }
  TQ_HOST_DEVICE static void store(uint8_t* p, Vector v, int64_t count) { _mm512_mask_storeu_epi8(p, first(count), v); }
  TQ_HOST_DEVICE static Vector set(uint8_t v) { return _mm512_set1_epi8(static_cast<char>(v)); }
  TQ_HOST_DEVICE static Vector max(Vector a, Vector b, uint8_t) { return _mm512_max_epu8(a, b); }
  TQ_HOST_DEVICE static Vector max(Vector a, Vector b, int8_t) { return _mm512_max_epi8(a, b); }
  TQ_HOST_DEVICE static Vector bit_xor(Vector a, Vector b) { return _mm512_xor_si512(a, b); }
  TQ_HOST_DEVICE static Vector sub_saturated(Vector a, Vector b) { return _mm512_subs_epi8(a, b); }
  // The same sixteen bytes in every part, and byte i of each part replaced by byte index[i] % 16 of the same part of
  // `table`, or by 0 where the top bit of the index is set.
  TQ_HOST_DEVICE static Vector repeat(const uint8_t* sixteen) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(sixteen)));
  }
  TQ_HOST_DEVICE static Vector shuffle(Vector table, Vector index) { return _mm512_shuffle_epi8(table, index); }
};

}  // namespace torchquant::kernels::avx512
