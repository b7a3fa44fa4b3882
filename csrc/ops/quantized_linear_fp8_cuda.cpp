// CUDA half of quantized_linear_fp8: our kernels quantize the input, torch's _scaled_mm multiplies.
//
// From sm_90 on, a bfloat16 result of float8_e4m3fn comes from _scaled_mm with a scale for each row and channel, which
// adds a bfloat16 bias. Elsewhere _scaled_mm gives the sums in fp32, and a kernel of ours scales them and adds the
// bias.
#include <ATen/ops/_scaled_mm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "kernels/cuda/float8.h"
#include "ops/cuda_call.h"
#include "ops/cuda_device.h"
#include "ops/cuda_weight.h"
#include "ops/float8.h"

namespace torchquant::ops {
namespace {

constexpr const char* kOp = "quantized_linear_fp8";
constexpr int64_t kMultiple = 16;  // of rows and columns of the second operand of _scaled_mm, and of addresses
constexpr int kOldestCapability = 89;
constexpr int kRowwiseCapability = 90;

using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                             const std::optional<at::Tensor>&, std::optional<at::ScalarType>);

int64_t padded(int64_t size) { return (size + kMultiple - 1) / kMultiple * kMultiple; }

int check_capability(const at::Tensor& x) {
  const int capability = cuda_capability()(x.get_device());
  TORCH_CHECK(capability >= kOldestCapability, kOp, ": ", x.device(), " is of compute capability ", capability / 10,
              ".", capability % 10,
              ", and GPUs multiply 8-bit floats from 8.9 (Ada) on: use another QConfig for this one");
  return capability;
}

// Codes as _scaled_mm takes them, padded with zeros: the weight itself where it is that, else a copy kept with it.
at::Tensor padded_codes(const at::Tensor& weight) {
  const int64_t channels = weight.size(0), depth = weight.size(1);
  const bool as_stored = weight.is_contiguous() && channels % kMultiple == 0 && depth % kMultiple == 0 &&
                         reinterpret_cast<uintptr_t>(weight.const_data_ptr()) % kMultiple == 0;
  if (as_stored) return weight;
  const auto cached = cached_weight(weight, {WeightKey::Maker::kCudaFloat8, {channels, depth}}, [&] {
    return std::make_shared<const CudaWeight>(kOp, "cuda", weight, [&](cudaStream_t) {
      const at::Tensor codes = at::zeros({padded(channels), padded(depth)}, weight.options().dtype(at::kByte));
      codes.narrow(0, 0, channels).narrow(1, 0, depth).copy_(weight.view(at::kByte));
      return codes.view(weight.scalar_type());
    });
  });
  return cached->packed();
}

struct Input {
  at::Tensor codes;  // [rows, padded depth]
  at::Tensor scale;  // [rows], or one element
};

Input quantize_input(const at::Tensor& dense, const std::optional<at::Tensor>& x_scale, at::ScalarType dtype) {
  const int64_t depth = dense.size(-1), rows = dense.numel() / depth;
  const auto type = check_float8(kOp, "x_dtype", dtype);
  const at::Tensor codes = at::empty({rows, padded(depth)}, dense.options().dtype(dtype));
  auto* to = static_cast<uint8_t*>(codes.mutable_data_ptr());
  const kernels::cuda::FloatRows from{dense.const_data_ptr(), float_type(dense), rows, depth};
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(dense.get_device());
  if (x_scale.has_value()) {
    C10_CUDA_CHECK(kernels::cuda::quantize_float8(from, {x_scale->const_data_ptr<float>(), false}, type, to,
                                                  padded(depth), stream));
    return {codes, *x_scale};
  }
  const at::Tensor scale = at::empty({rows}, dense.options().dtype(at::kFloat));
  C10_CUDA_CHECK(
      kernels::cuda::quantize_float8_dynamic(from, type, to, padded(depth), scale.mutable_data_ptr<float>(), stream));
  return {codes, scale};
}

// Both scales in the product; out: bfloat16 [rows, channels].
void multiply_rowwise(const Input& input, const at::Tensor& weight, const at::Tensor& weight_scale,
                      const std::optional<at::Tensor>& bias, const at::Tensor& out) {
  const int64_t rows = out.size(0), channels = out.size(1), width = weight.size(0);
  const at::Tensor row_scale = input.scale.reshape({-1, 1}).expand({rows, 1}).contiguous();
  at::Tensor channel_scale = weight_scale.reshape({1, -1}).expand({1, channels});
  at::Tensor narrow_bias = bias.has_value() ? bias->to(at::kBFloat16) : at::Tensor();
  if (width != channels) {
    const auto widened = [&](const at::Tensor& values) {
      const at::Tensor wide = at::zeros({width}, values.options());
      wide.narrow(0, 0, channels).copy_(values.reshape({-1}));
      return wide;
    };
    channel_scale = widened(channel_scale).unsqueeze(0);
    if (narrow_bias.defined()) narrow_bias = widened(narrow_bias);
  }
  const auto bias_argument = narrow_bias.defined() ? std::optional<at::Tensor>(narrow_bias) : std::nullopt;
  at::Tensor product = width == channels ? out : at::empty({rows, width}, out.options());
  at::_scaled_mm_out(product, input.codes, weight.t(), row_scale, channel_scale.contiguous(), bias_argument,
                     std::nullopt, at::kBFloat16);
  if (width != channels) out.copy_(product.narrow(1, 0, channels));
}

// Sums first, scales behind them.
void multiply_and_scale(const Input& input, const at::Tensor& weight, const at::Tensor& weight_scale,
                        const std::optional<at::Tensor>& bias, const at::Tensor& out) {
  const at::Tensor one = at::ones({1}, input.scale.options());
  const at::Tensor sums = at::_scaled_mm(input.codes, weight.t(), one, one, std::nullopt, std::nullopt, at::kFloat);
  const at::Tensor dense_bias = bias.has_value() ? bias->contiguous() : at::Tensor();
  const kernels::cuda::ScaleSumsArgs args{sums.const_data_ptr<float>(),
                                          sums.size(1),
                                          out.size(0),
                                          out.size(1),
                                          {input.scale.const_data_ptr<float>(), input.scale.numel() > 1},
                                          {weight_scale.const_data_ptr<float>(), weight_scale.numel() > 1},
                                          dense_bias.defined() ? dense_bias.const_data_ptr<float>() : nullptr,
                                          out.mutable_data_ptr()};
  C10_CUDA_CHECK(kernels::cuda::scale_sums(args, float_type(out), c10::cuda::getCurrentCUDAStream(out.get_device())));
}

at::Tensor quantized_linear_fp8(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& weight_scale,
                                const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& x_scale,
                                std::optional<at::ScalarType> x_dtype) {
  static const auto handle = find_op<Signature>("torchquant::quantized_linear_fp8");
  const at::Tensor out = check_and_allocate_as(handle, x, weight, weight_scale, bias, x_scale, x_dtype);
  const int capability = check_capability(x);
  if (out.numel() == 0) return out;
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor codes = padded_codes(weight);
  const Input input = quantize_input(x.contiguous(), x_scale, x_dtype.value_or(at::kFloat8_e4m3fn));
  const at::Tensor scale = weight_scale.contiguous();
  const at::Tensor rows = out.view({-1, out.size(-1)});
  const bool e4m3 = weight.scalar_type() == at::kFloat8_e4m3fn && input.codes.scalar_type() == at::kFloat8_e4m3fn;
  const bool rowwise = e4m3 && capability >= kRowwiseCapability && x.scalar_type() == at::kBFloat16;
  if (rowwise) {
    multiply_rowwise(input, codes, scale, bias, rows);
  } else {
    multiply_and_scale(input, codes, scale, bias, rows);
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(torchquant, CUDA, m) { m.impl("quantized_linear_fp8", quantized_linear_fp8); }

}  // namespace torchquant::ops
