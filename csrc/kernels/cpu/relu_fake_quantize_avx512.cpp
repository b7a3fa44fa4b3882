// The kernels of kernels/relu_fake_quantize.h for AVX-512.
#include "kernels/cpu/relu_fake_quantize_vector.h"
#include "kernels/cpu/vector_avx512.h"

namespace torchquant::kernels::avx512 {
namespace {

struct Bits {
  TQ_HOST_DEVICE static uint16_t word(Vector::Mask mask) { return mask; }
  TQ_HOST_DEVICE static Vector::Mask mask(uint16_t word) { return word; }
};

}  // namespace

extern const ReluFakeQuantizeKernels kReluFakeQuantizeKernels;
constinit const ReluFakeQuantizeKernels kReluFakeQuantizeKernels = ReluFakeQuantizeVector<Vector, Bits>::table();

}  // namespace torchquant::kernels::avx512
