// One pass of a training step whose scale is that of the steps before it. Called by
// csrc/ops/fake_quantize_and_observe_cuda.cpp. Enqueues work on `stream`, returns its launch error, waits for nothing.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/launch.h"

namespace torchquant::kernels::cuda {

// y = fake_quantize(x) with `p`, and the running range (one value each) moved towards x's as by observe_moving_average.
// x and y hold `numel` elements; y == x is not allowed. scratch: reduction_scratch_bytes(per_tensor(numel)).
cudaError_t fake_quantize_and_observe(const void* x, void* y, FloatType type, int64_t numel, DeviceQParams p,
                                      QRange range, ObserverState state, float averaging_constant, void* scratch,
                                      cudaStream_t stream);

}  // namespace torchquant::kernels::cuda
