// The observers' reduction: range of the finite values and a count of the others, then the running state and, for the
// fused op, scale and zero point. Used by reductions.cu and observe_fake_quantize.cu.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"
#include "numerics/qparams.h"
#include "numerics/stats.h"

namespace torchquant::kernels::cuda {

struct Observed {
  numerics::Range range;
  unsigned long long nonfinite;

  __device__ static Observed none() { return {{INFINITY, -INFINITY}, 0}; }
  __device__ void see(float x) {
    const float v = x + 0.0f;  // -0 becomes 0
    if (isfinite(v)) {
      range = numerics::merge_ranges(range, {v, v});
    } else {
      ++nonfinite;
    }
  }
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

// Where scale and zero point of the new range go; nowhere if `scale` is null.
struct ChosenQParams {
  float* scale;
  float* zero_point;
  bool symmetric;
  QRange range;
};

// averaging_constant < 0 keeps the running extremes instead of an average.
struct RangeUpdate {
  ObserverState state;
  float averaging_constant;
  ChosenQParams chosen;

  __device__ void operator()(int64_t p, const Observed& seen) const {
    // Atomic, because every parameter adds to the one counter; a sum of integers has one value in any order.
    if (seen.nonfinite) atomicAdd(reinterpret_cast<unsigned long long*>(state.nonfinite_count), seen.nonfinite);
    const numerics::Range running{state.min_val[p], state.max_val[p]};
    const numerics::Range updated = averaging_constant < 0.0f
                                        ? numerics::merge_ranges(running, seen.range)
                                        : numerics::moving_average(running, seen.range, averaging_constant);
    state.min_val[p] = updated.min_val;
    state.max_val[p] = updated.max_val;
    if (chosen.scale == nullptr) return;
    const auto qparams = numerics::choose_qparams(updated.min_val, updated.max_val, chosen.symmetric, chosen.range);
    chosen.scale[p] = qparams.scale;
    chosen.zero_point[p] = qparams.zero_point;
  }
};

// The Op of reduction.cuh.
template <typename T>
struct Observe {
  using Value = Observed;
  struct Params {};
  const T* x;
  RangeUpdate update;

  __device__ Params params(int64_t) const { return {}; }
  template <int VEC, bool EACH>
  __device__ void visit(int64_t e, const Params*, Observed* seen) const {
    const auto pack = *reinterpret_cast<const Pack<T, VEC>*>(x + e);
#pragma unroll
    for (int k = 0; k < VEC; ++k) seen[EACH ? k : 0].see(to_float(pack.value[k]));
  }
  __device__ void finish(int64_t p, const Observed& seen) const { update(p, seen); }
};

}  // namespace torchquant::kernels::cuda
