// CUDA half of quantize_fp8, quantize_fp8_dynamic, dequantize_fp8 and fake_quantize_fp8.
#include <torch/library.h>

#include "kernels/cuda/float8.h"
#include "ops/cuda_call.h"
#include "ops/float8.h"

namespace torchquant::ops {
namespace {

kernels::cuda::FloatRows float_rows(const at::Tensor& dense) {
  const int64_t depth = dense.size(-1);
  return {dense.const_data_ptr(), float_type(dense), depth == 0 ? 0 : dense.numel() / depth, depth};
}

kernels::cuda::RowScales row_scales(const at::Tensor& dense) {
  return {dense.const_data_ptr<float>(), dense.numel() > 1};
}

cudaStream_t stream_of(const at::Tensor& x) { return c10::cuda::getCurrentCUDAStream(x.get_device()); }

at::Tensor quantize(const at::Tensor& x, const at::Tensor& scale, at::ScalarType dtype) {
  const at::Tensor codes = check_and_allocate<&quantize_fp8>("torchquant::quantize_fp8", x, scale, dtype);
  if (codes.numel() == 0) return codes;
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor dense = x.contiguous(), scales = scale.contiguous();
  C10_CUDA_CHECK(kernels::cuda::quantize_float8(
      float_rows(dense), row_scales(scales), check_float8("quantize_fp8", "dtype", dtype),
      static_cast<uint8_t*>(codes.mutable_data_ptr()), x.size(-1), stream_of(x)));
  return codes;
}

std::tuple<at::Tensor, at::Tensor> quantize_dynamic(const at::Tensor& x, at::ScalarType dtype) {
  auto [codes, scale] = check_and_allocate<&quantize_fp8_dynamic>("torchquant::quantize_fp8_dynamic", x, dtype);
  const c10::cuda::CUDAGuard guard(x.device());
  if (codes.numel() == 0) return {codes, scale.fill_(1.0)};
  const at::Tensor dense = x.contiguous();
  C10_CUDA_CHECK(kernels::cuda::quantize_float8_dynamic(
      float_rows(dense), check_float8("quantize_fp8_dynamic", "dtype", dtype),
      static_cast<uint8_t*>(codes.mutable_data_ptr()), x.size(-1), scale.mutable_data_ptr<float>(), stream_of(x)));
  return {codes, scale};
}

at::Tensor dequantize(const at::Tensor& q, const at::Tensor& scale, at::ScalarType dtype) {
  const at::Tensor y = check_and_allocate<&dequantize_fp8>("torchquant::dequantize_fp8", q, scale, dtype);
  if (y.numel() == 0) return y;
  const c10::cuda::CUDAGuard guard(q.device());
  const at::Tensor codes = q.contiguous(), scales = scale.contiguous();
  C10_CUDA_CHECK(kernels::cuda::dequantize_float8(
      static_cast<const uint8_t*>(codes.const_data_ptr()), q.numel() / q.size(-1), q.size(-1), row_scales(scales),
      check_float8("dequantize_fp8", "q", q.scalar_type()), y.mutable_data_ptr(), float_type(y), stream_of(q)));
  return y;
}

at::Tensor fake_quantize(const at::Tensor& x, const std::optional<at::Tensor>& scale, at::ScalarType dtype) {
  const at::Tensor y = check_and_allocate<&fake_quantize_fp8>("torchquant::fake_quantize_fp8", x, scale, dtype);
  if (y.numel() == 0) return y;
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor dense = x.contiguous();
  const at::Tensor scales = scale.has_value() ? scale->contiguous() : at::Tensor();
  C10_CUDA_CHECK(kernels::cuda::fake_quantize_float8(
      float_rows(dense), scales.defined() ? row_scales(scales) : kernels::cuda::RowScales{nullptr, true},
      check_float8("fake_quantize_fp8", "dtype", dtype), y.mutable_data_ptr(), stream_of(x)));
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(torchquant, CUDA, m) {
  m.impl("quantize_fp8", quantize);
  m.impl("quantize_fp8_dynamic", quantize_dynamic);
  m.impl("dequantize_fp8", dequantize);
  m.impl("fake_quantize_fp8", fake_quantize);
}

}  // namespace torchquant::ops
