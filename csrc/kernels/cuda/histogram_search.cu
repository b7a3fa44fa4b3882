// The searches of numerics/histogram_search.h on the device, one block for a channel and one thread for a candidate;
// called through histogram_search.h. Sums over bins are added in the order of bins, so that the results are the CPU's.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/histogram_search.h"
#include "numerics/histogram_search.h"

namespace torchquant::kernels::cuda {

namespace {

using numerics::EntropySums;
using numerics::Moments;
using numerics::Range;
using numerics::RangeError;

// Bytes of the prefix sums that a block of a search for MSE or entropy keeps in scratch.
size_t prefix_bytes(HistogramSearch search, int32_t bins) {
  const size_t entry = search == HistogramSearch::kMse ? sizeof(Moments) : sizeof(EntropySums);
  return (static_cast<size_t>(bins) + 1) * entry;
}

// Blocks of a search by prefix sums, which take turns at the channels: enough for a GPU, and no more than have scratch.
int64_t search_blocks(HistogramSearch search, int64_t channels, int32_t bins) {
  constexpr int64_t kMostBlocks = 512;
  constexpr size_t kMostScratch = size_t{64} << 20;  // two blocks of the most bins that a histogram may have
  const auto fitting = static_cast<int64_t>(kMostScratch / prefix_bytes(search, bins));
  const int64_t blocks = fitting < kMostBlocks ? fitting : kMostBlocks;
  return channels < blocks ? channels : blocks;
}

__device__ numerics::Histogram channel_of(const Histogram& state, int64_t channel) {
  const Range seen{state.min_val[channel], state.max_val[channel]};
  return {state.counts + channel * state.bins, seen, numerics::histogram_grid(seen, state.bins)};
}

struct ScaleOutput {
  float* scale;
  float* zero_point;
  bool symmetric;
  QRange codes;

  __device__ void write(int64_t channel, Range range) const {
    const auto chosen = numerics::choose_qparams(range.min_val, range.max_val, symmetric, codes);
    scale[channel] = chosen.scale;
    zero_point[channel] = chosen.zero_point;
  }
};

// Entries 0 ... bins of a prefix sum, of which entry i + 1 holds term i: thread m adds up member m, in order.
template <typename Member, typename Sums>
__device__ void add_up(Sums* prefix, int32_t bins, Member Sums::*member) {
  Member sum{};
  for (int32_t bin = 0; bin <= bins; ++bin) {
    sum = bin == 0 ? Member{} : sum + prefix[bin].*member;
    prefix[bin].*member = sum;
  }
}

// The least of `count` values in shared memory and where it stands, the first of equals; -1 if none is below `least`.
__device__ int32_t first_least(const double* values, int32_t count, double least) {
  int32_t best = -1;
  for (int32_t i = 0; i < count; ++i) {
    if (values[i] < least) {
      least = values[i];
      best = i;
    }
  }
  return best;
}

__global__ void __launch_bounds__(kThreads) percentile_kernel(Histogram state, double percentile, ScaleOutput out) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (channel >= state.channels) return;
  out.write(channel, numerics::percentile_range(channel_of(state, channel), percentile, out.symmetric));
}

// prefix[i] = the sum of of_bin(h, bin) over the bins below i, member by member; prefix[0] is zero.
template <typename Sums, typename OfBin, typename First, typename Second, typename Third>
__device__ void fill_prefix(const numerics::Histogram& h, Sums* prefix, const OfBin& of_bin, First Sums::*first,
                            Second Sums::*second, Third Sums::*third) {
  for (int32_t bin = threadIdx.x; bin < h.grid.bins; bin += kThreads) prefix[bin + 1] = of_bin(h, bin);
  __syncthreads();
  if (threadIdx.x == 0) add_up(prefix, h.grid.bins, first);
  if (threadIdx.x == kWarp) add_up(prefix, h.grid.bins, second);
  if (threadIdx.x == 2 * kWarp) add_up(prefix, h.grid.bins, third);
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads) mse_kernel(Histogram state, ScaleOutput out, Moments* scratch) {
  __shared__ double errors[numerics::kMseCandidates];
  Moments* prefix = scratch + static_cast<int64_t>(blockIdx.x) * (state.bins + 1);
  for (int64_t channel = blockIdx.x; channel < state.channels; channel += gridDim.x) {
    const numerics::Histogram h = channel_of(state, channel);
    const auto of_bin = [](const numerics::Histogram& of, int32_t bin) { return numerics::moments_of_bin(of, bin); };
    fill_prefix(h, prefix, of_bin, &Moments::m0, &Moments::m1, &Moments::m2);
    const auto search = [&](Range full, RangeError best, numerics::MovingEnds moving) {
      const auto candidate = [&](int32_t i) {  // the widest first
        return numerics::mse_candidate(full, best.range, moving, numerics::kMseCandidates - i);
      };
      for (int32_t i = threadIdx.x; i < numerics::kMseCandidates; i += kThreads)
        errors[i] = numerics::squared_error(h, prefix, candidate(i), out.symmetric, out.codes);
      __syncthreads();
      const int32_t least = first_least(errors, numerics::kMseCandidates, best.error);
      const RangeError better = least < 0 ? best : RangeError{candidate(least), errors[least]};
      __syncthreads();  // every thread has read the errors
      return better;
    };
    const Range range = numerics::search_mse_range(h, prefix, out.symmetric, out.codes, search);
    if (threadIdx.x == 0) out.write(channel, range);
    __syncthreads();  // the prefix sums are written again for the next channel
  }
}

__global__ void __launch_bounds__(kThreads) entropy_kernel(Histogram state, ScaleOutput out, EntropySums* scratch) {
  __shared__ double divergences[numerics::kEntropyCandidates];
  EntropySums* prefix = scratch + static_cast<int64_t>(blockIdx.x) * (state.bins + 1);
  for (int64_t channel = blockIdx.x; channel < state.channels; channel += gridDim.x) {
    const numerics::Histogram h = channel_of(state, channel);
    const auto of_bin = [](const numerics::Histogram& of, int32_t bin) {
      return numerics::entropy_sums_of_bin(of, bin);
    };
    fill_prefix(h, prefix, of_bin, &EntropySums::count, &EntropySums::count_log, &EntropySums::occupied);
    const auto candidates = numerics::entropy_candidates(h);
    const int32_t count = candidates.count();
    const bool seen = prefix[state.bins].count > 0.0;
    for (int32_t i = threadIdx.x; seen && i < count; i += kThreads)
      divergences[i] = numerics::candidate_divergence(h, prefix, candidates.half_width(i), out.symmetric, out.codes);
    __syncthreads();
    if (threadIdx.x == 0) {
      const int32_t least = seen ? first_least(divergences, count, INFINITY) : -1;
      const int32_t best = least < 0 ? candidates.widest : candidates.half_width(least);
      out.write(channel, seen ? numerics::entropy_window_range(h, best) : numerics::full_range(h));
    }
    __syncthreads();  // the prefix sums and the divergences are written again for the next channel
  }
}

}  // namespace

size_t histogram_search_scratch_bytes(HistogramSearch search, int64_t channels, int32_t bins) {
  if (search == HistogramSearch::kPercentile) return 0;
  return static_cast<size_t>(search_blocks(search, channels, bins)) * prefix_bytes(search, bins);
}

cudaError_t qparams_from_histogram(HistogramSearch search, Histogram state, double percentile, bool symmetric,
                                   QRange codes, float* scale, float* zero_point, void* scratch, cudaStream_t stream) {
  if (state.channels == 0) return cudaSuccess;
  const ScaleOutput out{scale, zero_point, symmetric, codes};
  if (search == HistogramSearch::kPercentile) {
    return start_kernel(percentile_kernel, static_cast<unsigned>(ceil_div(state.channels, kThreads)), kThreads, 0,
                        stream, state, percentile, out);
  }
  const auto blocks = static_cast<unsigned>(search_blocks(search, state.channels, state.bins));
  if (search == HistogramSearch::kMse)
    return start_kernel(mse_kernel, blocks, kThreads, 0, stream, state, out, static_cast<Moments*>(scratch));
  return start_kernel(entropy_kernel, blocks, kThreads, 0, stream, state, out, static_cast<EntropySums*>(scratch));
}

}  // namespace torchquant::kernels::cuda
