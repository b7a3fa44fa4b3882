// CUDA half of quantized_linear_dynamic.
#include <torch/library.h>

#include "kernels/cuda/linear_dynamic.h"
#include "ops/cuda_call.h"
#include "ops/cuda_weight.h"
#include "ops/quantized_common.h"

namespace torchquant::ops {
namespace {

constexpr const char* kOp = "quantized_linear_dynamic";
constexpr int64_t kAlignment = 16;  // bytes that the kernels load at once

using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                             int64_t, int64_t, std::string_view, at::ArrayRef<double>);

// Rows of int8 codes as the kernels load them: the weight itself where it is that, else a copy kept with it.
at::Tensor aligned_codes(const at::Tensor& weight, int64_t channels, int64_t depth, int64_t bits, int64_t quant_min) {
  const bool aligned = bits == 8 && weight.is_contiguous() && depth % kAlignment == 0 &&
                       reinterpret_cast<uintptr_t>(weight.const_data_ptr()) % kAlignment == 0;
  if (aligned) return weight;
  const int64_t stride = (depth + kAlignment - 1) / kAlignment * kAlignment;
  const WeightKey key{WeightKey::Maker::kCudaCodes, {channels, depth, bits, quant_min}};
  const auto cached = cached_weight(weight, key, [&] {
    return std::make_shared<const CudaWeight>(kOp, "cuda", weight, [&](cudaStream_t stream) {
      const at::Tensor stored = weight.contiguous();
      const at::Tensor codes = at::empty({channels, stride}, weight.options().dtype(at::kChar));
      const kernels::StoredWeight source{stored.const_data_ptr(), depth, static_cast<int32_t>(bits),
                                         static_cast<int32_t>(quant_min)};
      C10_CUDA_CHECK(kernels::cuda::unpack_weight(source, channels, stride, codes.mutable_data_ptr<int8_t>(), stream));
      return codes;
    });
  });
  return cached->packed();
}

at::Tensor quantized_linear_dynamic(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& weight_scale,
                                    const std::optional<at::Tensor>& bias, int64_t weight_bits,
                                    int64_t weight_quant_min, std::string_view activation,
                                    at::ArrayRef<double> activation_args) {
  static const auto handle = find_op<Signature>("torchquant::quantized_linear_dynamic");
  const at::Tensor out = check_and_allocate_as(handle, x, weight, weight_scale, bias, weight_bits, weight_quant_min,
                                               activation, activation_args);
  if (out.numel() == 0) return out;
  const c10::cuda::CUDAGuard guard(x.device());
  const int64_t depth = x.size(-1);
  const int64_t channels = out.size(-1);
  const int64_t rows = out.numel() / channels;
  TORCH_CHECK(channels <= kernels::cuda::kMaxDynamicChannels, kOp, ": weight must have at most ",
              kernels::cuda::kMaxDynamicChannels, " rows on CUDA, got ", channels);
  const at::Tensor dense_x = x.contiguous();
  const at::Tensor codes = aligned_codes(weight, channels, depth, weight_bits, weight_quant_min);
  const at::Tensor scale = weight_scale.contiguous();
  const at::Tensor dense_bias = bias.has_value() ? bias->contiguous() : at::Tensor();
  const kernels::cuda::LinearDynamicArgs args{dense_x.const_data_ptr(),
                                              float_type(x),
                                              rows,
                                              depth,
                                              channels,
                                              codes.const_data_ptr<int8_t>(),
                                              codes.size(1),
                                              scale.const_data_ptr<float>(),
                                              bias.has_value() ? dense_bias.const_data_ptr<float>() : nullptr,
                                              activation_spec(kOp, activation, activation_args, 1.0),
                                              out.mutable_data_ptr()};
  const auto scratch_bytes = static_cast<int64_t>(kernels::cuda::linear_dynamic_scratch_bytes(rows, depth));
  const at::Tensor scratch = at::empty({scratch_bytes}, x.options().dtype(at::kByte));
  C10_CUDA_CHECK(
      kernels::cuda::linear_dynamic(args, scratch.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream(x.get_device())));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(torchquant, CUDA, m) { m.impl("quantized_linear_dynamic", quantized_linear_dynamic); }

}  // namespace torchquant::ops
