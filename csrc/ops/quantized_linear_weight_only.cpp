// torchquant::quantized_linear_weight_only: float input, int8 or int4 weights, per channel or in groups along K.
// Emitted by the converter for weight-only layers. Sums in fp32: a named exception to bit-equality (docs/numerics.md).
#include <ATen/ops/empty.h>

#include "kernels/aligned_buffer.h"
#include "ops/quantized_common.h"
#include "ops/weight_only_cache.h"

namespace torchquant::ops {
namespace {

constexpr const char* kOp = "quantized_linear_weight_only";

// Rearranged weights with the scales and zero points that stand among them.
class PackedWeights {
 public:
  explicit PackedWeights(const WeightOnlyTensors& tensors) : scales_(tensors) {
    check_values(kOp, "weight_scale", tensors.scale, /*positive=*/true);
    const kernels::WeightOnlyLayout layout(tensors.shape);
    const at::Tensor codes = tensors.weight.contiguous();
    const at::Tensor scale = tensors.scale.contiguous();
    const at::Tensor zero_point = float_or_undefined(tensors.zero_point);
    bytes_ = layout.blocks * layout.block_bytes;
    data_ = kernels::make_aligned<uint8_t>(bytes_);
    parallel_range(layout.blocks, kernels::kWeightBlock * tensors.shape.depth, [&](kernels::IndexRange blocks) {
      kernels::pack_weight_only(tensors.shape, codes.const_data_ptr(), scale.const_data_ptr<float>(),
                                float_data_or_null(zero_point), blocks, data_.get());
    });
  }
  bool are_for(const WeightOnlyTensors& tensors) const { return scales_.are_of(tensors); }
  static const char* kernel() { return kernels::quantized_kernels().name; }
  const uint8_t* data() const { return data_.get(); }
  int64_t bytes() const { return bytes_; }

 private:
  ScalesOf scales_;
  kernels::AlignedBuffer<uint8_t> data_;
  int64_t bytes_;
};

// The product on rearranged weights, or, where the instruction set has no such kernel, on the weights as they are.
void multiply(const WeightOnlyTensors& tensors, const at::Tensor& x, const at::Tensor& bias,
              const kernels::ActivationSpec& activation, const at::Tensor& out) {
  const kernels::QuantizedKernels& table = kernels::quantized_kernels();
  const kernels::WeightOnlyShape& shape = tensors.shape;
  const int64_t rows = out.numel() / shape.out_channels;
  const int64_t cost = shape.depth * (rows + 1);
  if (table.linear_weight_only_packed != nullptr) {
    const auto packed = packed_weight_only<PackedWeights>(WeightKey::Maker::kWeightOnly, tensors);
    const kernels::PackedWeightOnlyArgs args{
        x.const_data_ptr<float>(),    rows, shape, packed->data(), float_data_or_null(bias), activation,
        out.mutable_data_ptr<float>()};
    parallel_range(kernels::WeightOnlyLayout(shape).blocks, kernels::kWeightBlock * cost,
                   [&](kernels::IndexRange blocks) { table.linear_weight_only_packed(args, blocks); });
    return;
  }
  check_values(kOp, "weight_scale", tensors.scale, /*positive=*/true);
  const at::Tensor codes = tensors.weight.contiguous();
  const at::Tensor scale = tensors.scale.contiguous();
  const at::Tensor zero_point = float_or_undefined(tensors.zero_point);
  const kernels::LinearWeightOnlyArgs args{x.const_data_ptr<float>(),
                                           rows,
                                           {codes.const_data_ptr(), shape.depth, shape.bits, shape.quant_min},
                                           shape.out_channels,
                                           scale.const_data_ptr<float>(),
                                           float_data_or_null(zero_point),
                                           shape.group_size,
                                           float_data_or_null(bias),
                                           activation,
                                           out.mutable_data_ptr<float>()};
  parallel_range(shape.out_channels, cost,
                 [&](kernels::IndexRange channels) { table.linear_weight_only(args, channels); });
}

at::Tensor quantized_linear_weight_only(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& weight_scale,
                                        const std::optional<at::Tensor>& weight_zero_point,
                                        const std::optional<at::Tensor>& bias, int64_t weight_bits,
                                        int64_t weight_quant_min, std::optional<int64_t> group_size,
                                        std::string_view activation, at::ArrayRef<double> activation_args) {
  check_float(kOp, "x", x);
  const auto sizes = check_linear(kOp, x, weight, weight_bits, weight_quant_min);
  check_grouped_scale(kOp, weight_scale, weight_zero_point, sizes.back(), x.sym_size(-1), group_size);
  check_same_device(kOp, "weight_scale", weight_scale, x);
  if (bias.has_value()) {
    check_per_channel(kOp, "bias", *bias, sizes.back());
    check_same_device(kOp, "bias", *bias, x);
  }
  const auto fused_activation = activation_spec(kOp, activation, activation_args, 1.0);

  if (!x.is_cpu()) return at::empty_symint(sizes, x.options());  // Meta, which the CUDA kernel calls too
  const at::Tensor out = at::empty_symint(sizes, x.options().dtype(at::kFloat));
  if (out.numel() == 0) return out.to(x.scalar_type());
  const int64_t depth = x.size(-1);
  const WeightOnlyTensors tensors{{out.size(-1), depth, group_size.value_or(depth), static_cast<int32_t>(weight_bits),
                                   static_cast<int32_t>(weight_quant_min), weight_zero_point.has_value()},
                                  weight,
                                  weight_scale,
                                  weight_zero_point};
  multiply(tensors, x.to(at::kFloat).contiguous(), float_or_undefined(bias), fused_activation, out);
  return out.to(x.scalar_type());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  define(m,
         "quantized_linear_weight_only(Tensor x, Tensor weight, Tensor weight_scale, Tensor? weight_zero_point=None, "
         "Tensor? bias=None, *, int weight_bits=8, int weight_quant_min=-127, int? group_size=None, "
         "str activation=\"none\", float[] activation_args=[]) -> Tensor");
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) { m.impl("quantized_linear_weight_only", quantized_linear_weight_only); }
TORCH_LIBRARY_IMPL(torchquant, Meta, m) { m.impl("quantized_linear_weight_only", quantized_linear_weight_only); }

}  // namespace torchquant::ops
