// Weights in the form that CUDA kernels read, made once at the first call (ops/weight_cache.h). Used by ops/*_cuda.cpp.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAStream.h>

#include <utility>

#include "ops/dispatch.h"
#include "ops/weight_cache.h"

namespace torchquant::ops {

// The output of an op that has no C++ entry point, after its checks (check_and_allocate, ops/cuda_call.h). The caller
// holds the handle, which find_op gave it: two ops may have one signature.
template <typename Handle, typename... Args>
auto check_and_allocate_as(const Handle& handle, Args&&... args) {
  return handle.redispatch(c10::DispatchKeySet(c10::DispatchKey::Meta), std::forward<Args>(args)...);
}

// A rearranged weight on its device, for the kernels that `kernel` names.
class CudaWeight final : public CachedWeight {
 public:
  // make(stream) enqueues the work. The host waits for it here, once, because later calls may run on other streams.
  template <typename Make>
  CudaWeight(const char* op, const char* kernel, const at::Tensor& weight, Make&& make)
      : kernel_(kernel), made_on_(c10::cuda::getCurrentCUDAStream(weight.get_device())) {
    TORCH_CHECK(c10::cuda::currentStreamCaptureStatusMayInitCtx() == c10::cuda::CaptureStatus::None, op,
                ": the weight must be packed before a CUDA graph is captured: call the model once before the capture");
    packed_ = std::forward<Make>(make)(made_on_);
    made_on_.synchronize();
  }

  // For kernels on the current stream. Where that is not the one it was made on, the allocator must know of it: else
  // the memory, once freed, is given away under a kernel that still runs.
  const at::Tensor& packed() const {
    const auto stream = c10::cuda::getCurrentCUDAStream(packed_.get_device());
    if (stream != made_on_) c10::cuda::CUDACachingAllocator::recordStream(packed_.storage().data_ptr(), stream);
    return packed_;
  }
  const char* kernel() const override { return kernel_; }
  int64_t bytes() const override { return static_cast<int64_t>(packed_.nbytes()); }

 private:
  const char* kernel_;
  c10::cuda::CUDAStream made_on_;
  at::Tensor packed_;
};

}  // namespace torchquant::ops
