// torchquant::kv_cache_append and kv_cache_attention: keys and values of past tokens in int8 or fp8, and decode
// attention over them. Called by users' decode loops; ops/kv_cache.h says what they compute.
#include "ops/kv_cache.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <vector>

#include "ops/dispatch.h"
#include "ops/kv_cache_args.h"
#include "ops/quantized_common.h"

namespace torchquant {

void kv_cache_append(const at::Tensor& key, const at::Tensor& value, const at::Tensor& key_cache,
                     const at::Tensor& key_scale, const at::Tensor& value_cache, const at::Tensor& value_scale,
                     const at::Tensor& lengths) {
  static const auto op = ops::find_op<decltype(kv_cache_append)>("torchquant::kv_cache_append");
  op.call(key, value, key_cache, key_scale, value_cache, value_scale, lengths);
}

at::Tensor kv_cache_attention(const at::Tensor& query, const at::Tensor& key_cache, const at::Tensor& key_scale,
                              const at::Tensor& value_cache, const at::Tensor& value_scale, const at::Tensor& lengths,
                              std::optional<double> scale) {
  static const auto op = ops::find_op<decltype(kv_cache_attention)>("torchquant::kv_cache_attention");
  return op.call(query, key_cache, key_scale, value_cache, value_scale, lengths, scale);
}

namespace ops {
namespace {

constexpr const char* kAppend = "kv_cache_append";
constexpr const char* kAttention = "kv_cache_attention";

void check_contiguous(const char* op, const char* argument, const at::Tensor& tensor) {
  TORCH_CHECK(tensor.is_contiguous(), op, ": ", argument, " must be contiguous, got strides ", tensor.sym_strides());
}

// The caches, their scales and `lengths`, all on x's device.
void check_cache(const char* op, const at::Tensor& x, const at::Tensor& key_cache, const at::Tensor& key_scale,
                 const at::Tensor& value_cache, const at::Tensor& value_scale, const at::Tensor& lengths) {
  TORCH_CHECK(key_cache.dim() == 4, op, ": key_cache must have the shape [batch, heads, capacity, head_dim], got ",
              key_cache.sym_sizes());
  TORCH_CHECK(key_cache.sym_size(3) > 0 && key_cache.sym_size(3) % 4 == 0, op,
              ": head_dim must be a multiple of 4, got a key_cache of shape ", key_cache.sym_sizes());
  const auto sizes = key_cache.sym_sizes();
  check_shape(op, "value_cache", value_cache, sizes);
  check_shape(op, "key_scale", key_scale, sizes.slice(0, 3));
  check_shape(op, "value_scale", value_scale, sizes.slice(0, 3));
  check_shape(op, "lengths", lengths, sizes.slice(0, 1));
  const at::ScalarType codes = key_cache.scalar_type();
  TORCH_CHECK(codes == at::kChar || codes == at::kFloat8_e4m3fn || codes == at::kFloat8_e5m2, op,
              ": key_cache must be int8, float8_e4m3fn or float8_e5m2, got ", dtype_name(codes));
  check_dtype(op, "value_cache", value_cache, codes);
  check_dtype(op, "key_scale", key_scale, at::kFloat);
  check_dtype(op, "value_scale", value_scale, at::kFloat);
  check_dtype(op, "lengths", lengths, at::kInt);
  const std::pair<const char*, const at::Tensor*> tensors[] = {{"key_cache", &key_cache},
                                                               {"key_scale", &key_scale},
                                                               {"value_cache", &value_cache},
                                                               {"value_scale", &value_scale},
                                                               {"lengths", &lengths}};
  for (const auto& [name, tensor] : tensors) {
    check_contiguous(op, name, *tensor);
    check_same_device(op, name, *tensor, x);
  }
}

// CPU only. `room` is what a length may be at most.
void check_lengths(const char* op, const at::Tensor& lengths, int64_t room, const char* meaning) {
  for (int64_t b = 0; b < lengths.numel(); ++b) {
    const int32_t length = lengths.const_data_ptr<int32_t>()[b];
    TORCH_CHECK(length >= 0 && length <= room, op, ": lengths must lie in [0, ", room, "] (", meaning, "), got ",
                length, " at index ", b);
  }
}

void append_meta(const at::Tensor& key, const at::Tensor& value, const at::Tensor& key_cache,
                 const at::Tensor& key_scale, const at::Tensor& value_cache, const at::Tensor& value_scale,
                 const at::Tensor& lengths) {
  check_float(kAppend, "key", key);
  check_cache(kAppend, key, key_cache, key_scale, value_cache, value_scale, lengths);
  TORCH_CHECK(key.dim() == 4 && key.sym_size(0) == key_cache.sym_size(0) && key.sym_size(1) == key_cache.sym_size(1) &&
                  key.sym_size(3) == key_cache.sym_size(3),
              kAppend, ": key must have the shape [batch, heads, tokens, head_dim] of a key_cache of shape ",
              key_cache.sym_sizes(), ", got ", key.sym_sizes());
  check_shape(kAppend, "value", value, key.sym_sizes());
  check_dtype(kAppend, "value", value, key.scalar_type());
  check_same_device(kAppend, "value", value, key);
}

void append_cpu(const at::Tensor& key, const at::Tensor& value, const at::Tensor& key_cache,
                const at::Tensor& key_scale, const at::Tensor& value_cache, const at::Tensor& value_scale,
                const at::Tensor& lengths) {
  append_meta(key, value, key_cache, key_scale, value_cache, value_scale, lengths);
  const kernels::KvCacheShape shape = kv_shape(key_cache);
  check_lengths(kAppend, lengths, shape.capacity - key.size(2), "the capacity less the tokens to append");
  const at::Tensor keys = key.to(at::kFloat).contiguous();
  const at::Tensor values = value.to(at::kFloat).contiguous();
  const kernels::KvAppendArgs args{shape,
                                   key.size(2),
                                   keys.const_data_ptr<float>(),
                                   values.const_data_ptr<float>(),
                                   lengths.const_data_ptr<int32_t>(),
                                   kv_cache(key_cache, key_scale),
                                   kv_cache(value_cache, value_scale)};
  parallel_range(shape.batch * shape.heads, args.tokens * shape.depth * kElementCost,
                 [&](kernels::IndexRange heads) { kernels::kv_append(args, heads); });
}

at::Tensor attention_meta(const at::Tensor& query, const at::Tensor& key_cache, const at::Tensor& key_scale,
                          const at::Tensor& value_cache, const at::Tensor& value_scale, const at::Tensor& lengths,
                          std::optional<double> scale) {
  check_float(kAttention, "query", query);
  check_cache(kAttention, query, key_cache, key_scale, value_cache, value_scale, lengths);
  TORCH_CHECK(
      query.dim() == 4 && query.sym_size(0) == key_cache.sym_size(0) && query.sym_size(2) == 1 &&
          query.sym_size(3) == key_cache.sym_size(3) && query.sym_size(1) % key_cache.sym_size(1) == 0,
      kAttention,
      ": query must have the shape [batch, query_heads, 1, head_dim], query_heads a multiple of the heads, of a "
      "key_cache of shape ",
      key_cache.sym_sizes(), ", got ", query.sym_sizes());
  if (scale.has_value()) check_finite(kAttention, "scale", *scale);
  return at::empty_symint(query.sym_sizes(), query.options());
}

at::Tensor attention_cpu(const at::Tensor& query, const at::Tensor& key_cache, const at::Tensor& key_scale,
                         const at::Tensor& value_cache, const at::Tensor& value_scale, const at::Tensor& lengths,
                         std::optional<double> scale) {
  attention_meta(query, key_cache, key_scale, value_cache, value_scale, lengths, scale);
  const kernels::KvCacheShape shape = kv_shape(key_cache);
  check_lengths(kAttention, lengths, shape.capacity, "the capacity");
  const at::Tensor queries = query.to(at::kFloat).contiguous();
  const at::Tensor out = at::empty(query.sizes(), query.options().dtype(at::kFloat));
  const kernels::KvAttentionArgs args{shape,
                                      query.size(1),
                                      queries.const_data_ptr<float>(),
                                      kv_cache(key_cache, key_scale),
                                      kv_cache(value_cache, value_scale),
                                      lengths.const_data_ptr<int32_t>(),
                                      kv_scale(key_cache, scale),
                                      out.mutable_data_ptr<float>()};
  parallel_range(shape.batch * args.query_heads, 2 * shape.capacity * shape.depth, [&](kernels::IndexRange heads) {
    std::vector<float> scratch(shape.capacity);
    kernels::kv_attention(args, heads, scratch.data());
  });
  return out.to(query.scalar_type());
}

using AppendOp = InPlaceOp<kv_cache_append, 2, 3, 4, 5>;

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  define(m,
         "kv_cache_append(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) key_scale, "
         "Tensor(c!) value_cache, Tensor(d!) value_scale, Tensor lengths) -> ()");
  define(m,
         "kv_cache_attention(Tensor query, Tensor key_cache, Tensor key_scale, Tensor value_cache, "
         "Tensor value_scale, Tensor lengths, *, float? scale=None) -> Tensor");
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) {
  m.impl(kAppend, append_cpu);
  m.impl(kAttention, attention_cpu);
}
TORCH_LIBRARY_IMPL(torchquant, Meta, m) {
  m.impl(kAppend, append_meta);
  m.impl(kAttention, attention_meta);
}
TORCH_LIBRARY_IMPL(torchquant, Autograd, m) { m.impl(kAppend, AppendOp::autograd); }
TORCH_LIBRARY_IMPL(torchquant, ADInplaceOrView, m) { m.impl(kAppend, AppendOp::count_mutations); }

}  // namespace ops
}  // namespace torchquant
