// Histogram observation on the device: widen a channel's range, move its counts to the bins of the wider range, count.
// Called through launch.h; the bins are those of numerics/stats.h.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"
#include "numerics/stats.h"

namespace torchquant::kernels::cuda {

namespace {

using Count = unsigned long long;

// One block per channel. `scratch` holds the channel's counts while they move.
__global__ void __launch_bounds__(kThreads)
    widen_kernel(Histogram state, const float* batch_min, const float* batch_max, int64_t* scratch) {
  const int64_t channel = blockIdx.x;
  int64_t* counts = state.counts + channel * state.bins;
  int64_t* before = scratch + channel * state.bins;
  const numerics::Range running{state.min_val[channel], state.max_val[channel]};
  const numerics::Range wider = numerics::merge_ranges(running, {batch_min[channel], batch_max[channel]});
  const auto from = numerics::histogram_grid(running, state.bins);
  const auto to = numerics::histogram_grid(wider, state.bins);
  if (from.exponent != to.exponent || from.negative != to.negative) {
    for (int32_t bin = threadIdx.x; bin < state.bins; bin += kThreads) {
      before[bin] = counts[bin];
      counts[bin] = 0;
    }
    __syncthreads();
    for (int32_t bin = threadIdx.x; bin < state.bins; bin += kThreads) {
      if (before[bin] == 0) continue;
      atomicAdd(reinterpret_cast<Count*>(counts + numerics::rebin(bin, from, to)), static_cast<Count>(before[bin]));
    }
  }
  __syncthreads();  // every thread has read the running range
  if (threadIdx.x == 0) {
    state.min_val[channel] = wider.min_val;
    state.max_val[channel] = wider.max_val;
  }
}

// Counts are integers: the order of the atomic additions does not show.
__global__ void __launch_bounds__(kThreads) count_kernel(Histogram state, const float* x, int64_t length) {
  const int64_t channel = blockIdx.y;
  const auto grid = numerics::histogram_grid({state.min_val[channel], state.max_val[channel]}, state.bins);
  int64_t* counts = state.counts + channel * state.bins;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < length; i += step) {
    const float v = x[channel * length + i];
    if (isfinite(v)) atomicAdd(reinterpret_cast<Count*>(counts + numerics::bin_of(v, grid)), Count{1});
  }
}

}  // namespace

cudaError_t observe_histogram(const float* x, int64_t length, Histogram state, const float* batch_min,
                              const float* batch_max, int64_t* scratch, cudaStream_t stream) {
  constexpr int64_t kMaxChannels = 65535;  // of one launch: the largest grid.y
  for (int64_t first = 0; first < state.channels; first += kMaxChannels) {
    const int64_t channels = state.channels - first < kMaxChannels ? state.channels - first : kMaxChannels;
    const Histogram part{state.counts + first * state.bins, state.min_val + first, state.max_val + first, channels,
                         state.bins};
    widen_kernel<<<static_cast<unsigned>(channels), kThreads, 0, stream>>>(part, batch_min + first, batch_max + first,
                                                                          scratch + first * state.bins);
    const int64_t blocks = ceil_div(length, int64_t{8} * kThreads);
    const dim3 grid(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks), static_cast<unsigned>(channels));
    count_kernel<<<grid, kThreads, 0, stream>>>(part, x + first * length, length);
  }
  return cudaGetLastError();
}

}  // namespace torchquant::kernels::cuda
