// Scale and zero point of every channel from its histogram, on the device; called by
// csrc/ops/qparams_from_histogram_cuda.cpp. Enqueues work on `stream`, returns its launch error, waits for nothing.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/launch.h"

namespace torchquant::kernels::cuda {

enum class HistogramSearch { kPercentile, kMse, kEntropy };

// Bytes of scratch that a search of these histograms needs: at most 64 MiB, however many there are.
size_t histogram_search_scratch_bytes(HistogramSearch search, int64_t channels, int32_t bins);

// scale, zero_point: state.channels values each, those of numerics/histogram_search.h to the bit. `percentile` is read
// by kPercentile alone.
cudaError_t qparams_from_histogram(HistogramSearch search, Histogram state, double percentile, bool symmetric,
                                   QRange codes, float* scale, float* zero_point, void* scratch, cudaStream_t stream);

}  // namespace torchquant::kernels::cuda
