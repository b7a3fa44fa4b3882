// CUDA half of fake_quantize_and_observe. Nothing is read back from the device.
#include <torch/library.h>

#include "kernels/cuda/fake_quantize_and_observe.h"
#include "ops/cuda_call.h"
#include "ops/ops.h"

namespace torchquant::ops {
namespace {

at::Tensor fake_quantize_and_observe(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                                     const at::Tensor& min_val, const at::Tensor& max_val,
                                     const at::Tensor& nonfinite_count, double averaging_constant, int64_t quant_min,
                                     int64_t quant_max) {
  const at::Tensor output = check_and_allocate<&torchquant::fake_quantize_and_observe>(
      "torchquant::fake_quantize_and_observe", x, scale, zero_point, min_val, max_val, nonfinite_count,
      averaging_constant, quant_min, quant_max);
  const CudaCall call(x, scale, zero_point, {});
  const at::Tensor scratch = call.reduction_scratch();
  C10_CUDA_CHECK(kernels::cuda::fake_quantize_and_observe(
      call.input().const_data_ptr(), output.mutable_data_ptr(), call.type(), x.numel(), call.qparams(),
      to_range(quant_min, quant_max), observer_state(min_val, max_val, nonfinite_count),
      static_cast<float>(averaging_constant), scratch.mutable_data_ptr(), call.stream()));
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(torchquant, CUDA, m) { m.impl("fake_quantize_and_observe", fake_quantize_and_observe); }

}  // namespace torchquant::ops
