// Thirty-two bytes in one AVX2 register. Included only by *_avx2.cpp; bytes_avx512.h has the same members, so kernels
// on bytes are written once over either.
#pragma once

#include "kernels/cpu/vector_avx2.h"

namespace torchquant::kernels::avx2 {

struct Bytes {
  using Vector = __m256i;
  static constexpr int64_t kWidth = 32;

  TQ_HOST_DEVICE static Vector load(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  TQ_HOST_DEVICE static void store(uint8_t* p, Vector v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  // Bytes [0, count) of a vector, 0 < count < kWidth; loads leave zero in the others and stores do not touch them.
  TQ_HOST_DEVICE static Vector load(const uint8_t* p, int64_t count) {
    uint8_t all[kWidth] = {};
    memcpy(all, p, count);
    return load(all);
  }
  TQ_HOST_DEVICE static void store(uint8_t* p, Vector v, int64_t count) {
    uint8_t all[kWidth];
    store(all, v);
    memcpy(p, all, count);
  }
  TQ_HOST_DEVICE static Vector set(uint8_t v) { return _mm256_set1_epi8(static_cast<char>(v)); }
  TQ_HOST_DEVICE static Vector max(Vector a, Vector b, uint8_t) { return _mm256_max_epu8(a, b); }
  TQ_HOST_DEVICE static Vector max(Vector a, Vector b, int8_t) { return _mm256_max_epi8(a, b); }
  TQ_HOST_DEVICE static Vector bit_xor(Vector a, Vector b) { return _mm256_xor_si256(a, b); }
  TQ_HOST_DEVICE static Vector sub_saturated(Vector a, Vector b) { return _mm256_subs_epi8(a, b); }
  // The same sixteen bytes in every part, and byte i of each part replaced by byte index[i] % 16 of the same part of
  // `table`, or by 0 where the top bit of the index is set.
  TQ_HOST_DEVICE static Vector repeat(const uint8_t* sixteen) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(sixteen)));
  }
  TQ_HOST_DEVICE static Vector shuffle(Vector table, Vector index) { return _mm256_shuffle_epi8(table, index); }
};

}  // namespace torchquant::kernels::avx2
