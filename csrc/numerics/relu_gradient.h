// The gradient's way through a fake-quantize and the ReLU before it. Called by kernels/relu_fake_quantize.h.
#pragma once

#include "numerics/affine.h"

namespace torchquant::numerics {

// x is what the ReLU returned, which the fake-quantize read. True where neither of them cut; false for NaN.
TQ_HOST_DEVICE bool relu_ste_mask(float x, QParams p, QRange range) { return x > 0.0f && ste_mask(x, p, range); }

}  // namespace torchquant::numerics
