// torchquant::quantized_resize_linear: linear (1-d) and bilinear (2-d) resize, requantized; source positions as
// PyTorch's. Emitted by the converter. Nearest resize moves codes and needs no op of its own.
#include "ops/quantized_resize_linear.h"

#include "ops/quantized_pool_common.h"

namespace torchquant::ops {
namespace {

constexpr const char* kOp = "quantized_resize_linear";

// Sizes as at::upsample_bilinear2d takes them: given, or the input's times the scale factors, rounded down.
struct ResizeParams {
  at::OptionalIntArrayRef output_size;
  std::optional<at::ArrayRef<double>> scale_factors;

  double scale_factor(size_t i) const { return scale_factors.has_value() ? (*scale_factors)[i] : 0.0; }
};

void check_resize(const at::Tensor& x, const ResizeParams& p) {
  TORCH_CHECK(p.output_size.has_value() != p.scale_factors.has_value(), kOp,
              ": exactly one of output_size and scale_factors must be given");
  if (p.output_size.has_value()) {
    check_pool_input(kOp, x, p.output_size->size(), "output_size");
  } else {
    check_pool_input(kOp, x, p.scale_factors->size(), "scale_factors");
  }
}

std::vector<c10::SymInt> resized_sizes(const at::Tensor& x, const ResizeParams& p) {
  std::vector<c10::SymInt> sizes{x.sym_size(0), x.sym_size(1)};
  for (int64_t i = 0; i + 2 < x.dim(); ++i) {
    const c10::SymInt in = x.sym_size(2 + i);
    TORCH_CHECK(in >= 1, kOp, ": x must have at least one position to resize, got ", x.sym_sizes());
    const auto scaled = [&] {
      return static_cast<int64_t>(static_cast<double>(in.guard_int(__FILE__, __LINE__)) * p.scale_factor(i));
    };
    const int64_t out = p.output_size.has_value() ? (*p.output_size)[i] : scaled();
    TORCH_CHECK(out >= 1, kOp, ": the output must have at least one position in each dimension, got ", out,
                " for dimension ", 2 + i, " of x ", x.sym_sizes());
    sizes.emplace_back(out);
  }
  return sizes;
}

std::vector<numerics::LinearTap> taps_of(const kernels::ResizeAxis& axis) {
  std::vector<numerics::LinearTap> taps;
  for (int64_t o = 0; o < axis.out_size; ++o) taps.push_back(axis.tap(o));
  return taps;
}

at::Tensor quantized_resize_linear(const at::Tensor& x, at::OptionalIntArrayRef output_size, bool align_corners,
                                   std::optional<at::ArrayRef<double>> scale_factors, int64_t x_zero_point,
                                   double multiplier, int64_t output_zero_point, int64_t output_quant_min,
                                   int64_t output_quant_max, at::ScalarType output_dtype) {
  const ResizeParams params{output_size, scale_factors};
  check_resize(x, params);
  const auto output = avg_pool_output(kOp, x, x_zero_point, multiplier, output_zero_point, output_quant_min,
                                      output_quant_max, output_dtype);
  const auto sizes = resized_sizes(x, params);
  if (!x.is_cpu()) return empty_channels_last(sizes, x.options().dtype(output_dtype));

  const at::Tensor out = empty_channels_last(sizes, x.options().dtype(compute_dtype(output_dtype)));
  if (out.numel() == 0) return out.to(output_dtype);
  const at::Tensor dense_x = to_channels_last(x);
  const kernels::ImageLayout from = image_layout(x);
  const kernels::ImageLayout to = image_layout(out);
  const auto rows = taps_of(resize_axis(x, out, align_corners, scale_factors, /*height=*/true));
  const auto columns = taps_of(resize_axis(x, out, align_corners, scale_factors, /*height=*/false));
  const kernels::ResizeLinearArgs args{
      x.size(1),   dense_x.const_data_ptr(), element_type(x.scalar_type()),  from,   static_cast<int32_t>(x_zero_point),
      rows.data(), columns.data(),           static_cast<float>(multiplier), output, out.mutable_data_ptr(),
      to};
  parallel_range(x.size(0) * to.height, to.width * x.size(1) * kElementCost,
                 [&](kernels::IndexRange range) { kernels::quantized_kernels().resize_linear(args, range); });
  return out.to(output_dtype);
}

}  // namespace

kernels::ResizeAxis resize_axis(const at::Tensor& x, const at::Tensor& out, bool align_corners,
                                std::optional<at::ArrayRef<double>> scale_factors, bool height) {
  if (height && x.dim() == 3) return {1, 1, 1.0f, align_corners};
  const int64_t dim = height ? 2 : x.dim() - 1;
  const double factor = scale_factors.has_value() ? (*scale_factors)[dim - 2] : 0.0;
  return {x.size(dim), out.size(dim), numerics::resize_ratio(x.size(dim), out.size(dim), align_corners, factor),
          align_corners};
}

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  define(m, std::string("quantized_resize_linear(Tensor x, int[]? output_size, bool align_corners, "
                        "float[]? scale_factors=None, *, ") +
                kAvgPoolSchema + ") -> Tensor");
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) { m.impl("quantized_resize_linear", quantized_resize_linear); }
TORCH_LIBRARY_IMPL(torchquant, Meta, m) { m.impl("quantized_resize_linear", quantized_resize_linear); }

}  // namespace torchquant::ops
