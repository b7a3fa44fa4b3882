// The training kernels for AVX2, compiled with its flags. Called through the table that kernels/fake_quantize.cpp
// picks.
#include "kernels/cpu/fake_quantize_vector.h"
#include "kernels/cpu/vector_avx2.h"

namespace torchquant::kernels::avx2 {

extern const FakeQuantizeKernels fake_quantize_table;
constinit const FakeQuantizeKernels fake_quantize_table = FakeQuantizeVector<Vector>::table();

}  // namespace torchquant::kernels::avx2
