// Declares the integer convolution engines, one per instruction set. Called by kernels/integer_conv.cpp.
#pragma once

#include "kernels/integer_conv.h"

namespace torchquant::kernels {

namespace reference {
std::shared_ptr<const PackedConv> pack_conv(const ConvSpec& spec, const ConvWeight& weight);
}
namespace avx2 {
std::shared_ptr<const PackedConv> pack_conv(const ConvSpec& spec, const ConvWeight& weight);
}
namespace avx_vnni {
std::shared_ptr<const PackedConv> pack_conv(const ConvSpec& spec, const ConvWeight& weight);
}
namespace avx512_vnni {
std::shared_ptr<const PackedConv> pack_conv(const ConvSpec& spec, const ConvWeight& weight);
}

}  // namespace torchquant::kernels
