// The plain loops of kv_cache.h.
#include "kernels/kv_cache.h"

#include <cmath>
#include <type_traits>

#include "numerics/activation.h"
#include "numerics/dynamic.h"
#include "numerics/float8.h"

namespace torchquant::kernels {
namespace {

// How one row is quantized, from its largest_finite_bits(), and what its codes mean.
struct Int8Row {
  explicit Int8Row(int32_t largest) : qparams(numerics::dynamic_qparams(largest)) {}
  float scale() const { return qparams.scale; }
  uint8_t code(float x) const { return static_cast<uint8_t>(numerics::dynamic_code(x, qparams)); }
  static float value(uint8_t code) { return static_cast<float>(static_cast<int8_t>(code)); }

  numerics::QParams qparams;
};

template <typename Format>
struct Float8Row {
  explicit Float8Row(int32_t largest)
      : row_scale(numerics::float8_scale<Format>(largest)), inv_scale(1.0f / row_scale) {}
  float scale() const { return row_scale; }
  uint8_t code(float x) const { return numerics::quantize_float8<Format>(x, inv_scale); }
  static float value(uint8_t code) { return numerics::float8_value<Format>(code); }

  float row_scale;
  float inv_scale;
};

// Calls body with a null pointer to the rows of `code`.
template <typename Body>
void with_rows(KvCode code, const Body& body) {
  switch (code) {
    case KvCode::kInt8:
      return body(static_cast<Int8Row*>(nullptr));
    case KvCode::kFloat8E4M3:
      return body(static_cast<Float8Row<numerics::Float8E4M3>*>(nullptr));
    case KvCode::kFloat8E5M2:
      return body(static_cast<Float8Row<numerics::Float8E5M2>*>(nullptr));
  }
}

template <typename Row>
void append_row(const float* row, int64_t depth, uint8_t* codes, float* scale) {
  const Row quantized(numerics::largest_finite_bits(row, depth));
  for (int64_t d = 0; d < depth; ++d) codes[d] = quantized.code(row[d]);
  *scale = quantized.scale();
}

template <typename Row>
void append_heads(const KvAppendArgs& args, IndexRange heads) {
  const KvCacheShape& shape = args.shape;
  for (int64_t head = heads.begin; head < heads.end; ++head) {
    for (int64_t t = 0; t < args.tokens; ++t) {
      const int64_t from = (head * args.tokens + t) * shape.depth;
      const int64_t to = head * shape.capacity + args.lengths[head / shape.heads] + t;
      append_row<Row>(static_cast<const float*>(args.key) + from, shape.depth, args.key_cache.codes + to * shape.depth,
                      args.key_cache.scale + to);
      append_row<Row>(static_cast<const float*>(args.value) + from, shape.depth,
                      args.value_cache.codes + to * shape.depth, args.value_cache.scale + to);
    }
  }
}

template <typename Row>
float score(const float* query, const uint8_t* key, int64_t depth) {
  float sum = 0.0f;
  for (int64_t d = 0; d < depth; ++d) sum = fmaf(query[d], Row::value(key[d]), sum);
  return sum;
}

template <typename Row>
void attend(const KvAttentionArgs& args, IndexRange heads, float* scratch) {
  const KvCacheShape& shape = args.shape;
  const int64_t shared_by = args.query_heads / shape.heads;
  for (int64_t head = heads.begin; head < heads.end; ++head) {
    const int64_t batch = head / args.query_heads;
    const int64_t first = (batch * shape.heads + head % args.query_heads / shared_by) * shape.capacity;
    const int64_t length = args.lengths[batch];
    const float* query = static_cast<const float*>(args.query) + head * shape.depth;
    float largest = -INFINITY;
    for (int64_t j = 0; j < length; ++j) {
      scratch[j] = score<Row>(query, args.key_cache.codes + (first + j) * shape.depth, shape.depth) *
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
        value = fmaf(scratch[j], Row::value(args.value_cache.codes[(first + j) * shape.depth + d]), value);
      }
      out[d] = length == 0 ? 0.0f : value / sum;
    }
  }
}

}  // namespace

void kv_append(const KvAppendArgs& args, IndexRange heads) {
  with_rows(args.shape.code, [&](auto* tag) { append_heads<std::remove_pointer_t<decltype(tag)>>(args, heads); });
}

void kv_attention(const KvAttentionArgs& args, IndexRange heads, float* scratch) {
  with_rows(args.shape.code, [&](auto* tag) { attend<std::remove_pointer_t<decltype(tag)>>(args, heads, scratch); });
}

}  // namespace torchquant::kernels
