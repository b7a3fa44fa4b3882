// Reducing training kernels: learnable (LSQ) backward, the observers' minimum and maximum, and parameters from ranges;
// called through launch.h.
#include "kernels/cuda/observe.cuh"
#include "kernels/cuda/reduction.cuh"
#include "numerics/affine.h"
#include "numerics/qparams.h"

namespace torchquant::kernels::cuda {

namespace {

// fp32 sums within a pack, fp64 across packs.
struct GradSums {
  double scale;
  double zero_point;

  __device__ static GradSums none() { return {0.0, 0.0}; }
  __device__ void add(float scale_term, float zero_point_term) {
    scale += scale_term;
    zero_point += zero_point_term;
  }
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

template <typename T>
struct LearnableBackward {
  using Value = GradSums;
  using Params = QParams;
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
  template <int VEC, bool EACH>
  __device__ void visit(int64_t e, const QParams* p, GradSums* sums) const {
    using P = Pack<T, VEC>;
    const P grads = *reinterpret_cast<const P*>(grad + e);
    const P values = *reinterpret_cast<const P*>(x + e);
    P result;
    float scale_sum = 0.0f;
    float zero_point_sum = 0.0f;
#pragma unroll
    for (int k = 0; k < VEC; ++k) {
      const QParams& qp = p[EACH ? k : 0];
      const float g = to_float(grads.value[k]);
      const float v = to_float(values.value[k]);
      result.value[k] = from_float<T>(numerics::ste_grad(g, v, qp, range));
      const float scale_term = numerics::scale_grad(g, v, qp, range);
      const float zero_point_term = numerics::zero_point_grad(g, v, qp, range);
      if constexpr (EACH) {
        sums[k].add(scale_term, zero_point_term);
      } else {
        scale_sum += scale_term;
        zero_point_sum += zero_point_term;
      }
    }
    if constexpr (!EACH) sums[0].add(scale_sum, zero_point_sum);
    *reinterpret_cast<P*>(grad_x + e) = result;
  }
  __device__ void finish(int64_t p, const GradSums& sums) const {
    scale_grad[p] = static_cast<float>(sums.scale * grad_factor);
    zero_point_grad[p] = static_cast<float>(sums.zero_point * grad_factor);
  }
};

// Blocks of one thread per parameter.
unsigned blocks_of(int64_t params) { return static_cast<unsigned>(ceil_div(params, kThreads)); }

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

cudaError_t observe(const void* x, FloatType type, ParamLayout layout, const RangeUpdate& update, void* scratch,
                    cudaStream_t stream) {
  return dispatch_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    return reduce<T>(Observe<T>{static_cast<const T*>(x), update}, layout, is_aligned(x, 16), scratch, stream);
  });
}

}  // namespace

size_t reduction_scratch_bytes(ParamLayout layout) {
  constexpr size_t kLargest = sizeof(GradSums) > sizeof(Observed) ? sizeof(GradSums) : sizeof(Observed);
  if (layout.numel() == 0) return 0;
  size_t bytes = 0;
  for (const int vec : {1, 4, 8}) {  // the widths that reduce() chooses among
    const size_t wanted = scratch_bytes(plan_reduction(layout, vec), kLargest);
    bytes = wanted > bytes ? wanted : bytes;
  }
  return bytes;
}

cudaError_t fake_quantize_learnable_backward(const void* grad, const void* x, void* grad_x, float* scale_grad,
                                             float* zero_point_grad, FloatType type, ParamLayout layout,
                                             DeviceQParams p, QRange range, float grad_factor, void* scratch,
                                             cudaStream_t stream) {
  const bool aligned = is_aligned(grad, 16) && is_aligned(x, 16) && is_aligned(grad_x, 16);
  return dispatch_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const LearnableBackward<T> op{static_cast<const T*>(grad),
                                  static_cast<const T*>(x),
                                  static_cast<T*>(grad_x),
                                  p,
                                  range,
                                  scale_grad,
                                  zero_point_grad,
                                  grad_factor};
    return reduce<T>(op, layout, aligned, scratch, stream);
  });
}

cudaError_t observe_min_max(const void* x, FloatType type, ParamLayout layout, ObserverState state, void* scratch,
                            cudaStream_t stream) {
  return observe(x, type, layout, {state, -1.0f, {}}, scratch, stream);
}

cudaError_t observe_moving_average(const void* x, FloatType type, ParamLayout layout, ObserverState state,
                                   float averaging_constant, void* scratch, cudaStream_t stream) {
  return observe(x, type, layout, {state, averaging_constant, {}}, scratch, stream);
}

cudaError_t qparams_from_min_max(const float* min_val, const float* max_val, float* scale, float* zero_point,
                                 int64_t params, bool symmetric, QRange range, cudaStream_t stream) {
  if (params == 0) return cudaSuccess;
  return start_kernel(qparams_kernel, blocks_of(params), kThreads, 0, stream, min_val, max_val, scale, zero_point,
                      params, symmetric, range);
}

cudaError_t power_of_two_qparams(const float* scale, const float* zero_point, float* new_scale, float* new_zero_point,
                                 int64_t params, bool symmetric, QRange range, cudaStream_t stream) {
  if (params == 0) return cudaSuccess;
  return start_kernel(power_of_two_kernel, blocks_of(params), kThreads, 0, stream, scale, zero_point, new_scale,
                      new_zero_point, params, symmetric, range);
}

}  // namespace torchquant::kernels::cuda
