// The plain loops of kv_cache.h.
#include "kernels/kv_cache.h"

#include <cmath>

#include "numerics/activation.h"
#include "numerics/dynamic.h"

namespace torchquant::kernels {
namespace {

void append_row(const float* row, int64_t depth, int8_t* codes, float* scale) {
  int32_t largest = 0;
  for (int64_t d = 0; d < depth; ++d) {
    const int32_t magnitude = numerics::finite_magnitude_bits(row[d]);
    largest = magnitude > largest ? magnitude : largest;
  }
  const numerics::QParams qparams = numerics::dynamic_qparams(largest);
  for (int64_t d = 0; d < depth; ++d) codes[d] = static_cast<int8_t>(numerics::dynamic_code(row[d], qparams));
  *scale = qparams.scale;
}

float score(const float* query, const int8_t* key, int64_t depth) {
  float sum = 0.0f;
  for (int64_t d = 0; d < depth; ++d) sum = fmaf(query[d], static_cast<float>(key[d]), sum);
  return sum;
}

}  // namespace

void kv_append(const KvAppendArgs& args, IndexRange heads) {
  const KvCacheShape& shape = args.shape;
  for (int64_t head = heads.begin; head < heads.end; ++head) {
    for (int64_t t = 0; t < args.tokens; ++t) {
      const int64_t from = (head * args.tokens + t) * shape.depth;
      const int64_t to = head * shape.capacity + args.lengths[head / shape.heads] + t;
      append_row(static_cast<const float*>(args.key) + from, shape.depth, args.key_cache.codes + to * shape.depth,
                 args.key_cache.scale + to);
      append_row(static_cast<const float*>(args.value) + from, shape.depth, args.value_cache.codes + to * shape.depth,
                 args.value_cache.scale + to);
    }
  }
}

void kv_attention(const KvAttentionArgs& args, IndexRange heads, float* scratch) {
  const KvCacheShape& shape = args.shape;
  const int64_t shared_by = args.query_heads / shape.heads;
  for (int64_t head = heads.begin; head < heads.end; ++head) {
    const int64_t batch = head / args.query_heads;
    const int64_t first = (batch * shape.heads + head % args.query_heads / shared_by) * shape.capacity;
    const int64_t length = args.lengths[batch];
    const float* query = static_cast<const float*>(args.query) + head * shape.depth;
    float largest = -INFINITY;
    for (int64_t j = 0; j < length; ++j) {
      scratch[j] = score(query, args.key_cache.codes + (first + j) * shape.depth, shape.depth) *
                   (args.key_cache.scale[first + j] * args.scale);
      largest = scratch[j] > largest ? scratch[j] : largest;
    }
    float sum = 0.0f;
    for (int64_t j = 0; j < length; ++j) {
      const float weight = numerics::exp_f32(scratch[j] - largest);
      sum += weight;
      scratch[j] = weight * args.value_cache.scale[first + j];
    }
    float* out = static_cast<float*>(args.out) + head * shape.depth;
    for (int64_t d = 0; d < shape.depth; ++d) {
      float value = 0.0f;
      for (int64_t j = 0; j < length; ++j) {
        value = fmaf(scratch[j], static_cast<float>(args.value_cache.codes[(first + j) * shape.depth + d]), value);
      }
      out[d] = length == 0 ? 0.0f : value / sum;
    }
  }
}

}  // namespace torchquant::kernels
