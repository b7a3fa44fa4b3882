// torchquant::quantized_lookup: a pointwise function between two quantized tensors as a 256-entry table, which the
// converter computes (ops/lookup_table.h). Also requantizes from one scale to another.
#include <ATen/ops/empty_like.h>

#include "ops/quantized_common.h"

namespace torchquant::ops {
namespace {

constexpr const char* kOp = "quantized_lookup";

at::Tensor quantized_lookup(const at::Tensor& x, const at::Tensor& table, int64_t table_min,
                            at::ScalarType output_dtype) {
  check_codes(kOp, "x", x);
  const int64_t smallest = x.scalar_type() == at::kByte ? 0 : -128;
  TORCH_CHECK(table_min == smallest, kOp, ": table_min must be ", smallest, " for codes of type ",
              dtype_name(x.scalar_type()), ", so that every code has an entry, got ", table_min);
  check_output_dtype(kOp, output_dtype);
  TORCH_CHECK(table.dim() == 1 && table.sym_size(0) == 256 && table.scalar_type() == output_dtype, kOp,
              ": table must have 256 entries of output_dtype ", dtype_name(output_dtype), ", got shape ",
              table.sym_sizes(), " of ", dtype_name(table.scalar_type()));
  check_same_device(kOp, "table", table, x);

  const at::Tensor out = empty_elementwise(x.sym_sizes(), x, x, output_dtype);
  if (!x.is_cpu()) return out;
  const at::Tensor dense_x = match_layout(x, out);
  const at::Tensor dense_table = table.contiguous();
  const kernels::LookupArgs args{dense_x.const_data_ptr(), element_type(x.scalar_type()), dense_table.const_data_ptr(),
                                 static_cast<int64_t>(dense_table.element_size()), out.mutable_data_ptr()};
  parallel_range(out.numel(), 1, [&](kernels::IndexRange range) { kernels::quantized_kernels().lookup(args, range); });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  define(m, "quantized_lookup(Tensor x, Tensor table, *, int table_min, ScalarType output_dtype) -> Tensor");
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) { m.impl("quantized_lookup", quantized_lookup); }
TORCH_LIBRARY_IMPL(torchquant, Meta, m) { m.impl("quantized_lookup", quantized_lookup); }

}  // namespace torchquant::ops
