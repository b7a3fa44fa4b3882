// Collects the integer kernels into tables. Called by csrc/ops/quantized_*.cpp.
#include "kernels/quantized_kernels.h"

#include "kernels/cpu/quantized_reference.h"

namespace torchquant::kernels {

const QuantizedKernels& quantized_kernels() {
  static constexpr QuantizedKernels kReference = {
      .name = "reference",
      .unpack_int4 = reference::unpack_int4,
      .linear = reference::linear,
      .linear_dynamic = reference::linear_dynamic,
      .linear_weight_only = reference::linear_weight_only,
      .embedding = reference::embedding,
      .arrange_conv_weight = reference::arrange_conv_weight,
      .conv = reference::conv,
      .max_pool = reference::max_pool,
      .avg_pool = reference::avg_pool,
      .add = reference::add,
      .mul = reference::mul,
      .lookup = reference::lookup,
  };
  return kReference;
}

}  // namespace torchquant::kernels
