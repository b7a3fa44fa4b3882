// Picks the kernel table of an instruction set. Called by csrc/ops/ through fake_quantize.h.
#include "kernels/fake_quantize.h"

#include <stdexcept>
#include <string>

namespace torchquant::kernels {

#define TQ_ISA(enumerator, name)                        \
  namespace name {                                      \
  extern const FakeQuantizeKernels fake_quantize_table; \
  }
#include "kernels/isa_list.inc"
#undef TQ_ISA

const FakeQuantizeKernels& fake_quantize_kernels(Isa isa) {
  switch (isa) {
#define TQ_ISA(enumerator, name) \
  case Isa::enumerator:          \
    return name::fake_quantize_table;
#include "kernels/isa_list.inc"
#undef TQ_ISA
    default:
      throw std::runtime_error(std::string("fake_quantize_kernels: this library holds no kernels for '") +
                               isa_name(isa) + "'.");
  }
}

const FakeQuantizeKernels& fake_quantize_kernels() { return fake_quantize_kernels(selected_isa()); }

}  // namespace torchquant::kernels
