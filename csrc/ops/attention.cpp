// torchquant::attention: scaled dot-product attention in fp32 whose bits do not depend on the CPU. Emitted by the
// converter in place of aten::scaled_dot_product_attention, whose result torch takes from whatever matrix library it
// finds.
#include "ops/attention.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/quantized_kernels.h"
#include "ops/quantized_common.h"

namespace torchquant::ops {

bool attention_kernel_takes(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
  for (const at::Tensor* t : {&query, &key, &value}) {
    if (t->dim() != 4 || t->scalar_type() != at::kFloat || t->sym_size(3) != query.sym_size(3)) return false;
    if (t->sym_size(0) != query.sym_size(0) || t->sym_size(1) != query.sym_size(1)) return false;
  }
  return key.sym_size(2) == value.sym_size(2) && key.sym_size(2) > 0 && query.sym_numel() > 0;
}

kernels::AttentionArgs attention_args(const at::Tensor& query, const at::Tensor& key, bool is_causal,
                                      std::optional<double> scale) {
  kernels::AttentionArgs args{};
  args.batch = query.size(0);
  args.heads = query.size(1);
  args.queries = query.size(2);
  args.keys = key.size(2);
  args.depth = query.size(3);
  args.causal = is_causal;
  args.scale = static_cast<float>(scale.value_or(1.0 / std::sqrt(static_cast<double>(args.depth))));
  return args;
}

namespace {

at::Tensor dense_rows(const at::Tensor& tensor) { return tensor.stride(-1) == 1 ? tensor : tensor.contiguous(); }

template <typename T>
kernels::HeadRows<T> head_rows(T* data, const at::Tensor& tensor) {
  kernels::HeadRows<T> rows{data};
  set_head_strides(rows, tensor);
  return rows;
}

kernels::HeadRows<const float> read_heads(const at::Tensor& tensor) {
  return head_rows(tensor.const_data_ptr<float>(), tensor);
}

// The mask as numbers that are added to the scores: 0 and -inf for a bool mask, which says what may be seen.
at::Tensor additive_mask(const at::Tensor& mask, at::IntArrayRef sizes) {
  at::Tensor added = mask;
  if (mask.scalar_type() == at::kBool) {
    added = at::zeros_like(mask, at::TensorOptions(at::kFloat))
                .masked_fill_(mask.logical_not(), -std::numeric_limits<float>::infinity());
  }
  return added.to(at::kFloat).expand(sizes);
}

at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const std::optional<at::Tensor>& attn_mask, bool is_causal, std::optional<double> scale) {
  if (!attention_kernel_takes(query, key, value)) {
    return at::scaled_dot_product_attention(query, key, value, attn_mask, 0.0, is_causal, scale);
  }
  TORCH_CHECK_VALUE(!(attn_mask.has_value() && is_causal),
                    "attention: give attn_mask or is_causal=True, not both; got both");
  const at::Tensor q = dense_rows(query), k = dense_rows(key), v = dense_rows(value);
  kernels::AttentionArgs args = attention_args(q, k, is_causal, scale);
  // Heads side by side: what usually follows joins them.
  const at::Tensor out = at::empty({args.batch, args.queries, args.heads, args.depth}, query.options()).transpose(1, 2);
  args.q = read_heads(q);
  args.k = read_heads(k);
  args.v = read_heads(v);
  at::Tensor mask;
  if (attn_mask.has_value()) {
    mask = additive_mask(*attn_mask, {args.batch, args.heads, args.queries, args.keys});
    args.mask = read_heads(mask);
    args.mask_column_stride = mask.stride(3);
  }
  args.out = head_rows(out.mutable_data_ptr<float>(), out);
  const int64_t cost = kernels::kAttentionBlock * args.keys * args.depth;
  parallel_range(kernels::attention_blocks(args), cost, [&](kernels::IndexRange blocks) {
    std::vector<float> scratch(kernels::attention_scratch(args));
    kernels::quantized_kernels().attention(args, blocks, scratch.data());
  });
  return out;
}

// On other devices.
at::Tensor attention_by_torch(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                              const std::optional<at::Tensor>& attn_mask, bool is_causal, std::optional<double> scale) {
  return at::scaled_dot_product_attention(query, key, value, attn_mask, 0.0, is_causal, scale);
}

at::Tensor attention_meta(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const std::optional<at::Tensor>& attn_mask, bool is_causal, std::optional<double> scale) {
  if (!attention_kernel_takes(query, key, value))
    return attention_by_torch(query, key, value, attn_mask, is_causal, scale);
  return at::empty_symint({query.sym_size(0), query.sym_size(2), query.sym_size(1), value.sym_size(3)}, query.options())
      .transpose(1, 2);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  define(m,
         "attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, bool is_causal=False, *, "
         "float? scale=None) -> Tensor");
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) { m.impl("attention", attention); }
TORCH_LIBRARY_IMPL(torchquant, CUDA, m) { m.impl("attention", attention_by_torch); }
TORCH_LIBRARY_IMPL(torchquant, Meta, m) { m.impl("attention", attention_meta); }

}  // namespace torchquant::ops
