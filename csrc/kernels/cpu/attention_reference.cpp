// The reference of kernels/attention.h: its formulas, one query at a time.
#include <cmath>

#include "kernels/cpu/quantized_reference.h"
#include "numerics/activation.h"

namespace torchquant::kernels::reference {
namespace {

float masked_score(const AttentionArgs& args, const AttentionBlock& block, int64_t query, int64_t key) {
  if (args.causal && key > query) return -INFINITY;
  const float* q = args.q.head(block.batch, block.head) + query * args.q.row_stride;
  const float* k = args.k.head(block.batch, block.head) + key * args.k.row_stride;
  float score = 0.0f;
  for (int64_t d = 0; d < args.depth; ++d) score = fmaf(q[d], k[d], score);
  float mask = 0.0f;
  if (args.mask.data != nullptr) {
    mask = args.mask.head(block.batch, block.head)[query * args.mask.row_stride + key * args.mask_column_stride];
  }
  return fmaf(score, args.scale, mask);
}

void attend(const AttentionArgs& args, const AttentionBlock& block, int64_t query, float* weights) {
  float largest = -INFINITY;
  for (int64_t j = 0; j < args.keys; ++j) {
    weights[j] = masked_score(args, block, query, j);
    largest = weights[j] > largest ? weights[j] : largest;
  }
  if (largest == -INFINITY) largest = 0.0f;
  float sum = 0.0f;
  for (int64_t j = 0; j < args.keys; ++j) {
    weights[j] = numerics::exp_f32(weights[j] - largest);
    sum += weights[j];
  }
  const float* v = args.v.head(block.batch, block.head);
  float* out = args.out.head(block.batch, block.head) + query * args.out.row_stride;
  for (int64_t d = 0; d < args.depth; ++d) {
    float value = 0.0f;
    for (int64_t j = 0; j < args.keys; ++j) value = fmaf(weights[j], v[j * args.v.row_stride + d], value);
    out[d] = sum == 0.0f ? 0.0f : value / sum;
  }
}

}  // namespace

void attention(const AttentionArgs& args, IndexRange blocks, float* scratch) {
  for (int64_t b = blocks.begin; b < blocks.end; ++b) {
    const AttentionBlock block = AttentionBlock::of(args, b);
    for (int64_t i = 0; i < block.count; ++i) attend(args, block, block.first + i, scratch);
  }
}

}  // namespace torchquant::kernels::reference
