// The training kernels for AVX2 and AVX-VNNI, compiled with the flags of the first. Called through the table that
// kernels/fake_quantize.cpp picks.
#include "kernels/cpu/fake_quantize_vector.h"
#include "kernels/cpu/vector_avx2.h"

namespace torchquant::kernels::avx2 {

extern const FakeQuantizeKernels fake_quantize_table;
constinit const FakeQuantizeKernels fake_quantize_table = FakeQuantizeVector<Vector>::table();

}  // namespace torchquant::kernels::avx2

// Its own instruction is for integers only.
namespace torchquant::kernels::avx_vnni {

extern const FakeQuantizeKernels fake_quantize_table;
constinit const FakeQuantizeKernels fake_quantize_table = FakeQuantizeVector<avx2::Vector>::table();

}  // namespace torchquant::kernels::avx_vnni
