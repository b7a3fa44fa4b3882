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

// Counts one block's share into `copies` sets of bins in shared memory (its warps take turns, so that those that meet
// in a popular bin wait less for one another) and adds them up. copies = 0: into global memory, where bins are too
// many. Counts are integers: the order of the atomic additions does not show.
__global__ void __launch_bounds__(kThreads)
    count_kernel(Histogram state, const float* x, int64_t length, unsigned copies) {
  auto* shared = reinterpret_cast<unsigned*>(dynamic_shared());
  const int64_t channel = blockIdx.y;
  const auto bins = static_cast<unsigned>(state.bins);
  auto* counts = reinterpret_cast<Count*>(state.counts + channel * state.bins);
  for (unsigned i = threadIdx.x; i < copies * bins; i += kThreads) shared[i] = 0;
  __syncthreads();
  const auto grid = numerics::histogram_grid({state.min_val[channel], state.max_val[channel]}, state.bins);
  unsigned* mine = copies > 0 ? shared + threadIdx.x / kWarp % copies * bins : nullptr;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < length; i += step) {
    const float v = x[channel * length + i];
    if (!isfinite(v)) continue;
    if (copies > 0) {
      atomicAdd(mine + numerics::bin_of(v, grid), 1u);
    } else {
      atomicAdd(counts + numerics::bin_of(v, grid), Count{1});
    }
  }
  __syncthreads();
  for (unsigned bin = threadIdx.x; copies > 0 && bin < bins; bin += kThreads) {
    Count sum = 0;
    for (unsigned copy = 0; copy < copies; ++copy) sum += shared[copy * bins + bin];
    if (sum > 0) atomicAdd(counts + bin, sum);
  }
}

// Sets of bins that fit into the shared memory every kernel may use, at most one for each warp.
unsigned shared_copies(int32_t bins) {
  constexpr size_t kSharedBytes = 48 * 1024;
  const size_t fitting = kSharedBytes / (static_cast<size_t>(bins) * sizeof(unsigned));
  constexpr size_t kWarps = kThreads / kWarp;
  return static_cast<unsigned>(fitting < kWarps ? fitting : kWarps);
}

// Blocks for the values of one channel: each adds up all its bins at the end, so it counts many more values than bins.
int64_t counting_blocks(int64_t length, int64_t channels, int32_t bins) {
  const int64_t per_block = bins > 1024 ? 4 * int64_t{bins} : 4096;
  const int64_t wanted = ceil_div(length, per_block);
  const int64_t allowed = ceil_div(kMaxBlocks, channels);
  return wanted < allowed ? wanted : allowed;
}

}  // namespace

cudaError_t observe_histogram(const float* x, int64_t length, Histogram state, const float* batch_min,
                              const float* batch_max, int64_t* scratch, cudaStream_t stream) {
  constexpr int64_t kMaxChannels = 65535;  // of one launch: the largest grid.y
  for (int64_t first = 0; first < state.channels; first += kMaxChannels) {
    const int64_t channels = state.channels - first < kMaxChannels ? state.channels - first : kMaxChannels;
    const Histogram part{state.counts + first * state.bins, state.min_val + first, state.max_val + first, channels,
                         state.bins};
    const cudaError_t error = start_kernel(widen_kernel, static_cast<unsigned>(channels), kThreads, 0, stream, part,
                                           batch_min + first, batch_max + first, scratch + first * state.bins);
    if (error != cudaSuccess) return error;
    const unsigned copies = shared_copies(state.bins);
    const size_t shared_bytes = copies * static_cast<size_t>(state.bins) * sizeof(unsigned);
    const dim3 grid(static_cast<unsigned>(counting_blocks(length, channels, state.bins)),
                    static_cast<unsigned>(channels));
    const cudaError_t counted =
        start_kernel(count_kernel, grid, kThreads, shared_bytes, stream, part, x + first * length, length, copies);
    if (counted != cudaSuccess) return counted;
  }
  return cudaSuccess;
}

}  // namespace torchquant::kernels::cuda
