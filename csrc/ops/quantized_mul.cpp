// torchquant::quantized_mul: product of two code tensors, requantized; operands broadcast. Emitted by the converter,
// for example for squeeze-and-excitation.
#include <ATen/ExpandUtils.h>

#include "ops/quantized_common.h"

namespace torchquant::ops {
namespace {

constexpr const char* kOp = "quantized_mul";

at::Tensor quantized_mul(const at::Tensor& a, const at::Tensor& b, double multiplier, int64_t a_zero_point,
                         int64_t b_zero_point, std::string_view activation, at::ArrayRef<double> activation_args,
                         double output_scale, int64_t output_zero_point, int64_t output_quant_min,
                         int64_t output_quant_max, at::ScalarType output_dtype) {
  check_operands(kOp, a, a_zero_point, b, b_zero_point);
  check_finite(kOp, "multiplier", multiplier);
  const auto output = output_spec(kOp, {activation, activation_args, output_scale, output_zero_point, output_quant_min,
                                        output_quant_max, output_dtype});
  const auto sizes = at::infer_size_symdimvector(a.sym_sizes(), b.sym_sizes());
  if (!a.is_cpu()) return empty_elementwise(sizes, a, b, output_dtype);

  const at::Tensor out = empty_elementwise(sizes, a, b, compute_dtype(output_dtype));
  const at::Tensor dense_a = match_layout(a, out);
  const at::Tensor dense_b = match_layout(b, out);
  const kernels::MulArgs args{operand(dense_a, a_zero_point), operand(dense_b, b_zero_point),
                              static_cast<float>(multiplier), output, out.mutable_data_ptr()};
  parallel_range(out.numel(), kElementCost,
                 [&](kernels::IndexRange range) { kernels::quantized_kernels().mul(args, range); });
  return out.to(output_dtype);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  define(m, std::string("quantized_mul(Tensor a, Tensor b, *, float multiplier, int a_zero_point, int b_zero_point, ") +
                kOutputSchema + ") -> Tensor");
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) { m.impl("quantized_mul", quantized_mul); }
TORCH_LIBRARY_IMPL(torchquant, Meta, m) { m.impl("quantized_mul", quantized_mul); }

}  // namespace torchquant::ops
