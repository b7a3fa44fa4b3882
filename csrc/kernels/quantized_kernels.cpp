// Picks the table of integer kernels of an instruction set. Called by csrc/ops/quantized_*.cpp and, for the name, by the
// converter.
#include "kernels/quantized_kernels.h"

#include <stdexcept>
#include <string>

namespace torchquant::kernels {

#define TQ_ISA(enumerator, name)                 \
  namespace name {                               \
  extern const QuantizedKernels quantized_table; \
  }
#include "kernels/isa_list.inc"
#undef TQ_ISA

const QuantizedKernels& quantized_kernels(Isa isa) {
  switch (isa) {
#define TQ_ISA(enumerator, name) \
  case Isa::enumerator:          \
    return name::quantized_table;
#include "kernels/isa_list.inc"
#undef TQ_ISA
    default:
      throw std::runtime_error(std::string("quantized_kernels: this library holds no kernels for '") + isa_name(isa) +
                               "'.");
  }
}

const QuantizedKernels& quantized_kernels() { return quantized_kernels(selected_isa()); }

}  // namespace torchquant::kernels
