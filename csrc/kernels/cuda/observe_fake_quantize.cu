// Observe, choose parameters and fake-quantize without a word from the host; called through launch.h. Where a block can
// own a parameter it reads the parameter's elements once and keeps them in shared memory until the scale is known.
// Otherwise a reduction ends with the parameters, and an elementwise kernel reads x again.
#include "kernels/cuda/observe.cuh"
#include "kernels/cuda/reduction.cuh"

namespace torchquant::kernels::cuda {

namespace {

constexpr int64_t kOwnedParams = 64;         // with fewer, blocks that own a parameter leave most of a device idle
constexpr int64_t kStagedBytes = 64 * 1024;  // of x that a block keeps; a longer parameter is read again

// Calls slot(first, begin, end, j) for the thread's packs [first, first + VEC) of parameter p, of which [begin, end) is
// the run.
template <int VEC, typename Slot>
__device__ __forceinline__ void for_slots(const Runs& runs, int64_t slots_of_run, int64_t p, const Slot& slot) {
  for (int64_t j = threadIdx.x; j < runs.outer * slots_of_run; j += blockDim.x) {
    const int64_t o = runs.outer == 1 ? 0 : j / slots_of_run;
    const int64_t begin = (o * runs.params + p) * runs.inner;
    slot(begin / VEC * VEC + (j - o * slots_of_run) * VEC, begin, begin + runs.inner, j);
  }
}

// Block p owns parameter p. STAGED: its packs stay in shared memory.
template <typename T, int VEC, bool STAGED>
__global__ void __launch_bounds__(kThreads)
    owned_kernel(const T* x, T* y, Runs runs, int64_t slots_of_run, RangeUpdate update) {
  using P = Pack<T, VEC>;
  __shared__ QParams chosen;
  const int64_t p = blockIdx.x;
  P* kept = reinterpret_cast<P*>(dynamic_shared());
  Observed seen = Observed::none();
  for_slots<VEC>(runs, slots_of_run, p, [&](int64_t first, int64_t begin, int64_t end, int64_t j) {
    if (first >= begin && first + VEC <= end) {
      const P pack = *reinterpret_cast<const P*>(x + first);
      if constexpr (STAGED) kept[j] = pack;
#pragma unroll
      for (int k = 0; k < VEC; ++k) seen.see(to_float(pack.value[k]));
    } else {
      for (int64_t e = first < begin ? begin : first; e < first + VEC && e < end; ++e) seen.see(to_float(x[e]));
    }
  });
  seen = reduce_block(seen);
  if (threadIdx.x == 0) {
    update(p, seen);
    chosen = numerics::make_qparams(update.chosen.scale[p], update.chosen.zero_point[p], update.chosen.range);
  }
  __syncthreads();
  const QParams qparams = chosen;
  const QRange range = update.chosen.range;
  const auto quantized = [&](T v) { return from_float<T>(numerics::fake_quantize_value(to_float(v), qparams, range)); };
  for_slots<VEC>(runs, slots_of_run, p, [&](int64_t first, int64_t begin, int64_t end, int64_t j) {
    if (first >= begin && first + VEC <= end) {
      const P pack = STAGED ? kept[j] : *reinterpret_cast<const P*>(x + first);
      P result;
#pragma unroll
      for (int k = 0; k < VEC; ++k) result.value[k] = quantized(pack.value[k]);
      *reinterpret_cast<P*>(y + first) = result;
    } else {
      for (int64_t e = first < begin ? begin : first; e < first + VEC && e < end; ++e) y[e] = quantized(x[e]);
    }
  });
}

template <typename T, int VEC>
cudaError_t launch_owned(const T* x, T* y, const Runs& runs, const RangeUpdate& update, cudaStream_t stream) {
  const int64_t slots_of_run = slots_per_run(runs, VEC);
  const int64_t slots = runs.outer * slots_of_run;
  const auto grid = static_cast<unsigned>(runs.params);
  const unsigned threads = power_of_two_from(slots, kThreads);
  const unsigned block = threads < kWarp ? kWarp : threads;
  const int64_t bytes = slots * static_cast<int64_t>(sizeof(T)) * VEC;
  if (bytes <= kStagedBytes)
    return start_kernel(owned_kernel<T, VEC, true>, grid, block, static_cast<size_t>(bytes), stream, x, y, runs,
                        slots_of_run, update);
  return start_kernel(owned_kernel<T, VEC, false>, grid, block, 0, stream, x, y, runs, slots_of_run, update);
}

template <typename T>
cudaError_t observe_and_choose(const T* x, const ParamLayout& layout, const RangeUpdate& update, void* scratch,
                               cudaStream_t stream) {
  return reduce<T>(Observe<T>{x, update}, layout, is_aligned(x, 16), scratch, stream);
}

}  // namespace

cudaError_t observe_fake_quantize(const void* x, void* y, FloatType type, ParamLayout layout, ObserverState state,
                                  float averaging_constant, bool symmetric, QRange range, float* scale,
                                  float* zero_point, void* scratch, cudaStream_t stream) {
  if (layout.numel() == 0)  // nothing is seen; the parameters are those of the range so far
    return qparams_from_min_max(state.min_val, state.max_val, scale, zero_point, layout.params(), symmetric, range,
                                stream);
  const RangeUpdate update{state, averaging_constant, {scale, zero_point, symmetric, range}};
  return dispatch_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const auto* from = static_cast<const T*>(x);
    auto* to = static_cast<T*>(y);
    if (!in_columns(layout) && layout.params() >= kOwnedParams) {
      const bool aligned = is_aligned(x, 16) && is_aligned(y, 16);
      return aligned ? launch_owned<T, kRunVec<T>>(from, to, runs_of(layout), update, stream)
                     : launch_owned<T, 1>(from, to, runs_of(layout), update, stream);
    }
    const cudaError_t error = observe_and_choose(from, layout, update, scratch, stream);
    if (error != cudaSuccess) return error;
    return fake_quantize(x, y, type, layout, {scale, zero_point}, range, stream);
  });
}

}  // namespace torchquant::kernels::cuda
