// Key-value cache in int8 or fp8: what the ops of csrc/ops/kv_cache.cpp store and how one query attends to it. The
// plain loops here define the results; kernels/cuda/kv_cache.cu computes them on CUDA.
//
//   append     each [depth] row of keys and values by its own largest value (numerics/dynamic.h, numerics/float8.h):
//              codes and one scale. k_jd and v_jd are the values of codes
//   attention  s_j = (fmaf chain over d of q_d * k_jd) * (k_scale_j * scale);   p_j = exp_f32(s_j - max s)
//              out_d = (sum over j of (p_j * v_scale_j) * v_jd) / sum of p_j;   0 where there are no keys
//
// The append has the same bits everywhere. Attention sums in another order on CUDA: a named exception.
#pragma once

#include <cstdint>

#include "kernels/quantized_types.h"

namespace torchquant::kernels {

// What a stored byte is.
enum class KvCode : int { kInt8 = 0, kFloat8E4M3 = 1, kFloat8E5M2 = 2 };

struct KvCacheShape {
  int64_t batch;
  int64_t heads;     // of the cache
  int64_t capacity;  // tokens for which there is room
  int64_t depth;     // head_dim
  KvCode code = KvCode::kInt8;
};

// One of the two caches: codes [batch, heads, capacity, depth], scales [batch, heads, capacity].
struct KvCache {
  uint8_t* codes;
  float* scale;
};

// x: [batch, heads, tokens, depth]. Row t of a sequence goes to place lengths[batch] + t of both of its caches.
struct KvAppendArgs {
  KvCacheShape shape;
  int64_t tokens;
  const void* key;
  const void* value;
  const int32_t* lengths;  // [batch]: tokens that are in the cache already
  KvCache key_cache;
  KvCache value_cache;
};

// query, out: [batch, query_heads, depth]; query head h reads head h / (query_heads / heads) of the cache.
struct KvAttentionArgs {
  KvCacheShape shape;
  int64_t query_heads;
  const void* query;
  KvCache key_cache;
  KvCache value_cache;
  const int32_t* lengths;  // [batch]: tokens to attend to, at most capacity
  float scale;
  void* out;
};

// On fp32 tensors, heads [first, last) of batch * heads (append) or batch * query_heads (attention).
void kv_append(const KvAppendArgs& args, IndexRange heads);
// scratch: capacity floats.
void kv_attention(const KvAttentionArgs& args, IndexRange heads, float* scratch);

}  // namespace torchquant::kernels
