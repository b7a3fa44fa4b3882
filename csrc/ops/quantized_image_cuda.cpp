// CUDA half of quantized_max_pool, quantized_avg_pool, quantized_adaptive_avg_pool and quantized_resize_linear.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "kernels/cuda/image.h"
#include "ops/cuda_call.h"
#include "ops/quantized_pool_common.h"
#include "ops/quantized_resize_linear.h"

namespace torchquant::ops {
namespace {

// x in channels-last order and what the kernel writes: `out`, or an fp32 tensor where the op's output is a half type.
struct ImageCall {
  ImageCall(const char* op, const at::Tensor& given, const at::Tensor& out)
      : guard(given.device()),
        x(to_channels_last(given)),
        written(compute_dtype(out.scalar_type()) == out.scalar_type()
                    ? out
                    : at::empty_like(out, out.options().dtype(at::kFloat))) {
    const kernels::ImageLayout image = image_layout(out);
    const int64_t pieces = kernels::cuda::image_pieces(image.height * image.width, out.size(1));
    TORCH_CHECK(pieces <= kernels::cuda::kMaxImagePieces, op, ": an output image on CUDA must have at most ",
                kernels::cuda::kMaxImagePieces, " pieces of ", kernels::cuda::kPieceChannels,
                " channels of a pixel, got shape ", out.sizes());
  }

  cudaStream_t stream() const { return c10::cuda::getCurrentCUDAStream(x.get_device()); }

  c10::cuda::CUDAGuard guard;
  at::Tensor x;
  at::Tensor written;
};

int64_t height_of(const at::Tensor& image) { return image.dim() == 4 ? image.size(2) : 1; }

at::Tensor quantized_max_pool(const at::Tensor& x, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                              at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode, int64_t pad_value) {
  const at::Tensor out = check_and_allocate<&quantized_max_pool>("torchquant::quantized_max_pool", x, kernel_size,
                                                                 stride, padding, dilation, ceil_mode, pad_value);
  const PoolParams p{kernel_size, stride, padding, dilation, ceil_mode};
  const ImageCall call("quantized_max_pool", x, out);
  const kernels::MaxPoolArgs args{
      x.size(1),        max_pool_axis(p, /*height=*/true), max_pool_axis(p, /*height=*/false), call.x.const_data_ptr(),
      image_layout(x),  element_type(x.scalar_type()),     static_cast<int32_t>(pad_value),    out.mutable_data_ptr(),
      image_layout(out)};
  C10_CUDA_CHECK(kernels::cuda::max_pool(args, x.size(0), call.stream()));
  return out;
}

struct AveragePool {
  const char* op;
  kernels::PoolAxis rows;
  kernels::PoolAxis columns;
  int64_t divisor;
  int64_t x_zero_point;
  double multiplier;
  kernels::OutputSpec output;
};

at::Tensor average(const at::Tensor& x, const at::Tensor& out, const AveragePool& pool) {
  check_window(pool.op, pool.rows, pool.columns);
  const ImageCall call(pool.op, x, out);
  const kernels::AvgPoolArgs args{x.size(1),
                                  nullptr,
                                  nullptr,
                                  pool.divisor,
                                  call.x.const_data_ptr(),
                                  image_layout(x),
                                  element_type(x.scalar_type()),
                                  static_cast<int32_t>(pool.x_zero_point),
                                  static_cast<float>(pool.multiplier),
                                  pool.output,
                                  call.written.mutable_data_ptr(),
                                  image_layout(out)};
  C10_CUDA_CHECK(kernels::cuda::avg_pool(args, pool.rows, pool.columns, x.size(0), call.stream()));
  return call.written.to(out.scalar_type());
}

at::Tensor quantized_avg_pool(const at::Tensor& x, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                              at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                              std::optional<int64_t> divisor_override, int64_t x_zero_point, double multiplier,
                              int64_t output_zero_point, int64_t output_quant_min, int64_t output_quant_max,
                              at::ScalarType output_dtype) {
  const at::Tensor out = check_and_allocate<&quantized_avg_pool>(
      "torchquant::quantized_avg_pool", x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override,
      x_zero_point, multiplier, output_zero_point, output_quant_min, output_quant_max, output_dtype);
  const std::vector<int64_t> dilation(kernel_size.size(), 1);
  const PoolParams p{kernel_size, stride, padding, dilation, ceil_mode};
  const char* op = "quantized_avg_pool";
  return average(x, out,
                 {op, pool_axis(height_of(x), height_of(out), p, /*height=*/true, count_include_pad),
                  pool_axis(x.size(-1), out.size(-1), p, /*height=*/false, count_include_pad),
                  divisor_override.value_or(0), x_zero_point, multiplier,
                  avg_pool_output(op, x, x_zero_point, multiplier, output_zero_point, output_quant_min,
                                  output_quant_max, output_dtype)});
}

at::Tensor quantized_adaptive_avg_pool(const at::Tensor& x, at::IntArrayRef output_size, int64_t x_zero_point,
                                       double multiplier, int64_t output_zero_point, int64_t output_quant_min,
                                       int64_t output_quant_max, at::ScalarType output_dtype) {
  const at::Tensor out = check_and_allocate<&quantized_adaptive_avg_pool>(
      "torchquant::quantized_adaptive_avg_pool", x, output_size, x_zero_point, multiplier, output_zero_point,
      output_quant_min, output_quant_max, output_dtype);
  const char* op = "quantized_adaptive_avg_pool";
  return average(x, out,
                 {op, adaptive_axis(height_of(x), height_of(out)), adaptive_axis(x.size(-1), out.size(-1)),
                  /*divisor=*/0, x_zero_point, multiplier,
                  avg_pool_output(op, x, x_zero_point, multiplier, output_zero_point, output_quant_min,
                                  output_quant_max, output_dtype)});
}

at::Tensor quantized_resize_linear(const at::Tensor& x, at::OptionalIntArrayRef output_size, bool align_corners,
                                   std::optional<at::ArrayRef<double>> scale_factors, int64_t x_zero_point,
                                   double multiplier, int64_t output_zero_point, int64_t output_quant_min,
                                   int64_t output_quant_max, at::ScalarType output_dtype) {
  const at::Tensor out = check_and_allocate<&quantized_resize_linear>(
      "torchquant::quantized_resize_linear", x, output_size, align_corners, scale_factors, x_zero_point, multiplier,
      output_zero_point, output_quant_min, output_quant_max, output_dtype);
  const ImageCall call("quantized_resize_linear", x, out);
  const kernels::ResizeLinearArgs args{
      x.size(1),
      call.x.const_data_ptr(),
      element_type(x.scalar_type()),
      image_layout(x),
      static_cast<int32_t>(x_zero_point),
      nullptr,
      nullptr,
      static_cast<float>(multiplier),
      avg_pool_output("quantized_resize_linear", x, x_zero_point, multiplier, output_zero_point, output_quant_min,
                      output_quant_max, output_dtype),
      call.written.mutable_data_ptr(),
      image_layout(out)};
  C10_CUDA_CHECK(kernels::cuda::resize_linear(args, resize_axis(x, out, align_corners, scale_factors, /*height=*/true),
                                              resize_axis(x, out, align_corners, scale_factors, /*height=*/false),
                                              x.size(0), call.stream()));
  return call.written.to(output_dtype);
}

}  // namespace

TORCH_LIBRARY_IMPL(torchquant, CUDA, m) {
  m.impl("quantized_max_pool", quantized_max_pool);
  m.impl("quantized_avg_pool", quantized_avg_pool);
  m.impl("quantized_adaptive_avg_pool", quantized_adaptive_avg_pool);
  m.impl("quantized_resize_linear", quantized_resize_linear);
}

}  // namespace torchquant::ops
