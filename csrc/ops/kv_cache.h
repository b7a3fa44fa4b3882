// C++ entry points of the key-value cache ops; csrc/ops/kv_cache.cpp implements them.
//
// A cache holds keys and values of past tokens in int8, float8_e4m3fn or float8_e5m2, both alike, quantized per token
// and head (symmetric, absmax over 127, 448 or 57344, of the row's finite values): codes [batch, heads, capacity,
// head_dim] and scales [batch, heads, capacity], fp32, for keys and for values. All are contiguous, allocated by the
// caller; head_dim is a multiple of 4. `lengths` is int32 [batch], on the device of the cache: how many tokens of each
// sequence are in it. Whoever appends adds to it.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "export.h"

namespace torchquant {

// Stores key and value (fp32, bf16 or fp16, [batch, heads, tokens, head_dim]) at places lengths[b] to lengths[b] +
// tokens - 1 of each sequence. Where that is beyond the capacity: an error on the CPU, before anything is written; on
// CUDA, which does not read lengths back, those tokens are not stored.
TQ_API void kv_cache_append(const at::Tensor& key, const at::Tensor& value, const at::Tensor& key_cache,
                            const at::Tensor& key_scale, const at::Tensor& value_cache, const at::Tensor& value_scale,
                            const at::Tensor& lengths);

// softmax(q k^T * scale) v over the first lengths[b] tokens of each sequence, for one query token: query and result are
// [batch, query_heads, 1, head_dim] in fp32, bf16 or fp16. query_heads is a multiple of heads, and neighbouring query
// heads share a head of the cache. `scale` is 1 / sqrt(head_dim) by default. A sequence of length 0 gives zeros. A
// length beyond the capacity is an error on the CPU and counts as the capacity on CUDA, where head_dim is 64 or 128 and
// at most 16 query heads share one of the cache.
TQ_API at::Tensor kv_cache_attention(const at::Tensor& query, const at::Tensor& key_cache, const at::Tensor& key_scale,
                                     const at::Tensor& value_cache, const at::Tensor& value_scale,
                                     const at::Tensor& lengths, std::optional<double> scale = std::nullopt);

}  // namespace torchquant
