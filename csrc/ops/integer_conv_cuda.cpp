// Weights packed once on the device, and launches of integer convolutions; see integer_conv_cuda.h.
#include "ops/integer_conv_cuda.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAGuard.h>

#include <memory>

#include "kernels/cuda/integer_conv.h"
#include "ops/cuda_call.h"
#include "ops/cuda_weight.h"
#include "ops/quantized_common.h"

namespace torchquant::ops {
namespace {

// What the packed form depends on; strides and padding are no part of it.
WeightKey pack_key(const CudaConvCall& call) {
  const kernels::ConvSpec& spec = call.spec;
  return {WeightKey::Maker::kCudaConv,
          {call.weight_bits, call.weight_quant_min, spec.in_channels, spec.out_channels, spec.groups,
           static_cast<int64_t>(spec.transposed), spec.height.kernel, spec.width.kernel}};
}

// `dense` has its rows one after the other where codes are packed.
kernels::cuda::StoredConvWeight stored_weight(const CudaConvCall& call, const at::Tensor& dense) {
  const int64_t width = call.spec.width.kernel;
  kernels::cuda::StoredConvWeight stored{dense.const_data_ptr(),
                                         static_cast<int32_t>(call.weight_bits),
                                         static_cast<int32_t>(call.weight_quant_min),
                                         {dense.stride(0), call.spec.height.kernel * width, width, 1}};
  if (call.weight_bits == 4) return stored;
  // [rows, columns], [rows, columns, width] or [rows, columns, height, width]
  stored.strides[1] = dense.stride(1);
  if (dense.dim() == 4) stored.strides[2] = dense.stride(2);
  if (dense.dim() > 2) stored.strides[3] = dense.stride(-1);
  return stored;
}

at::Tensor packed_weight(const CudaConvCall& call) {
  const char* kernel = kernels::cuda::integer_conv_kernel(call.spec);
  const auto cached = cached_weight(call.weight, pack_key(call), [&] {
    return std::make_shared<const CudaWeight>(call.op, kernel, call.weight, [&](cudaStream_t stream) {
      const at::Tensor dense = call.weight_bits == 4 ? call.weight.contiguous() : call.weight;
      const at::Tensor packed =
          at::empty({kernels::cuda::packed_conv_bytes(call.spec)}, call.weight.options().dtype(at::kByte));
      C10_CUDA_CHECK(
          kernels::cuda::pack_conv(call.spec, stored_weight(call, dense), packed.mutable_data_ptr(), stream));
      return packed;
    });
  });
  return cached->packed();
}

}  // namespace

void run_integer_conv(const CudaConvCall& call, const at::Tensor& out) {
  const int64_t pixels = call.batch * call.out_image.height * call.out_image.width;
  TORCH_CHECK(pixels < kernels::cuda::kMaxConvPixels, call.op, ": x must give fewer than ",
              kernels::cuda::kMaxConvPixels, " output rows or pixels on CUDA, got ", pixels);
  const c10::cuda::CUDAGuard guard(call.x.device());
  const at::Tensor packed = packed_weight(call);
  const at::Tensor x = to_aligned(call.x);
  const at::Tensor multiplier = call.multiplier.contiguous();
  const at::Tensor bias = call.bias.contiguous();
  const auto stored_type = compute_dtype(out.scalar_type());
  const at::Tensor stored =
      stored_type == out.scalar_type() ? out : at::empty_like(out, out.options().dtype(stored_type));
  kernels::Residual residual = call.residual_spec;
  if (call.residual.has_value()) residual.data = call.residual->const_data_ptr();
  const kernels::cuda::IntegerConvArgs args{
      call.spec,
      call.batch,
      call.in_image.height,
      call.in_image.width,
      call.out_image.height,
      call.out_image.width,
      x.const_data_ptr(),
      element_type(call.x.scalar_type()),
      static_cast<int32_t>(call.x_zero_point),
      packed.const_data_ptr(),
      {multiplier.const_data_ptr<float>(), bias.const_data_ptr<float>(), residual, call.output},
      stored.mutable_data_ptr()};
  C10_CUDA_CHECK(kernels::cuda::integer_conv(args, c10::cuda::getCurrentCUDAStream(call.x.get_device())));
  if (!stored.is_same(out)) out.copy_(stored);
}

}  // namespace torchquant::ops
