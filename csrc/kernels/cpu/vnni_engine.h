// The parts of the AVX512-VNNI convolution engine: which takes what. Called by integer_conv_vnni.cpp.
#pragma once

#include "kernels/integer_conv.h"

namespace torchquant::kernels::avx512_vnni {

// For is_depthwise() convolutions.
std::shared_ptr<const PackedConv> pack_depthwise(const ConvSpec& spec, const ConvWeight& weight);

}  // namespace torchquant::kernels::avx512_vnni
