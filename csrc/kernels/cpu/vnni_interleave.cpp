// Packs panels for the AVX512-VNNI tile kernel; see vnni_interleave.h. Compiled without instruction-set flags: SSE2 is
// part of x86-64.
#include "kernels/cpu/vnni_interleave.h"

#if defined(__x86_64__)

#include <emmintrin.h>

#include <cstring>

#include "kernels/cpu/vnni_tile.h"

namespace torchquant::kernels::avx512_vnni {
namespace {

constexpr int64_t kVector = 16;  // bytes

__m128i load(const uint8_t* p, __m128i flip) {
  return _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), flip);
}
void store(int8_t* p, __m128i v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), v); }

void interleave_codes(const PanelSource& source, int64_t depth_begin, int64_t column_begin, int64_t column_end,
                      int8_t* panel) {
  for (int64_t c = column_begin; c < column_end; ++c) {
    const uint8_t* column = source.codes + c * source.column_stride;
    for (int64_t k = depth_begin; k < source.depth; ++k) {
      panel[k / 4 * kStepBytes + 4 * c + k % 4] = static_cast<int8_t>(column[k * source.row_stride] ^ source.flip);
    }
  }
}

// Columns that are dense along the depth: 4 of them and 16 of the depth at a time, a transpose of 4 x 4 words.
void interleave_columns(const PanelSource& source, int8_t* panel) {
  const __m128i flip = _mm_set1_epi8(static_cast<char>(source.flip));
  const int64_t step = source.column_stride;
  const int64_t whole_depth = source.depth / kVector * kVector;
  const int64_t whole_columns = source.columns / 4 * 4;
  for (int64_t c = 0; c < whole_columns; c += 4) {
    for (int64_t k = 0; k < whole_depth; k += kVector) {
      const uint8_t* from = source.codes + c * step + k;
      const __m128i a = load(from, flip), b = load(from + step, flip);
      const __m128i d = load(from + 2 * step, flip), e = load(from + 3 * step, flip);
      const __m128i ab_low = _mm_unpacklo_epi32(a, b), ab_high = _mm_unpackhi_epi32(a, b);
      const __m128i de_low = _mm_unpacklo_epi32(d, e), de_high = _mm_unpackhi_epi32(d, e);
      int8_t* to = panel + k / 4 * kStepBytes + 4 * c;
      store(to, _mm_unpacklo_epi64(ab_low, de_low));
      store(to + kStepBytes, _mm_unpackhi_epi64(ab_low, de_low));
      store(to + 2 * kStepBytes, _mm_unpacklo_epi64(ab_high, de_high));
      store(to + 3 * kStepBytes, _mm_unpackhi_epi64(ab_high, de_high));
    }
  }
  interleave_codes(source, whole_depth, 0, whole_columns, panel);
  interleave_codes(source, 0, whole_columns, source.columns, panel);
}

// Rows that are dense along the columns: 16 of them and 4 of the depth at a time.
void interleave_rows(const PanelSource& source, int8_t* panel) {
  const __m128i flip = _mm_set1_epi8(static_cast<char>(source.flip));
  const int64_t step = source.row_stride;
  const int64_t whole_depth = source.depth / 4 * 4;
  const int64_t whole_columns = source.columns / kVector * kVector;
  for (int64_t k = 0; k < whole_depth; k += 4) {
    for (int64_t c = 0; c < whole_columns; c += kVector) {
      const uint8_t* from = source.codes + k * step + c;
      const __m128i a = load(from, flip), b = load(from + step, flip);
      const __m128i d = load(from + 2 * step, flip), e = load(from + 3 * step, flip);
      const __m128i ab_low = _mm_unpacklo_epi8(a, b), ab_high = _mm_unpackhi_epi8(a, b);
      const __m128i de_low = _mm_unpacklo_epi8(d, e), de_high = _mm_unpackhi_epi8(d, e);
      int8_t* to = panel + k / 4 * kStepBytes + 4 * c;
      store(to, _mm_unpacklo_epi16(ab_low, de_low));
      store(to + 16, _mm_unpackhi_epi16(ab_low, de_low));
      store(to + 32, _mm_unpacklo_epi16(ab_high, de_high));
      store(to + 48, _mm_unpackhi_epi16(ab_high, de_high));
    }
  }
  interleave_codes(source, whole_depth, 0, whole_columns, panel);
  interleave_codes(source, 0, whole_columns, source.columns, panel);
}

}  // namespace

void interleave_panel(const PanelSource& source, int8_t* panel) {
  const int64_t steps = (source.depth + 3) / 4;
  if (source.columns < kTileChannels || source.depth % 4 != 0) std::memset(panel, 0, steps * kStepBytes);
  if (source.row_stride == 1) return interleave_columns(source, panel);
  interleave_rows(source, panel);
}

int32_t sum_codes(const uint8_t* codes, int64_t n, uint8_t flip) {
  const __m128i flips = _mm_set1_epi8(static_cast<char>(flip));
  __m128i sums = _mm_setzero_si128();
  int64_t i = 0;
  for (; i + kVector <= n; i += kVector) {
    sums = _mm_add_epi64(sums, _mm_sad_epu8(load(codes + i, flips), _mm_setzero_si128()));
  }
  int32_t sum = _mm_cvtsi128_si32(sums) + _mm_cvtsi128_si32(_mm_unpackhi_epi64(sums, sums));
  for (; i < n; ++i) sum += codes[i] ^ flip;
  return sum;
}

}  // namespace torchquant::kernels::avx512_vnni

#endif  // defined(__x86_64__)
