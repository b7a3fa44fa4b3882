// CUDA half of observe_min_max, observe_moving_average and observe_histogram. Nothing is read back from the device.
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <torch/library.h>

#include <limits>

#include "ops/cuda_call.h"
#include "ops/observe.h"

namespace torchquant::ops {
namespace {

using OptionalInt = std::optional<int64_t>;

// State is in the order of parameters of a contiguous x.
at::Tensor in_state_order(const at::Tensor& x, OptionalInt group_size) { return group_size ? x.contiguous() : x; }

void min_max(const at::Tensor& x, const at::Tensor& min_val, const at::Tensor& max_val,
             const at::Tensor& nonfinite_count, OptionalInt axis, OptionalInt group_size) {
  check_and_allocate<&torchquant::observe_min_max>("torchquant::observe_min_max", x, min_val, max_val, nonfinite_count,
                                                   axis, group_size);
  const CudaCall call(in_state_order(x, group_size), {axis, group_size});
  const at::Tensor scratch = call.reduction_scratch();
  C10_CUDA_CHECK(kernels::cuda::observe_min_max(call.input().const_data_ptr(), call.type(), call.layout(),
                                                observer_state(min_val, max_val, nonfinite_count),
                                                scratch.mutable_data_ptr(), call.stream()));
}

void moving_average(const at::Tensor& x, const at::Tensor& min_val, const at::Tensor& max_val,
                    const at::Tensor& nonfinite_count, OptionalInt axis, OptionalInt group_size,
                    double averaging_constant) {
  check_and_allocate<&torchquant::observe_moving_average>("torchquant::observe_moving_average", x, min_val, max_val,
                                                          nonfinite_count, axis, group_size, averaging_constant);
  const CudaCall call(in_state_order(x, group_size), {axis, group_size});
  const at::Tensor scratch = call.reduction_scratch();
  C10_CUDA_CHECK(kernels::cuda::observe_moving_average(
      call.input().const_data_ptr(), call.type(), call.layout(), observer_state(min_val, max_val, nonfinite_count),
      static_cast<float>(averaging_constant), scratch.mutable_data_ptr(), call.stream()));
}

void histogram(const at::Tensor& x, const at::Tensor& counts, const at::Tensor& min_val, const at::Tensor& max_val,
               const at::Tensor& nonfinite_count, OptionalInt axis) {
  check_and_allocate<&torchquant::observe_histogram>("torchquant::observe_histogram", x, counts, min_val, max_val,
                                                     nonfinite_count, axis);
  if (x.numel() == 0) return;
  const at::Tensor values = (axis ? x.movedim(*axis, 0) : x.unsqueeze(0)).to(at::kFloat).contiguous().flatten(1);
  const CudaCall call(values, {0, std::nullopt});
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const at::Tensor batch_min = at::full({values.size(0)}, kInfinity, values.options());
  const at::Tensor batch_max = at::full({values.size(0)}, -kInfinity, values.options());
  const at::Tensor scratch = call.reduction_scratch();
  C10_CUDA_CHECK(kernels::cuda::observe_min_max(values.const_data_ptr(), call.type(), call.layout(),
                                                observer_state(batch_min, batch_max, nonfinite_count),
                                                scratch.mutable_data_ptr(), call.stream()));
  const at::Tensor moving_counts = at::empty_like(counts);
  const kernels::cuda::Histogram state{counts.mutable_data_ptr<int64_t>(), min_val.mutable_data_ptr<float>(),
                                       max_val.mutable_data_ptr<float>(), values.size(0),
                                       static_cast<int32_t>(counts.size(-1))};
  C10_CUDA_CHECK(kernels::cuda::observe_histogram(values.const_data_ptr<float>(), values.size(1), state,
                                                  batch_min.const_data_ptr<float>(), batch_max.const_data_ptr<float>(),
                                                  moving_counts.mutable_data_ptr<int64_t>(), call.stream()));
}

}  // namespace

TORCH_LIBRARY_IMPL(torchquant, CUDA, m) {
  m.impl("observe_min_max", min_max);
  m.impl("observe_moving_average", moving_average);
  m.impl("observe_histogram", histogram);
}

}  // namespace torchquant::ops
