// torchquant::quantized_max_pool: largest code of each window; input and output share their scale. Emitted by the
// converter, which passes quant_min as pad_value.
#include "ops/quantized_pool_common.h"

namespace torchquant::ops {
namespace {

constexpr const char* kOp = "quantized_max_pool";

at::Tensor quantized_max_pool(const at::Tensor& x, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                              at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode, int64_t pad_value) {
  const PoolParams p{kernel_size, stride, padding, dilation, ceil_mode};
  check_pool(kOp, x, p);
  check_zero_point(kOp, "pad_value", pad_value, x.scalar_type());
  const at::Tensor out = empty_channels_last(pool_output_sizes(kOp, x, p), x.options());
  if (!x.is_cpu() || out.numel() == 0) return out;
  const at::Tensor dense_x = to_channels_last(x);
  const kernels::MaxPoolArgs args{
      x.size(1),        max_pool_axis(p, /*height=*/true), max_pool_axis(p, /*height=*/false), dense_x.const_data_ptr(),
      image_layout(x),  element_type(x.scalar_type()),     static_cast<int32_t>(pad_value),    out.mutable_data_ptr(),
      image_layout(out)};
  parallel_range(out.numel() / x.size(1), x.size(1) * args.height.kernel * args.width.kernel,
                 [&](kernels::IndexRange pixels) { kernels::quantized_kernels().max_pool(args, pixels); });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  define(m,
         "quantized_max_pool(Tensor x, *, int[] kernel_size, int[] stride, int[] padding, int[] dilation, "
         "bool ceil_mode=False, int pad_value) -> Tensor");
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) { m.impl("quantized_max_pool", quantized_max_pool); }
TORCH_LIBRARY_IMPL(torchquant, Meta, m) { m.impl("quantized_max_pool", quantized_max_pool); }

}  // namespace torchquant::ops
