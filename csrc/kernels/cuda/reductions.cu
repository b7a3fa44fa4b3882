// Reducing training kernels: learnable (LSQ) backward and the observers' minimum and maximum; called through launch.h.
// Sums go over fixed chunks in a fixed order, so a run repeats to the bit on one device.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"
#include "numerics/affine.h"
#include "numerics/qparams.h"
#include "numerics/stats.h"

namespace torchquant::kernels::cuda {

namespace {

constexpr int64_t kChunk = 16 * kThreads;  // elements of one parameter that one block reduces at the least

struct GradSums {
  double scale = 0.0;
  double zero_point = 0.0;
  __device__ void merge(const GradSums& other) {
    scale += other.scale;
    zero_point += other.zero_point;
  }
  __device__ GradSums shuffle_down(int offset) const {
    GradSums other;
    other.scale = __shfl_down_sync(0xffffffffu, scale, offset);
    other.zero_point = __shfl_down_sync(0xffffffffu, zero_point, offset);
    return other;
  }
};

struct Observed {
  numerics::Range range{INFINITY, -INFINITY};
  unsigned long long nonfinite = 0;
  __device__ void merge(const Observed& other) {
    range = numerics::merge_ranges(range, other.range);
    nonfinite += other.nonfinite;
  }
  __device__ Observed shuffle_down(int offset) const {
    Observed other;
    other.range.min_val = __shfl_down_sync(0xffffffffu, range.min_val, offset);
    other.range.max_val = __shfl_down_sync(0xffffffffu, range.max_val, offset);
    other.nonfinite = __shfl_down_sync(0xffffffffu, nonfinite, offset);
    return other;
  }
};

// Blocks along one parameter: enough to fill the device where there are few parameters, one where there are many.
int64_t blocks_per_param(ParamLayout layout) {
  const int64_t wanted = ceil_div(layout.elements_per_param(), kChunk);
  const int64_t allowed = ceil_div(kMaxBlocks, layout.params());
  return wanted < allowed ? wanted : allowed;
}

template <typename T>
struct LearnableBackward {
  using Value = GradSums;
  const T* grad;
  const T* x;
  T* grad_x;
  DeviceQParams qparams;
  QRange range;
  float* scale_grad;
  float* zero_point_grad;
  float grad_factor;

  __device__ QParams params(int64_t p) const {
    return numerics::make_qparams(qparams.scale[p], qparams.zero_point[p], range);
  }
  __device__ void visit(int64_t e, const QParams& p, GradSums& sums) const {
    const float g = to_float(grad[e]);
    const float v = to_float(x[e]);
    grad_x[e] = from_float<T>(numerics::ste_grad(g, v, p, range));
    sums.scale += numerics::scale_grad(g, v, p, range);
    sums.zero_point += numerics::zero_point_grad(g, v, p, range);
  }
  __device__ void finish(int64_t p, const GradSums& sums) const {
    scale_grad[p] = static_cast<float>(sums.scale * grad_factor);
    zero_point_grad[p] = static_cast<float>(sums.zero_point * grad_factor);
  }
};

// averaging_constant < 0 keeps the running extremes instead of an average.
template <typename T>
struct Observe {
  using Value = Observed;
  const T* x;
  ObserverState state;
  float averaging_constant;

  __device__ QParams params(int64_t) const { return {}; }
  __device__ void visit(int64_t e, const QParams&, Observed& seen) const {
    const float v = to_float(x[e]) + 0.0f;  // -0 becomes 0
    if (isfinite(v)) {
      seen.range = numerics::merge_ranges(seen.range, {v, v});
    } else {
      ++seen.nonfinite;
    }
  }
  __device__ void finish(int64_t p, const Observed& seen) const {
    // Atomic, because every parameter adds to the one counter; a sum of integers has one value in any order.
    if (seen.nonfinite) atomicAdd(reinterpret_cast<unsigned long long*>(state.nonfinite_count), seen.nonfinite);
    const numerics::Range running{state.min_val[p], state.max_val[p]};
    const numerics::Range updated = averaging_constant < 0.0f
                                        ? numerics::merge_ranges(running, seen.range)
                                        : numerics::moving_average(running, seen.range, averaging_constant);
    state.min_val[p] = updated.min_val;
    state.max_val[p] = updated.max_val;
  }
};

// Block (s, p) reduces chunk s of parameter p into partials[p * gridDim.x + s].
template <typename Op>
__global__ void __launch_bounds__(kThreads)
    reduce_chunks(Op op, ParamLayout layout, typename Op::Value* partials, int64_t params) {
  const int64_t count = layout.elements_per_param();
  for (int64_t p = blockIdx.y; p < params; p += gridDim.y) {
    typename Op::Value value;
    const QParams qparams = op.params(p);
    const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t j = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; j < count; j += step) {
      op.visit(layout.params() == 1 ? j : layout.element_of(p, j), qparams, value);
    }
    value = reduce_block(value);
    if (threadIdx.x == 0) partials[p * gridDim.x + blockIdx.x] = value;
    __syncthreads();  // the shared partials are written again for the next parameter
  }
}

// One thread per parameter adds its partials in order.
template <typename Op>
__global__ void __launch_bounds__(kThreads)
    finish_params(Op op, const typename Op::Value* partials, int64_t params, int64_t blocks) {
  const int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (p >= params) return;
  typename Op::Value value = partials[p * blocks];
  for (int64_t s = 1; s < blocks; ++s) value.merge(partials[p * blocks + s]);
  op.finish(p, value);
}

template <typename Op>
cudaError_t reduce(const Op& op, ParamLayout layout, void* scratch, cudaStream_t stream) {
  const int64_t params = layout.params();
  if (layout.numel() == 0 || params == 0) return cudaSuccess;
  auto* partials = static_cast<typename Op::Value*>(scratch);
  const int64_t blocks = blocks_per_param(layout);
  constexpr int64_t kMaxGridY = 65535;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(params < kMaxGridY ? params : kMaxGridY));
  reduce_chunks<Op><<<grid, kThreads, 0, stream>>>(op, layout, partials, params);
  finish_params<Op><<<static_cast<unsigned>(ceil_div(params, kThreads)), kThreads, 0, stream>>>(op, partials, params,
                                                                                               blocks);
  return cudaGetLastError();
}

__global__ void __launch_bounds__(kThreads)
    qparams_kernel(const float* min_val, const float* max_val, float* scale, float* zero_point, int64_t params,
                   bool symmetric, QRange range) {
  const int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (p >= params) return;
  // Nothing seen (min > max) gives the parameters of an empty range.
  const bool seen = min_val[p] <= max_val[p];
  const auto chosen = numerics::choose_qparams(seen ? min_val[p] : 0.0f, seen ? max_val[p] : 0.0f, symmetric, range);
  scale[p] = chosen.scale;
  zero_point[p] = chosen.zero_point;
}

__global__ void __launch_bounds__(kThreads)
    power_of_two_kernel(const float* scale, const float* zero_point, float* new_scale, float* new_zero_point,
                        int64_t params, bool symmetric, QRange range) {
  const int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (p >= params) return;
  const auto chosen = numerics::power_of_two_qparams({scale[p], zero_point[p]}, symmetric, range);
  new_scale[p] = chosen.scale;
  new_zero_point[p] = chosen.zero_point;
}

cudaError_t observe(const void* x, FloatType type, ParamLayout layout, ObserverState state, float averaging_constant,
                    void* scratch, cudaStream_t stream) {
  return dispatch_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    return reduce(Observe<T>{static_cast<const T*>(x), state, averaging_constant}, layout, scratch, stream);
  });
}

}  // namespace

size_t reduction_scratch_bytes(ParamLayout layout) {
  constexpr size_t kLargest = sizeof(GradSums) > sizeof(Observed) ? sizeof(GradSums) : sizeof(Observed);
  if (layout.numel() == 0) return 0;
  return static_cast<size_t>(layout.params() * blocks_per_param(layout)) * kLargest;
}

cudaError_t fake_quantize_learnable_backward(const void* grad, const void* x, void* grad_x, float* scale_grad,
                                             float* zero_point_grad, FloatType type, ParamLayout layout,
                                             DeviceQParams p, QRange range, float grad_factor, void* scratch,
                                             cudaStream_t stream) {
  return dispatch_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const LearnableBackward<T> op{static_cast<const T*>(grad), static_cast<const T*>(x), static_cast<T*>(grad_x), p,
                                  range, scale_grad, zero_point_grad, grad_factor};
    return reduce(op, layout, scratch, stream);
  });
}

cudaError_t observe_min_max(const void* x, FloatType type, ParamLayout layout, ObserverState state, void* scratch,
                            cudaStream_t stream) {
  return observe(x, type, layout, state, -1.0f, scratch, stream);
}

cudaError_t observe_moving_average(const void* x, FloatType type, ParamLayout layout, ObserverState state,
                                   float averaging_constant, void* scratch, cudaStream_t stream) {
  return observe(x, type, layout, state, averaging_constant, scratch, stream);
}

cudaError_t qparams_from_min_max(const float* min_val, const float* max_val, float* scale, float* zero_point,
                                 int64_t params, bool symmetric, QRange range, cudaStream_t stream) {
  if (params == 0) return cudaSuccess;
  qparams_kernel<<<static_cast<unsigned>(ceil_div(params, kThreads)), kThreads, 0, stream>>>(
      min_val, max_val, scale, zero_point, params, symmetric, range);
  return cudaGetLastError();
}

cudaError_t power_of_two_qparams(const float* scale, const float* zero_point, float* new_scale, float* new_zero_point,
                                 int64_t params, bool symmetric, QRange range, cudaStream_t stream) {
  if (params == 0) return cudaSuccess;
  power_of_two_kernel<<<static_cast<unsigned>(ceil_div(params, kThreads)), kThreads, 0, stream>>>(
      scale, zero_point, new_scale, new_zero_point, params, symmetric, range);
  return cudaGetLastError();
}

}  // namespace torchquant::kernels::cuda
