// The reference convolution, defined in quantized_conv_reference.cpp. Called by integer_conv_reference.cpp.
#pragma once

#include "kernels/quantized_conv.h"

namespace torchquant::kernels::reference {

// Writes the reference's own layout of output channels [channels.begin, channels.end) into `arranged`, which has one
// element per weight.
void arrange_conv_weight(const ConvGeometry& geometry, const ConvWeight& weight, IndexRange channels, int8_t* arranged);

// `pixels` counts output positions over batch, height and width.
void conv(const ConvArgs& args, IndexRange pixels);

}  // namespace torchquant::kernels::reference
