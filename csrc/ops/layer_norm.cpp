// torchquant::layer_norm: layer norm over the last dimension in fp32 whose bits do not depend on the CPU. Emitted by
// the converter in place of aten::layer_norm, whose sums torch takes in the order of the machine's vectors.
#include <ATen/ops/empty.h>
#include <ATen/ops/layer_norm.h>
#include <torch/library.h>

#include "kernels/float_rows.h"
#include "ops/quantized_common.h"

namespace torchquant::ops {
namespace {

bool is_vector_of(const std::optional<at::Tensor>& values, const c10::SymInt& columns) {
  return !values.has_value() ||
         (values->scalar_type() == at::kFloat && values->dim() == 1 && values->sym_size(0) == columns);
}

// Rows of fp32: what the kernel takes. Everything else, and what is wrong, is torch's.
bool kernel_takes(const at::Tensor& x, const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias) {
  return x.dim() > 0 && x.scalar_type() == at::kFloat && x.sym_numel() > 0 && is_vector_of(weight, x.sym_size(-1)) &&
         is_vector_of(bias, x.sym_size(-1));
}

at::Tensor layer_norm_by_torch(const at::Tensor& x, const std::optional<at::Tensor>& weight,
                               const std::optional<at::Tensor>& bias, double eps) {
  TORCH_CHECK_VALUE(x.dim() > 0, "layer_norm: x must have at least one dimension, got a scalar");
  return at::layer_norm_symint(x, {x.sym_size(-1)}, weight, bias, eps);
}

at::Tensor layer_norm(const at::Tensor& x, const std::optional<at::Tensor>& weight,
                      const std::optional<at::Tensor>& bias, double eps) {
  if (!kernel_takes(x, weight, bias)) return layer_norm_by_torch(x, weight, bias, eps);
  const at::Tensor rows = x.contiguous(), w = float_or_undefined(weight), b = float_or_undefined(bias);
  const at::Tensor out = at::empty(x.sizes(), x.options());
  const kernels::LayerNormArgs args{x.size(-1),
                                    rows.const_data_ptr<float>(),
                                    float_data_or_null(w),
                                    float_data_or_null(b),
                                    static_cast<float>(eps),
                                    out.mutable_data_ptr<float>()};
  parallel_range(x.numel() / args.columns, args.columns, [&](kernels::IndexRange range) {
    kernels::float_row_kernels(kernels::selected_isa()).layer_norm(args, range);
  });
  return out;
}

at::Tensor layer_norm_meta(const at::Tensor& x, const std::optional<at::Tensor>& weight,
                           const std::optional<at::Tensor>& bias, double eps) {
  if (!kernel_takes(x, weight, bias)) return layer_norm_by_torch(x, weight, bias, eps);
  return at::empty_symint(x.sym_sizes(), x.options());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  define(m, "layer_norm(Tensor x, Tensor? weight=None, Tensor? bias=None, *, float eps=1e-05) -> Tensor");
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) { m.impl("layer_norm", layer_norm); }
TORCH_LIBRARY_IMPL(torchquant, CUDA, m) { m.impl("layer_norm", layer_norm_by_torch); }
TORCH_LIBRARY_IMPL(torchquant, Meta, m) { m.impl("layer_norm", layer_norm_meta); }

}  // namespace torchquant::ops
