// CUDA half of quantized_linear_weight_only.
#include <torch/library.h>

#include "kernels/cuda/linear_weight_only.h"
#include "ops/cuda_call.h"
#include "ops/cuda_weight.h"
#include "ops/quantized_common.h"
#include "ops/weight_only_cache.h"

namespace torchquant::ops {
namespace {

constexpr const char* kOp = "quantized_linear_weight_only";

using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                             const std::optional<at::Tensor>&, int64_t, int64_t, std::optional<int64_t>,
                             std::string_view, at::ArrayRef<double>);

// Dense tensors of a stored weight.
struct DenseWeight {
  explicit DenseWeight(const WeightOnlyTensors& tensors)
      : codes(tensors.weight.contiguous()),
        scale(tensors.scale.contiguous()),
        zero_point(tensors.zero_point.has_value() ? tensors.zero_point->to(at::kFloat).contiguous() : at::Tensor()) {}

  kernels::cuda::StoredWeightOnly as_stored() const {
    return {codes.const_data_ptr(), scale.const_data_ptr<float>(),
            zero_point.defined() ? zero_point.const_data_ptr<float>() : nullptr};
  }

  at::Tensor codes;
  at::Tensor scale;
  at::Tensor zero_point;
};

class PackedOnDevice {
 public:
  explicit PackedOnDevice(const WeightOnlyTensors& tensors)
      : scales_(tensors),
        weight_(kOp, kernel(), tensors.weight, [&](cudaStream_t stream) { return pack(tensors, stream); }) {}
  bool are_for(const WeightOnlyTensors& tensors) const { return scales_.are_of(tensors); }
  const at::Tensor& packed() const { return weight_.packed(); }
  int64_t bytes() const { return weight_.bytes(); }
  static const char* kernel() { return "cuda"; }

 private:
  static at::Tensor pack(const WeightOnlyTensors& tensors, cudaStream_t stream) {
    if (tensors.zero_point.has_value()) check_packable_zero_points(kOp, tensors.shape, *tensors.zero_point);
    const DenseWeight dense(tensors);
    const int64_t bytes = kernels::cuda::PackedWeightLayout(tensors.shape).bytes;
    const at::Tensor packed = at::empty({bytes}, tensors.weight.options().dtype(at::kByte));
    C10_CUDA_CHECK(
        kernels::cuda::pack_weight_only(tensors.shape, dense.as_stored(), packed.mutable_data_ptr(), stream));
    return packed;
  }

  ScalesOf scales_;
  CudaWeight weight_;
};

at::Tensor quantized_linear_weight_only(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& weight_scale,
                                        const std::optional<at::Tensor>& weight_zero_point,
                                        const std::optional<at::Tensor>& bias, int64_t weight_bits,
                                        int64_t weight_quant_min, std::optional<int64_t> group_size,
                                        std::string_view activation, at::ArrayRef<double> activation_args) {
  static const auto handle = find_op<Signature>("torchquant::quantized_linear_weight_only");
  const at::Tensor out = check_and_allocate_as(handle, x, weight, weight_scale, weight_zero_point, bias, weight_bits,
                                               weight_quant_min, group_size, activation, activation_args);
  if (out.numel() == 0) return out;
  const c10::cuda::CUDAGuard guard(x.device());
  const int64_t depth = x.size(-1);
  const kernels::WeightOnlyShape shape{out.size(-1),
                                       depth,
                                       group_size.value_or(depth),
                                       static_cast<int32_t>(weight_bits),
                                       static_cast<int32_t>(weight_quant_min),
                                       weight_zero_point.has_value()};
  const WeightOnlyTensors tensors{shape, weight, weight_scale, weight_zero_point};
  const at::Tensor dense_x = to_aligned(x.contiguous());
  const at::Tensor dense_bias = bias.has_value() ? bias->contiguous() : at::Tensor();
  const kernels::cuda::WeightOnlyArgs args{dense_x.const_data_ptr(),
                                           float_type(x),
                                           out.numel() / shape.out_channels,
                                           shape,
                                           bias.has_value() ? dense_bias.const_data_ptr<float>() : nullptr,
                                           activation_spec(kOp, activation, activation_args, 1.0),
                                           out.mutable_data_ptr()};
  const auto stream = c10::cuda::getCurrentCUDAStream(x.get_device());
  if (kernels::cuda::takes_packed(shape)) {
    const auto weights = packed_weight_only<PackedOnDevice>(WeightKey::Maker::kCudaWeightOnly, tensors);
    C10_CUDA_CHECK(kernels::cuda::linear_weight_only(args, weights->packed().const_data_ptr(), stream));
  } else {
    const DenseWeight dense(tensors);
    C10_CUDA_CHECK(kernels::cuda::linear_weight_only_plain(args, dense.as_stored(), stream));
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(torchquant, CUDA, m) { m.impl("quantized_linear_weight_only", quantized_linear_weight_only); }

}  // namespace torchquant::ops
