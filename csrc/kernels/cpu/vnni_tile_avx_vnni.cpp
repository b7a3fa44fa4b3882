// The tile kernels of the convolution engine for AVX-VNNI, which has half the registers, half as wide: a tile is
// computed as runs of up to 6 pixels x 16 channels. Called through vnni_tile.h.
#include <immintrin.h>

#include <cstring>
#include <utility>

#include "kernels/cpu/vnni_tile.h"
#include "numerics/macros.h"

namespace torchquant::kernels::avx_vnni {
namespace {

using avx512_vnni::kStepBytes;
using avx512_vnni::kTileChannels;
using avx512_vnni::TileArgs;

constexpr int64_t kRunChannels = kTileChannels / 2;

// One instruction, for the reason that vnni_tile_avx512_vnni.cpp gives; {vex} asks for the encoding without AVX-512.
TQ_HOST_DEVICE void dot(__m256i& acc, __m256i activations, __m256i weights) {
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(activations), "x"(weights));
}

// Four inputs in every lane; signed ones are flipped to unsigned.
template <bool kSigned>
TQ_HOST_DEVICE __m256i broadcast(const uint8_t* p) {
  uint32_t four;
  memcpy(&four, p, sizeof(four));
  return _mm256_set1_epi32(static_cast<int>(kSigned ? four ^ 0x80808080u : four));
}

// 12 accumulators, two weights and one broadcast leave one of the 16 registers. `weight`, `start` and `accumulators`
// are those of the 16 channels.
template <int kPixels, bool kSigned>
__attribute__((noinline)) void compute_run(const TileArgs& args, const uint8_t* pixels, const int8_t* weight,
                                           const int32_t* start, int32_t* accumulators) {
  __m256i acc[kPixels][2];
#pragma GCC unroll 6
  for (int p = 0; p < kPixels; ++p) {
    acc[p][0] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(start));
    acc[p][1] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(start + 8));
  }
  const int64_t step = args.x_step;
  const int64_t ahead = args.weight_ahead;
  for (int64_t s = 0; s < args.segment_count; ++s) {
    const uint8_t* x = pixels + args.segments[s];
    for (int64_t n = args.segment_steps; n != 0; --n) {
      const __m256i w0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(weight));
      const __m256i w1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(weight + 32));
      _mm_prefetch(reinterpret_cast<const char*>(weight) + ahead, _MM_HINT_T0);
#pragma GCC unroll 6
      for (int p = 0; p < kPixels; ++p) {
        const __m256i v = broadcast<kSigned>(x + p * step);
        dot(acc[p][0], v, w0);
        dot(acc[p][1], v, w1);
      }
      weight += kStepBytes;
      x += 4;
    }
  }
#pragma GCC unroll 6
  for (int p = 0; p < kPixels; ++p) {
    auto* out = reinterpret_cast<__m256i*>(accumulators + p * kTileChannels);
    _mm256_store_si256(out, acc[p][0]);
    _mm256_store_si256(out + 1, acc[p][1]);
  }
}

template <int kPixels, bool kSigned>
void compute_tile(const TileArgs& args) {
  constexpr int kFirst = (kPixels + 1) / 2;
  for (int64_t channel = 0; channel < kTileChannels; channel += kRunChannels) {
    const int8_t* weight = args.weight + 4 * channel;
    const int32_t* start = args.start + channel;
    int32_t* accumulators = args.accumulators + channel;
    compute_run<kFirst, kSigned>(args, args.x[0], weight, start, accumulators);
    if constexpr (kPixels > kFirst) {
      compute_run<kPixels - kFirst, kSigned>(args, args.x[1], weight, start, accumulators + kFirst * kTileChannels);
    }
  }
}

template <bool kSigned, int... kIndex>
constexpr TileKernels kernels_by_pixels(std::integer_sequence<int, kIndex...>) {
  return {compute_tile<kIndex + 1, kSigned>...};
}

template <bool kSigned>
constexpr TileKernels kKernels = kernels_by_pixels<kSigned>(std::make_integer_sequence<int, kTilePixels>{});

}  // namespace

const TileKernels& tile_kernels(bool signed_input) { return signed_input ? kKernels<true> : kKernels<false>; }

}  // namespace torchquant::kernels::avx_vnni
