// The tile kernels of the AVX512-VNNI convolution engine. Called through vnni_tile.h.
//
// 14 pixels x 32 channels fill 28 accumulators; two weight registers and one broadcast leave nothing to spare, so
// nothing here may hold a vector across the loop. A step takes 16 loads for 28 multiply-adds.
// GCC 12 calls the deliberately undefined operands inside its own intrinsics uninitialized (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <utility>

#include "kernels/cpu/vnni_tile.h"
#include "numerics/macros.h"

namespace torchquant::kernels::avx512_vnni {
namespace {

// Steps that the loop is unrolled by where the segments allow it.
constexpr int kMostSteps = 4;

// One instruction. GCC 12's intrinsic copies the accumulator and spills.
TQ_HOST_DEVICE void dot(__m512i& acc, __m512i activations, __m512i weights) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(activations), "v"(weights));
}

struct FourBytes {
  uint8_t bytes[4];
};

// Four inputs in every lane; signed ones are flipped to unsigned by the load itself, which takes no further register.
template <bool kSigned>
TQ_HOST_DEVICE __m512i broadcast(const uint8_t* p) {
  const FourBytes& four = *reinterpret_cast<const FourBytes*>(p);
  __m512i v;
  if constexpr (kSigned) {
    asm("vpxord %1%{1to16%}, %2, %0" : "=v"(v) : "m"(four), "v"(_mm512_set1_epi8(static_cast<char>(0x80))));
  } else {
    asm("vpbroadcastd %1, %0" : "=v"(v) : "m"(four));
  }
  return v;
}

// Base pointers of pixels 0 and 4 of both runs: every other pixel is one to three steps away, which addressing modes
// and one multiple of the step cover.
struct Cursor {
  const uint8_t* base[4];

  TQ_HOST_DEVICE void advance(int64_t bytes) {
    for (const uint8_t*& p : base) p += bytes;
  }
};

template <int kPixels>
struct Run {
  static constexpr int kFirst = (kPixels + 1) / 2;
  // Run and place in it of pixel p.
  static constexpr int run(int p) { return p < kFirst ? 0 : 1; }
  static constexpr int place(int p) { return p < kFirst ? p : p - kFirst; }
};

template <int kPixels, bool kSigned, int kSteps>
TQ_HOST_DEVICE void multiply(__m512i (&acc)[kPixels][2], const Cursor& x, int64_t step, int64_t step3,
                             const int8_t* weight, int64_t ahead) {
  using Runs = Run<kPixels>;
#pragma GCC unroll 4
  for (int u = 0; u < kSteps; ++u) {
    const __m512i w0 = _mm512_load_si512(weight + u * kStepBytes);
    const __m512i w1 = _mm512_load_si512(weight + u * kStepBytes + 64);
    _mm_prefetch(reinterpret_cast<const char*>(weight) + ahead + u * kStepBytes, _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(weight) + ahead + u * kStepBytes + 64, _MM_HINT_T0);
#pragma GCC unroll 14
    for (int p = 0; p < kPixels; ++p) {
      const int place = Runs::place(p);
      const uint8_t* base = x.base[2 * Runs::run(p) + place / 4];
      const int64_t offset = place % 4 == 3 ? step3 : place % 4 * step;
      const __m512i v = broadcast<kSigned>(base + offset + 4 * u);
      dot(acc[p][0], v, w0);
      dot(acc[p][1], v, w1);
    }
  }
}

// One loop only: a second one for what is left over would keep the accumulators in other registers, and moving them
// over costs as much as a step.
template <int kPixels, bool kSigned, int kSteps>
TQ_HOST_DEVICE void accumulate(__m512i (&acc)[kPixels][2], const TileArgs& args) {
  int64_t step = args.x_step;
  int64_t step3 = 3 * step;
  const int8_t* weight = args.weight;
  int64_t ahead = args.weight_ahead;
  const char* prefetch = args.prefetch;
  const int64_t* segment = args.segments;
  const int64_t* const last = segment + args.segment_count;
  do {
    const uint8_t* x0 = args.x[0] + *segment;
    const uint8_t* x1 = args.x[1] + *segment;
    Cursor x{{x0, x0 + 4 * step, x1, x1 + 4 * step}};
    int64_t n = args.segment_steps;
    do {
      multiply<kPixels, kSigned, kSteps>(acc, x, step, step3, weight, ahead);
      if constexpr (kSteps == kMostSteps) {
        _mm_prefetch(prefetch, _MM_HINT_T1);
        _mm_prefetch(prefetch + 64, _MM_HINT_T1);
        prefetch += args.prefetch_step;
      }
      weight += kSteps * kStepBytes;
      x.advance(4 * kSteps);
      // Keeps GCC from turning the pointers into one index plus fourteen spilled offsets.
      asm volatile(""
                   : "+r"(x.base[0]), "+r"(x.base[1]), "+r"(x.base[2]), "+r"(x.base[3]), "+r"(weight), "+r"(step),
                     "+r"(step3), "+r"(ahead));
      n -= kSteps;
    } while (n != 0);
  } while (++segment != last);
}

// Lanes of several groups: each takes its own four inputs out of a register of them.
template <int kPixels>
TQ_HOST_DEVICE void accumulate_joined(__m512i (&acc)[kPixels][2], const TileArgs& args) {
  using Runs = Run<kPixels>;
  const int8_t* weight = args.weight;
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(args.input_flip));
  for (int64_t s = 0; s < args.segment_count; ++s) {
    const uint8_t* x[2] = {args.x[0] + args.segments[s], args.x[1] + args.segments[s]};
    for (int64_t n = 0; n < args.segment_steps; ++n) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        asm volatile("" ::: "memory");  // keeps GCC from loading both halves first, which would spill
        const __m512i w = _mm512_load_si512(weight + 64 * half);
        const __m512i lanes = _mm512_loadu_si512(args.lane_inputs + n * kTileChannels + 16 * half);
#pragma GCC unroll 8
        for (int p = 0; p < kPixels; ++p) {
          const uint8_t* pixel = x[Runs::run(p)] + Runs::place(p) * args.x_step + half * args.half_offset;
          const __m512i inputs = _mm512_xor_si512(_mm512_loadu_si512(pixel), flip);
          dot(acc[p][half], _mm512_permutexvar_epi32(lanes, inputs), w);
        }
      }
      weight += kStepBytes;
    }
  }
}

// Replaces the accumulators by fmaf(float(acc), multiplier, bias), as floats in the same registers.
template <int kPixels>
TQ_HOST_DEVICE void scale(__m512i (&acc)[kPixels][2], const TileArgs& args) {
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {
    const __m512 multiplier = _mm512_loadu_ps(args.multiplier + 16 * j);
    const __m512 bias = _mm512_loadu_ps(args.bias + 16 * j);
#pragma GCC unroll 14
    for (int p = 0; p < kPixels; ++p) {
      acc[p][j] = _mm512_castps_si512(_mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[p][j]), multiplier, bias));
    }
  }
}

// The residual of 16 channels, and the rounding. The residual's constants come from memory: every register holds a
// value that waits for its turn.
template <bool kResidual>
TQ_HOST_DEVICE __m512i round(__m512i scaled, const TileArgs& args, const uint8_t* residual) {
  __m512 v = _mm512_castsi512_ps(scaled);
  if (kResidual) {
    __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(residual)));
    asm("vpsubd %1%{1to16%}, %0, %0" : "+v"(code) : "m"(args.residual_zero_point));
    asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(v) : "v"(_mm512_cvtepi32_ps(code)), "m"(args.residual_multiplier));
  }
  return _mm512_cvtps_epi32(v);
}

// Two pixels at a time fill a register of bytes. The saturating packs stand for the clamp to a byte, once the zero
// point has been added to int16.
template <int kPixels, bool kResidual>
TQ_HOST_DEVICE void store_codes(__m512i (&acc)[kPixels][2], const TileArgs& args) {
  using Runs = Run<kPixels>;
  scale<kPixels>(acc, args);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const CodeVectors& codes = *args.codes;
#pragma GCC unroll 7
  for (int p = 0; p < kPixels; p += 2) {
    asm volatile("" ::: "memory");  // constants are read again for each pair: kept in registers, they would spill
    const int q = p + 1 < kPixels ? p + 1 : p;
    uint8_t* out[2];
    __m512i packed[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const int pixel = i == 0 ? p : q;
      const int run = Runs::run(pixel);
      const int place = Runs::place(pixel);
      out[i] = args.out[run] + place * args.out_step;
      if (i == 1 && q == p) {
        packed[1] = packed[0];
        continue;
      }
      const uint8_t* residual = kResidual ? args.residual[run] + place * args.residual_step : nullptr;
      packed[i] = _mm512_packs_epi32(round<kResidual>(acc[pixel][0], args, residual),
                                     round<kResidual>(acc[pixel][1], args, kResidual ? residual + 16 : nullptr));
      packed[i] = _mm512_adds_epi16(packed[i], _mm512_load_si512(codes.zero_point));
    }
    __m512i bytes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(packed[0], packed[1]));
    bytes = _mm512_max_epu8(bytes, _mm512_load_si512(codes.lo));
    bytes = _mm512_min_epu8(bytes, _mm512_load_si512(codes.hi));
    bytes = _mm512_xor_si512(bytes, _mm512_load_si512(codes.flip));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[0]), _mm512_castsi512_si256(bytes));
    if (q != p) _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[1]), _mm512_extracti64x4_epi64(bytes, 1));
  }
}

// fmaf(float(acc), row_scale * multiplier, bias)
template <int kPixels>
TQ_HOST_DEVICE void store_floats(__m512i (&acc)[kPixels][2], const TileArgs& args) {
  using Runs = Run<kPixels>;
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {
    const __m512 multiplier = _mm512_loadu_ps(args.multiplier + 16 * j);
    const __m512 bias = _mm512_loadu_ps(args.bias + 16 * j);
#pragma GCC unroll 14
    for (int p = 0; p < kPixels; ++p) {
      const int run = Runs::run(p);
      const int place = Runs::place(p);
      const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(args.row_scale[run][place]), multiplier);
      uint8_t* out = args.out[run] + place * args.out_step + 64 * j;
      _mm512_storeu_ps(out, _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[p][j]), scale, bias));
    }
  }
}

template <int kPixels, bool kRows = false>
TQ_HOST_DEVICE void start(__m512i (&acc)[kPixels][2], const TileArgs& args) {
  using Runs = Run<kPixels>;
#pragma GCC unroll 14
  for (int p = 0; p < kPixels; ++p) {
    acc[p][0] = _mm512_loadu_si512(args.start);
    acc[p][1] = _mm512_loadu_si512(args.start + 16);
    if constexpr (kRows) {
      const __m512i row = _mm512_set1_epi32(args.row_start[Runs::run(p)][Runs::place(p)]);
      acc[p][0] = _mm512_add_epi32(acc[p][0], row);
      acc[p][1] = _mm512_add_epi32(acc[p][1], row);
    }
  }
}

template <int kPixels, TileOutput kOutput>
TQ_HOST_DEVICE void store(__m512i (&acc)[kPixels][2], const TileArgs& args) {
  if constexpr (kOutput == TileOutput::kAccumulators) {
#pragma GCC unroll 14
    for (int p = 0; p < kPixels; ++p) {
      _mm512_store_si512(args.accumulators + p * kTileChannels, acc[p][0]);
      _mm512_store_si512(args.accumulators + p * kTileChannels + 16, acc[p][1]);
    }
  } else if constexpr (kOutput == TileOutput::kFloats) {
    store_floats<kPixels>(acc, args);
  } else {
    store_codes<kPixels, kOutput == TileOutput::kCodesWithResidual>(acc, args);
  }
}

template <int kPixels, bool kSigned, int kSteps, TileOutput kOutput, bool kRows>
__attribute__((noinline)) void compute_tile(const TileArgs& args) {
  __m512i acc[kPixels][2];
  start<kPixels, kRows>(acc, args);
  accumulate<kPixels, kSigned, kSteps>(acc, args);
  store<kPixels, kOutput>(acc, args);
}

template <int kPixels, TileOutput kOutput>
__attribute__((noinline)) void compute_tile_joined(const TileArgs& args) {
  __m512i acc[kPixels][2];
  start<kPixels>(acc, args);
  accumulate_joined<kPixels>(acc, args);
  store<kPixels, kOutput>(acc, args);
}

template <TileOutput kOutput, int... kIndex>
constexpr JoinedKernels joined_by_pixels(std::integer_sequence<int, kIndex...>) {
  return {compute_tile_joined<kIndex + 1, kOutput>...};
}

template <TileOutput kOutput>
constexpr JoinedKernels kJoined = joined_by_pixels<kOutput>(std::make_integer_sequence<int, kJoinedPixels>{});

template <bool kSigned, int kSteps, TileOutput kOutput, bool kRows, int... kIndex>
constexpr TileKernels kernels_by_pixels(std::integer_sequence<int, kIndex...>) {
  return {compute_tile<kIndex + 1, kSigned, kSteps, kOutput, kRows>...};
}

template <bool kSigned, int kSteps, TileOutput kOutput, bool kRows>
constexpr TileKernels kKernels =
    kernels_by_pixels<kSigned, kSteps, kOutput, kRows>(std::make_integer_sequence<int, kTilePixels>{});

template <bool kSigned, int kSteps, bool kRows>
const TileKernels& kernels_for(TileOutput output) {
  switch (output) {
    case TileOutput::kCodes:
      return kKernels<kSigned, kSteps, TileOutput::kCodes, kRows>;
    case TileOutput::kCodesWithResidual:
      return kKernels<kSigned, kSteps, TileOutput::kCodesWithResidual, false>;
    case TileOutput::kFloats:
      return kKernels<kSigned, kSteps, TileOutput::kFloats, kRows>;
    case TileOutput::kAccumulators:
      break;
  }
  return kKernels<kSigned, kSteps, TileOutput::kAccumulators, kRows>;
}

template <bool kRows>
const TileKernels& kernels_by_steps(bool signed_input, int64_t segment_steps, TileOutput output) {
  if (signed_input) return kernels_for<true, 1, kRows>(output);
  if (segment_steps % kMostSteps == 0) return kernels_for<false, kMostSteps, kRows>(output);
  return segment_steps % 2 == 0 ? kernels_for<false, 2, kRows>(output) : kernels_for<false, 1, kRows>(output);
}

}  // namespace

const TileKernels& tile_kernels(bool signed_input, int64_t segment_steps, TileOutput output) {
  return kernels_by_steps<false>(signed_input, segment_steps, output);
}

const TileKernels& row_tile_kernels(bool signed_input, int64_t segment_steps, TileOutput output) {
  return kernels_by_steps<true>(signed_input, segment_steps, output);
}

const JoinedKernels& joined_kernels(TileOutput output) {
  switch (output) {
    case TileOutput::kCodes:
      return kJoined<TileOutput::kCodes>;
    case TileOutput::kCodesWithResidual:
      return kJoined<TileOutput::kCodesWithResidual>;
    case TileOutput::kFloats:
      return kJoined<TileOutput::kFloats>;
    case TileOutput::kAccumulators:
      break;
  }
  return kJoined<TileOutput::kAccumulators>;
}

}  // namespace torchquant::kernels::avx512_vnni
