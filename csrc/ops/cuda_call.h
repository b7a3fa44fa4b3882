// What the CUDA halves of the ops share: checks, device guard, current stream, parameters in memory order. Used by
// ops/*_cuda.cpp.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/clone.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <utility>

#include "kernels/cuda/launch.h"
#include "ops/checks.h"
#include "ops/dispatch.h"
#include "ops/granularity.h"

namespace torchquant::ops {

// Checks the arguments of `op` and allocates its outputs on their device, by calling its Meta kernel with the real
// tensors: a Meta kernel is the op's checks followed by empty outputs, so CPU, Meta and CUDA cannot disagree.
template <auto EntryPoint, typename... Args>
auto check_and_allocate(const char* op, Args&&... args) {
  using Signature = std::remove_pointer_t<decltype(EntryPoint)>;
  static const auto handle = find_op<Signature>(op);  // one per entry point
  return handle.redispatch(c10::DispatchKeySet(c10::DispatchKey::Meta), std::forward<Args>(args)...);
}

// A dense input, its parameters in memory order, and the device guard that its kernels run under. Values of scales are
// not read back: a bad scale gives NaN (docs/numerics.md).
class CudaCall {
 public:
  CudaCall(const at::Tensor& x, const Granularity& granularity)
      : guard_(x.device()),
        input_(to_dense(x)),
        granularity_(granularity),
        layout_(param_layout(input_, granularity)) {}

  CudaCall(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point, const Granularity& granularity)
      : CudaCall(x, granularity) {
    scale_ = params_in_memory_order(scale, input_, granularity);
    zero_point_ = params_in_memory_order(zero_point.view(scale.sizes()), input_, granularity);
  }

  const at::Tensor& input() const { return input_; }
  const kernels::ParamLayout& layout() const { return layout_; }
  kernels::FloatType type() const { return float_type(input_); }
  cudaStream_t stream() const { return c10::cuda::getCurrentCUDAStream(input_.get_device()); }

  kernels::cuda::DeviceQParams qparams() const {
    return {scale_.const_data_ptr<float>(), zero_point_.const_data_ptr<float>()};
  }

  at::Tensor reduction_scratch() const {
    const auto bytes = static_cast<int64_t>(kernels::cuda::reduction_scratch_bytes(layout_));
    return at::empty({bytes}, input_.options().dtype(at::kByte));
  }

  // Values in memory order to the documented shape of parameters.
  at::Tensor to_params_shape(const at::Tensor& values) const {
    return params_from_memory_order(values, input_, granularity_);
  }

 private:
  c10::cuda::CUDAGuard guard_;
  at::Tensor input_;
  Granularity granularity_;
  kernels::ParamLayout layout_;
  at::Tensor scale_;
  at::Tensor zero_point_;
};

// `dense`, or a copy in the same order where it does not begin at a multiple of 16 bytes, as a view of a larger tensor
// may not: one pass over it costs less than kernels that read it by elements.
inline at::Tensor to_aligned(const at::Tensor& dense) {
  return reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % 16 == 0 ? dense : dense.clone();
}

// Running range of an observation, as the kernels write it.
inline kernels::cuda::ObserverState observer_state(const at::Tensor& min_val, const at::Tensor& max_val,
                                                   const at::Tensor& nonfinite_count) {
  return {min_val.mutable_data_ptr<float>(), max_val.mutable_data_ptr<float>(),
          nonfinite_count.mutable_data_ptr<int64_t>()};
}

}  // namespace torchquant::ops
