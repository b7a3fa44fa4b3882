// The kernels of kernels/relu_fake_quantize.h for AVX2.
#include "kernels/cpu/relu_fake_quantize_vector.h"
#include "kernels/cpu/vector_avx2.h"

namespace torchquant::kernels::avx2 {
namespace {

struct Bits {
  TQ_HOST_DEVICE static uint16_t word(Vector::Mask mask) {
    return static_cast<uint16_t>(_mm256_movemask_ps(mask.lo) | _mm256_movemask_ps(mask.hi) << 8);
  }
  TQ_HOST_DEVICE static Vector::Mask mask(uint16_t word) {
    const __m256i lo = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i hi = _mm256_slli_epi32(lo, 8);
    const __m256i bits = _mm256_set1_epi32(word);
    return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(bits, lo), lo)),
            _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(bits, hi), hi))};
  }
};

}  // namespace

extern const ReluFakeQuantizeKernels kReluFakeQuantizeKernels;
constinit const ReluFakeQuantizeKernels kReluFakeQuantizeKernels = ReluFakeQuantizeVector<Vector, Bits>::table();

}  // namespace torchquant::kernels::avx2
