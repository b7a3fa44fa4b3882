// The depthwise kernels of the AVX512-VNNI convolution engine. Called through vnni_depthwise.h.
// GCC 12 calls the deliberately undefined operands inside its own intrinsics uninitialized (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "kernels/cpu/vnni_depthwise.h"
#include "numerics/macros.h"

namespace torchquant::kernels::avx512_vnni {
namespace {

// One instruction, its weights from memory. GCC 12's intrinsic copies the accumulator.
struct Bytes64 {
  int8_t bytes[64];
};
TQ_HOST_DEVICE void dot(__m512i& acc, __m512i activations, const int8_t* weights) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(activations), "m"(*reinterpret_cast<const Bytes64*>(weights)));
}

template <bool kSigned>
TQ_HOST_DEVICE __m512i load(const uint8_t* p, __mmask64 mask) {
  const __m512i v = _mm512_maskz_loadu_epi8(mask, p);
  return kSigned ? _mm512_xor_si512(v, _mm512_set1_epi8(static_cast<char>(0x80))) : v;
}

struct Quad {
  __m512i vectors[4];
};

TQ_HOST_DEVICE Quad interleave(const __m512i (&pixels)[4]) {
  const __m512i lo01 = _mm512_unpacklo_epi8(pixels[0], pixels[1]);
  const __m512i hi01 = _mm512_unpackhi_epi8(pixels[0], pixels[1]);
  const __m512i lo23 = _mm512_unpacklo_epi8(pixels[2], pixels[3]);
  const __m512i hi23 = _mm512_unpackhi_epi8(pixels[2], pixels[3]);
  return {{_mm512_unpacklo_epi16(lo01, lo23), _mm512_unpackhi_epi16(lo01, lo23), _mm512_unpacklo_epi16(hi01, hi23),
           _mm512_unpackhi_epi16(hi01, hi23)}};
}

// `together` outputs of one row; fixed taps and stride.
template <int kTaps, int kStride, int kTogether>
struct FixedRow {
  static constexpr int kOutputs = kTogether;
  static constexpr int kSpan = (kTogether - 1) * kStride + kTaps;
  static constexpr int kQuads = (kSpan + 3) / 4;

  TQ_HOST_DEVICE static void accumulate(__m512i (&acc)[kTogether][4], const DepthwiseArgs& args, const uint8_t* x) {
    const int8_t* weight = args.weight;
    const int64_t step = args.tap_step;
    for (int64_t row = 0; row < args.rows; ++row) {
#pragma GCC unroll 4
      for (int q = 0; q < kQuads; ++q) {
        __m512i pixels[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          pixels[i] = 4 * q + i < kSpan ? load<false>(x + (4 * q + i) * step, args.mask) : pixels[0];
        }
        const Quad quad = interleave(pixels);
#pragma GCC unroll 4
        for (int t = 0; t < kTogether; ++t) {
          if (!quad_serves(q, t, kTaps, kStride)) continue;
#pragma GCC unroll 4
          for (int v = 0; v < 4; ++v) dot(acc[t][v], quad.vectors[v], weight + 64 * v);
          weight += kQuadBytes;
        }
      }
      x += args.row_step;
    }
  }
};

// One output; any row.
template <bool kSigned>
struct AnyRow {
  static constexpr int kOutputs = 1;

  TQ_HOST_DEVICE static void accumulate(__m512i (&acc)[1][4], const DepthwiseArgs& args, const uint8_t* x) {
    const int8_t* weight = args.weight;
    for (int64_t row = 0; row < args.rows; ++row) {
      for (int64_t tap = 0; tap < args.taps; tap += 4) {
        __m512i pixels[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          // Weights are 0 beyond the last tap, which is read again.
          const int64_t last = args.taps - 1;
          pixels[i] = load<kSigned>(x + (tap + i < last ? tap + i : last) * args.tap_step, args.mask);
        }
        const Quad quad = interleave(pixels);
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) dot(acc[0][v], quad.vectors[v], weight + 64 * v);
        weight += kQuadBytes;
      }
      x += args.row_step;
    }
  }
};

TQ_HOST_DEVICE __m512i scale(__m512i acc, const DepthwiseArgs& args, int v) {
  return _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_cvtepi32_ps(acc), _mm512_load_ps(args.multiplier + 16 * v),
                                            _mm512_load_ps(args.bias + 16 * v)));
}

// The packs undo the order that interleaving left.
TQ_HOST_DEVICE void store_codes(const __m512i (&acc)[4], const DepthwiseArgs& args, uint8_t* out) {
  const CodeVectors& codes = *args.codes;
  const __m512i zero_point = _mm512_load_si512(codes.zero_point);
  const __m512i lo = _mm512_adds_epi16(_mm512_packs_epi32(scale(acc[0], args, 0), scale(acc[1], args, 1)), zero_point);
  const __m512i hi = _mm512_adds_epi16(_mm512_packs_epi32(scale(acc[2], args, 2), scale(acc[3], args, 3)), zero_point);
  __m512i bytes = _mm512_packus_epi16(lo, hi);
  bytes = _mm512_max_epu8(bytes, _mm512_load_si512(codes.lo));
  bytes = _mm512_min_epu8(bytes, _mm512_load_si512(codes.hi));
  bytes = _mm512_xor_si512(bytes, _mm512_load_si512(codes.flip));
  if (args.mask == ~uint64_t{0}) {
    _mm512_storeu_si512(out, bytes);
  } else {
    _mm512_mask_storeu_epi8(out, args.mask, bytes);
  }
}

TQ_HOST_DEVICE void store_accumulators(const __m512i (&acc)[4], int32_t* out) {
  constexpr int64_t kHalf = kDepthwisePixels * 32;
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    auto* low = reinterpret_cast<__m128i*>(out + 4 * v);
    auto* high = reinterpret_cast<__m128i*>(out + kHalf + 4 * v);
    _mm_store_si128(low, _mm512_castsi512_si128(acc[v]));
    _mm_store_si128(low + 4, _mm512_extracti32x4_epi32(acc[v], 1));
    _mm_store_si128(high, _mm512_extracti32x4_epi32(acc[v], 2));
    _mm_store_si128(high + 4, _mm512_extracti32x4_epi32(acc[v], 3));
  }
}

template <typename Row, bool kCodes>
TQ_HOST_DEVICE void compute_group(const DepthwiseArgs& args, int64_t first) {
  __m512i acc[Row::kOutputs][4];
#pragma GCC unroll 4
  for (int t = 0; t < Row::kOutputs; ++t) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) acc[t][v] = _mm512_load_si512(args.start + 16 * v);
  }
  Row::accumulate(acc, args, args.x + first * args.x_step);
#pragma GCC unroll 4
  for (int t = 0; t < Row::kOutputs; ++t) {
    if (kCodes) {
      store_codes(acc[t], args, args.out + (first + t) * args.out_step);
    } else {
      store_accumulators(acc[t], args.accumulators + (first + t) * 32);
    }
  }
}

// The last group starts early enough to be whole: it computes some outputs again.
template <typename Row, bool kCodes>
__attribute__((noinline)) void compute_row(const DepthwiseArgs& args) {
  for (int64_t first = 0; first < args.pixels; first += Row::kOutputs) {
    const int64_t last_start = args.pixels - Row::kOutputs;
    compute_group<Row, kCodes>(args, first < last_start ? first : last_start);
  }
}

template <typename Row>
constexpr DepthwiseKernel kernel_of(int64_t taps, int64_t stride) {
  return {taps, stride, Row::kOutputs, compute_row<Row, true>, compute_row<Row, false>};
}

constexpr DepthwiseKernel kFixed[] = {
    kernel_of<FixedRow<3, 1, 2>>(3, 1), kernel_of<FixedRow<3, 2, 3>>(3, 2), kernel_of<FixedRow<5, 1, 4>>(5, 1),
    kernel_of<FixedRow<5, 2, 2>>(5, 2), kernel_of<FixedRow<7, 1, 2>>(7, 1),
};
constexpr DepthwiseKernel kAnyUnsigned = kernel_of<AnyRow<false>>(0, 0);
constexpr DepthwiseKernel kAnySigned = kernel_of<AnyRow<true>>(0, 0);

}  // namespace

const DepthwiseKernel& any_depthwise_kernel(bool signed_input) { return signed_input ? kAnySigned : kAnyUnsigned; }

const DepthwiseKernel& depthwise_kernel(int64_t taps, int64_t stride) {
  for (const DepthwiseKernel& kernel : kFixed) {
    if (kernel.taps == taps && kernel.stride == stride) return kernel;
  }
  return kAnyUnsigned;
}

}  // namespace torchquant::kernels::avx512_vnni
