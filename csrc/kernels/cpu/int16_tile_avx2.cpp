// The kernels of the AVX2 convolution engine. Called through int16_tile.h.
#include <immintrin.h>

#include <cstring>

#include "kernels/cpu/int16_tile.h"
#include "numerics/macros.h"

namespace torchquant::kernels::avx2 {
namespace {

template <bool kSigned>
TQ_HOST_DEVICE __m256i widen16(__m128i codes) {
  return kSigned ? _mm256_cvtepi8_epi16(codes) : _mm256_cvtepu8_epi16(codes);
}

// Sixteen codes, fewer where fewer may be read; the rest are 0.
TQ_HOST_DEVICE __m128i load_codes(const uint8_t* p, int64_t n) {
  if (n >= 16) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  alignas(16) uint8_t codes[16] = {};
  memcpy(codes, p, n);
  return _mm_load_si128(reinterpret_cast<const __m128i*>(codes));
}

template <bool kSigned>
TQ_HOST_DEVICE void widen_codes(const uint8_t* x, int64_t n, int32_t zero_point, int16_t* target) {
  const __m256i zero = _mm256_set1_epi16(static_cast<int16_t>(zero_point));
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m256i v = widen16<kSigned>(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + i), _mm256_sub_epi16(v, zero));
  }
  for (; i < n; ++i) {
    const int32_t code = kSigned ? static_cast<int8_t>(x[i]) : x[i];
    target[i] = static_cast<int16_t>(code - zero_point);
  }
}

template <int kPixels>
__attribute__((noinline)) void compute_pixels(const Int16TileArgs& args) {
  __m256i acc[kPixels][2];
#pragma GCC unroll 6
  for (int p = 0; p < kPixels; ++p) acc[p][0] = acc[p][1] = _mm256_setzero_si256();
  const int16_t* weight = args.weight;
  const int16_t* x = args.x;
  for (int64_t pair = 0; pair < args.pairs; ++pair) {
    const __m256i w0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(weight));
    const __m256i w1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(weight + 16));
#pragma GCC unroll 6
    for (int p = 0; p < kPixels; ++p) {
      int32_t two;
      memcpy(&two, x + p * args.x_step, sizeof(two));
      const __m256i v = _mm256_set1_epi32(two);
      acc[p][0] = _mm256_add_epi32(acc[p][0], _mm256_madd_epi16(v, w0));
      acc[p][1] = _mm256_add_epi32(acc[p][1], _mm256_madd_epi16(v, w1));
    }
    weight += 32;
    x += 2;
  }
#pragma GCC unroll 6
  for (int p = 0; p < kPixels; ++p) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(args.accumulators + p * 32), acc[p][0]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(args.accumulators + p * 32 + 8), acc[p][1]);
  }
}

template <bool kSigned>
TQ_HOST_DEVICE void depthwise(const Int16DepthwiseArgs& args) {
  const auto* x = static_cast<const uint8_t*>(args.x);
  const __m256i zero = _mm256_set1_epi16(static_cast<int16_t>(args.zero_point));
  __m256i lo = _mm256_setzero_si256();
  __m256i hi = _mm256_setzero_si256();
  for (int64_t pair = 0; pair < args.pairs; ++pair) {
    const __m256i a = widen16<kSigned>(load_codes(x + args.offsets[2 * pair], args.channels));
    const __m256i b = widen16<kSigned>(load_codes(x + args.offsets[2 * pair + 1], args.channels));
    const __m256i centred_a = _mm256_sub_epi16(a, zero);
    const __m256i centred_b = _mm256_sub_epi16(b, zero);
    const auto* weight = reinterpret_cast<const __m256i*>(args.weight + 32 * pair);
    lo =
        _mm256_add_epi32(lo, _mm256_madd_epi16(_mm256_unpacklo_epi16(centred_a, centred_b), _mm256_load_si256(weight)));
    hi = _mm256_add_epi32(
        hi, _mm256_madd_epi16(_mm256_unpackhi_epi16(centred_a, centred_b), _mm256_load_si256(weight + 1)));
  }
  auto* out = reinterpret_cast<__m256i*>(args.accumulators);
  _mm256_storeu_si256(out, _mm256_permute2x128_si256(lo, hi, 0x20));
  _mm256_storeu_si256(out + 1, _mm256_permute2x128_si256(lo, hi, 0x31));
}

}  // namespace

void widen(const void* x, ElementType type, int64_t n, int32_t zero_point, int16_t* target) {
  const auto* codes = static_cast<const uint8_t*>(x);
  if (type == ElementType::kInt8) return widen_codes<true>(codes, n, zero_point, target);
  widen_codes<false>(codes, n, zero_point, target);
}

void compute_tile(const Int16TileArgs& args) {
  switch (args.pixels) {
    case 1:
      return compute_pixels<1>(args);
    case 2:
      return compute_pixels<2>(args);
    case 3:
      return compute_pixels<3>(args);
    case 4:
      return compute_pixels<4>(args);
    case 5:
      return compute_pixels<5>(args);
    default:
      return compute_pixels<6>(args);
  }
}

void compute_depthwise(const Int16DepthwiseArgs& args) {
  if (args.type == ElementType::kInt8) return depthwise<true>(args);
  depthwise<false>(args);
}

}  // namespace torchquant::kernels::avx2
