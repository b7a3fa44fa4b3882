// torchquant::quantized_matmul: product of two batches of matrices of codes, requantized or scaled to floats. Emitted
// by the converter for products of two activations that the user asked to quantize.
#include "ops/quantized_matmul.h"

#include <ATen/ops/empty.h>

#include "ops/quantized_common.h"

namespace torchquant::ops {
namespace {

constexpr const char* kOp = "quantized_matmul";

// Sizes [..., M, N] of the product of a [..., M, K] and b [..., K, N], whose leading dimensions broadcast.
std::vector<c10::SymInt> check_matrices(const at::Tensor& a, const at::Tensor& b) {
  TORCH_CHECK(a.dim() >= 2 && a.sym_size(-1) >= 1, kOp, ": a must have shape [..., M, K] with K at least 1, got ",
              a.sym_sizes());
  TORCH_CHECK(b.dim() >= 2 && b.sym_size(-2) == a.sym_size(-1), kOp,
              ": b must have shape [..., K, N] with K = ", a.sym_size(-1), ", the last dimension of a, got ",
              b.sym_sizes());
  TORCH_CHECK(a.sym_size(-1) <= kernels::kMaxMatmulDepth, kOp, ": the reduction depth K must be at most ",
              kernels::kMaxMatmulDepth, ", because K * 255 * 255 must stay below 2^31, got ", a.sym_size(-1));
  constexpr int64_t kMostDimensions = 2 + kernels::MatmulBatch::kMostAxes;
  TORCH_CHECK(a.dim() <= kMostDimensions && b.dim() <= kMostDimensions, kOp, ": a and b must have at most ",
              kMostDimensions, " dimensions, got ", a.dim(), " and ", b.dim());
  std::vector<c10::SymInt> sizes(std::max(a.dim(), b.dim()));
  for (int64_t i = 3; i <= static_cast<int64_t>(sizes.size()); ++i) {
    const c10::SymInt of_a = i <= a.dim() ? a.sym_size(-i) : c10::SymInt(1);
    const c10::SymInt of_b = i <= b.dim() ? b.sym_size(-i) : c10::SymInt(1);
    TORCH_CHECK(of_a == of_b || of_a == 1 || of_b == 1, kOp,
                ": the leading dimensions of a and b must be equal or 1, got ", a.sym_sizes(), " and ", b.sym_sizes());
    sizes[sizes.size() - i] = of_a == 1 ? of_b : of_a;
  }
  sizes[sizes.size() - 2] = a.sym_size(-2);
  sizes.back() = b.sym_size(-1);
  return sizes;
}

// Heads that lie side by side in b, [batch, length, heads, channels] in memory, do so in the output: what follows
// attention joins them.
at::Tensor empty_matmul(c10::SymIntArrayRef sizes, const at::Tensor& b, at::ScalarType dtype) {
  const at::TensorOptions options = b.options().dtype(dtype);
  const bool side_by_side =
      sizes.size() == 4 && b.dim() == 4 && b.sym_stride(3) == 1 && b.sym_stride(1) < b.sym_stride(2);
  if (!side_by_side) return at::empty_symint(sizes, options);
  return at::empty_symint({sizes[0], sizes[2], sizes[1], sizes[3]}, options).transpose(1, 2);
}

at::Tensor quantized_matmul(const at::Tensor& a, const at::Tensor& b, double multiplier, int64_t a_zero_point,
                            int64_t b_zero_point, std::string_view activation, at::ArrayRef<double> activation_args,
                            double output_scale, int64_t output_zero_point, int64_t output_quant_min,
                            int64_t output_quant_max, at::ScalarType output_dtype) {
  check_operands(kOp, a, a_zero_point, b, b_zero_point);
  check_finite(kOp, "multiplier", multiplier);
  const auto sizes = check_matrices(a, b);
  const auto output = output_spec(kOp, {activation, activation_args, output_scale, output_zero_point, output_quant_min,
                                        output_quant_max, output_dtype});
  if (!a.is_cpu()) return empty_matmul(sizes, b, output_dtype);

  const at::Tensor out = empty_matmul(sizes, b, compute_dtype(output_dtype));
  if (out.numel() == 0) return out.to(output_dtype);
  const at::Tensor left = matmul_reads_a(a) ? a : a.contiguous();
  const at::Tensor right = matmul_reads_b(b) ? b : b.contiguous();
  kernels::MatmulArgs args = matmul_args(left, right, out);
  args.a = operand(left, a_zero_point);
  args.b = operand(right, b_zero_point);
  args.multiplier = static_cast<float>(multiplier);
  args.output = output;
  args.out = out.mutable_data_ptr();
  parallel_range(kernels::matmul_panels(args), matmul_panel_cost(args),
                 [&](kernels::IndexRange range) { kernels::integer_matmul(kernels::selected_isa())(args, range); });
  return out.to(output_dtype);
}

// An axis of one element has no stride that matters.
bool is_dense(const at::Tensor& x, int64_t dim) { return x.stride(dim) == 1 || x.size(dim) == 1; }

// Of the leading dimension that is the i-th from the end, matrices included; 0 where x repeats.
int64_t batch_stride(const at::Tensor& x, int64_t i) { return i > x.dim() || x.size(-i) == 1 ? 0 : x.stride(-i); }

kernels::MatmulBatch matmul_batch(const at::Tensor& a, const at::Tensor& b, const at::Tensor& out) {
  kernels::MatmulBatch batch{};
  for (int64_t i = out.dim(); i > 2; --i) {
    batch.axis[batch.axes++] = {out.size(-i), batch_stride(a, i), batch_stride(b, i), batch_stride(out, i)};
  }
  return batch;
}

}  // namespace

bool matmul_reads_a(const at::Tensor& a) { return is_dense(a, -1); }
bool matmul_reads_b(const at::Tensor& b) { return is_dense(b, -1) || is_dense(b, -2); }

kernels::MatmulArgs matmul_args(const at::Tensor& a, const at::Tensor& b, const at::Tensor& out) {
  kernels::MatmulArgs args{};
  args.rows = a.size(-2);
  args.depth = a.size(-1);
  args.columns = b.size(-1);
  args.a_row_stride = a.stride(-2);
  args.b_row_stride = b.size(-2) == 1 ? 1 : b.stride(-2);
  args.b_column_stride = b.stride(-1);
  args.out_row_stride = out.stride(-2);
  args.batch = matmul_batch(a, b, out);
  return args;
}

int64_t matmul_panel_cost(const kernels::MatmulArgs& args) {
  constexpr int64_t kProductsAtOnce = 64;
  return std::max<int64_t>(1, args.rows * args.depth * kernels::kMatmulPanel / kProductsAtOnce);
}

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  define(m,
         std::string("quantized_matmul(Tensor a, Tensor b, *, float multiplier, int a_zero_point, int b_zero_point, ") +
             kOutputSchema + ") -> Tensor");
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) { m.impl("quantized_matmul", quantized_matmul); }
TORCH_LIBRARY_IMPL(torchquant, Meta, m) { m.impl("quantized_matmul", quantized_matmul); }

}  // namespace torchquant::ops
