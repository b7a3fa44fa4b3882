// The reference table of integer kernels. Reached through kernels/quantized_kernels.h.
#include "kernels/cpu/quantized_reference.h"

namespace torchquant::kernels::reference {

extern const QuantizedKernels quantized_table;
constinit const QuantizedKernels quantized_table = make_quantized_table("reference");

}  // namespace torchquant::kernels::reference
