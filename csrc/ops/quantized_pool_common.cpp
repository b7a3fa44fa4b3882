// Shapes and checks of the pooling ops; see quantized_pool_common.h.
#include "ops/quantized_pool_common.h"

#include <limits>

namespace torchquant::ops {
namespace {

void check_list(const char* op, const char* name, at::IntArrayRef values, size_t length, int64_t at_least) {
  TORCH_CHECK(values.size() == length, op, ": ", name, " must have ", length,
              " values, one per entry of kernel_size, got ", values);
  for (int64_t value : values) {
    TORCH_CHECK(value >= at_least, op, ": ", name, " must be at least ", at_least, ", got ", values);
  }
}

// Windows as PyTorch counts them: ceil_mode keeps a partial last window, but none that starts in the padding.
c10::SymInt pool_output_size(const c10::SymInt& in, const PoolParams& p, size_t i) {
  const int64_t reach = p.dilation[i] * (p.kernel_size[i] - 1) + 1;
  const c10::SymInt room = in + 2 * p.padding[i] - reach + (p.ceil_mode ? p.stride[i] - 1 : 0);
  if (room < 0) return 0;
  c10::SymInt out = room / p.stride[i] + 1;
  if (p.ceil_mode && (out - 1) * p.stride[i] >= in + p.padding[i]) out = out - 1;
  return out;
}

int64_t largest_window(const kernels::PoolAxis& axis) {
  int64_t largest = 0;
  for (const auto& window : windows_of(axis)) largest = std::max(largest, window.end - window.begin);
  return largest;
}

}  // namespace

void check_pool_input(const char* op, const at::Tensor& x, size_t length, const char* length_argument) {
  check_codes(op, "x", x);
  TORCH_CHECK(length == 1 || length == 2, op, ": ", length_argument, " must have 1 or 2 values, got ", length);
  TORCH_CHECK(x.dim() == static_cast<int64_t>(length) + 2, op, ": x must have ", length + 2,
              " dimensions (batch, channels, ", length == 1 ? "length" : "height, width", "), got shape ",
              x.sym_sizes());
}

void check_pool(const char* op, const at::Tensor& x, const PoolParams& p) {
  const size_t length = p.kernel_size.size();
  check_pool_input(op, x, length, "kernel_size");
  check_list(op, "kernel_size", p.kernel_size, length, 1);
  check_list(op, "stride", p.stride, length, 1);
  check_list(op, "padding", p.padding, length, 0);
  check_list(op, "dilation", p.dilation, length, 1);
  for (size_t i = 0; i < length; ++i) {
    TORCH_CHECK(2 * p.padding[i] <= p.kernel_size[i], op, ": padding must be at most half of kernel_size ",
                p.kernel_size, ", got ", p.padding);
  }
}

std::vector<c10::SymInt> pool_output_sizes(const char* op, const at::Tensor& x, const PoolParams& p) {
  std::vector<c10::SymInt> sizes{x.sym_size(0), x.sym_size(1)};
  for (size_t i = 0; i < p.kernel_size.size(); ++i) {
    const c10::SymInt out = pool_output_size(x.sym_size(2 + static_cast<int64_t>(i)), p, i);
    TORCH_CHECK(out >= 1, op, ": the window must fit into x with its padding, got x ", x.sym_sizes(), ", kernel_size ",
                p.kernel_size, ", padding ", p.padding, ", dilation ", p.dilation);
    sizes.push_back(out);
  }
  return sizes;
}

kernels::PoolAxis pool_axis(int64_t in_size, int64_t out_size, const PoolParams& p, bool height, bool include_pad) {
  const size_t dims = p.kernel_size.size();
  if (height && dims == 1) return {1, 1, 1};
  const size_t i = height ? 0 : dims - 1;
  return {in_size, out_size, p.kernel_size[i], p.stride[i], p.padding[i], include_pad};
}

kernels::PoolAxis adaptive_axis(int64_t in_size, int64_t out_size) { return {in_size, out_size}; }

kernels::MaxPoolAxis max_pool_axis(const PoolParams& p, bool height) {
  const size_t dims = p.kernel_size.size();
  if (height && dims == 1) return {1, 1, 0, 1};
  const size_t i = height ? 0 : dims - 1;
  return {p.kernel_size[i], p.stride[i], p.padding[i], p.dilation[i]};
}

std::vector<kernels::PoolWindow> windows_of(const kernels::PoolAxis& axis) {
  std::vector<kernels::PoolWindow> windows;
  for (int64_t o = 0; o < axis.out_size; ++o) windows.push_back(axis.window(o));
  return windows;
}

kernels::OutputSpec avg_pool_output(const char* op, const at::Tensor& x, int64_t x_zero_point, double multiplier,
                                    int64_t output_zero_point, int64_t output_quant_min, int64_t output_quant_max,
                                    at::ScalarType output_dtype) {
  check_zero_point(op, "x_zero_point", x_zero_point, x.scalar_type());
  check_finite(op, "multiplier", multiplier);
  return output_spec(op, {"none", {}, 1.0, output_zero_point, output_quant_min, output_quant_max, output_dtype});
}

int64_t check_window(const char* op, const kernels::PoolAxis& rows, const kernels::PoolAxis& columns) {
  const int64_t window = largest_window(rows) * largest_window(columns);
  TORCH_CHECK(window <= std::numeric_limits<int32_t>::max() / 255, op,
              ": a window must hold at most 8421504 elements, because its sum must stay below 2^31, got ", window);
  return window;
}

at::Tensor run_avg_pool(const char* op, const at::Tensor& x, const kernels::PoolAxis& rows,
                        const kernels::PoolAxis& columns, c10::SymIntArrayRef sizes, int64_t divisor,
                        int64_t x_zero_point, double multiplier, const kernels::OutputSpec& output,
                        at::ScalarType output_dtype) {
  const int64_t window = check_window(op, rows, columns);
  const at::Tensor out = empty_channels_last(sizes, x.options().dtype(compute_dtype(output_dtype)));
  if (out.numel() == 0) return out.to(output_dtype);
  const at::Tensor dense_x = to_channels_last(x);
  const auto row_windows = windows_of(rows), column_windows = windows_of(columns);
  const kernels::AvgPoolArgs args{x.size(1),
                                  row_windows.data(),
                                  column_windows.data(),
                                  divisor,
                                  dense_x.const_data_ptr(),
                                  image_layout(x),
                                  element_type(x.scalar_type()),
                                  static_cast<int32_t>(x_zero_point),
                                  static_cast<float>(multiplier),
                                  output,
                                  out.mutable_data_ptr(),
                                  image_layout(out)};
  parallel_range(out.numel() / x.size(1), x.size(1) * (window + kElementCost),
                 [&](kernels::IndexRange pixels) { kernels::quantized_kernels().avg_pool(args, pixels); });
  return out.to(output_dtype);
}

}  // namespace torchquant::ops
