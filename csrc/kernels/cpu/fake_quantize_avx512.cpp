// The training kernels for AVX-512 and AVX-512-VNNI, compiled with its flags. Called through the table that
// kernels/fake_quantize.cpp picks.
#include "kernels/cpu/fake_quantize_vector.h"
#include "kernels/cpu/vector_avx512.h"

namespace torchquant::kernels::avx512 {

extern const FakeQuantizeKernels fake_quantize_table;
constinit const FakeQuantizeKernels fake_quantize_table = FakeQuantizeVector<Vector>::table();

}  // namespace torchquant::kernels::avx512

// Its own instruction is for integers only.
namespace torchquant::kernels::avx512_vnni {

extern const FakeQuantizeKernels fake_quantize_table;
constinit const FakeQuantizeKernels fake_quantize_table = FakeQuantizeVector<avx512::Vector>::table();

}  // namespace torchquant::kernels::avx512_vnni
