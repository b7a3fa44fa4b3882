// Fake-quantize with qparams that are given and observe, reading x once; called through fake_quantize_and_observe.h.
#include "kernels/cuda/fake_quantize_and_observe.h"
#include "kernels/cuda/observe.cuh"
#include "kernels/cuda/reduction.cuh"

namespace torchquant::kernels::cuda {

namespace {

// The Op of reduction.cuh.
template <typename T>
struct FakeQuantizeAndObserve {
  using Value = Observed;
  using Params = QParams;
  const T* x;
  T* y;
  DeviceQParams qparams;
  QRange range;
  RangeUpdate update;

  __device__ QParams params(int64_t p) const {
    return numerics::make_qparams(qparams.scale[p], qparams.zero_point[p], range);
  }
  template <int VEC, bool EACH>
  __device__ void visit(int64_t e, const QParams* p, Observed* seen) const {
    using P = Pack<T, VEC>;
    const P values = *reinterpret_cast<const P*>(x + e);
    P result;
#pragma unroll
    for (int k = 0; k < VEC; ++k) {
      const float v = to_float(values.value[k]);
      result.value[k] = from_float<T>(numerics::fake_quantize_value(v, p[EACH ? k : 0], range));
      seen[EACH ? k : 0].see(v);
    }
    *reinterpret_cast<P*>(y + e) = result;
  }
  __device__ void finish(int64_t p, const Observed& seen) const { update(p, seen); }
};

}  // namespace

cudaError_t fake_quantize_and_observe(const void* x, void* y, FloatType type, int64_t numel, DeviceQParams p,
                                      QRange range, ObserverState state, float averaging_constant, void* scratch,
                                      cudaStream_t stream) {
  const bool aligned = is_aligned(x, 16) && is_aligned(y, 16);
  return dispatch_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const FakeQuantizeAndObserve<T> op{
        static_cast<const T*>(x), static_cast<T*>(y), p, range, {state, averaging_constant, {}}};
    return reduce<T>(op, ParamLayout::per_tensor(numel), aligned, scratch, stream);
  });
}

}  // namespace torchquant::kernels::cuda
