// The kernels of kernels/float_rows.h for AVX-512.
#include "kernels/cpu/float_rows_vector.h"
#include "kernels/cpu/vector_avx512.h"

namespace torchquant::kernels::avx512 {

using FloatRows = FloatRowsVector<Vector>;

extern const FloatRowKernels kFloatRowKernels;
const FloatRowKernels kFloatRowKernels{FloatRows::layer_norm, FloatRows::add};

}  // namespace torchquant::kernels::avx512
