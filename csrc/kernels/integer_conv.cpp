// Picks the engine of an instruction set. Called through integer_conv.h.
#include "kernels/integer_conv.h"

#include "kernels/cpu/integer_conv_engines.h"

namespace torchquant::kernels {

int64_t conv_output_size(const ConvAxisSpec& axis, bool transposed, int64_t in_size) {
  const int64_t reach = axis.dilation * (axis.kernel - 1);
  if (transposed) return (in_size - 1) * axis.stride - 2 * axis.padding + reach + axis.output_padding + 1;
  const int64_t room = in_size + 2 * axis.padding - reach - 1;
  return room < 0 ? 0 : room / axis.stride + 1;  // tested first: division rounds towards zero
}

std::shared_ptr<const PackedConv> pack_conv(Isa isa, const ConvSpec& spec, const ConvWeight& weight) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAvx2:
    case Isa::kAvx512:
      return avx2::pack_conv(spec, weight);
    case Isa::kAvxVnni:
      return avx_vnni::pack_conv(spec, weight);
    case Isa::kAvx512Vnni:
      return avx512_vnni::pack_conv(spec, weight);
#endif
    default:
      return reference::pack_conv(spec, weight);
  }
}

}  // namespace torchquant::kernels
