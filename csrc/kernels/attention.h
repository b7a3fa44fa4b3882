// Attention in fp32 with one order of sums, so that every instruction set gives the same bits: what follows it is
// quantized, and codes must not depend on the machine. Called by csrc/ops/attention.cpp and by islands.
//
//   s_j = fmaf chain over d = 0, 1, ... of q_d * k_jd, from 0;   t_j = fmaf(s_j, scale, mask_j)
//   m = max t_j (0 where all are -inf);   p_j = exp_f32(t_j - m);   l = sum of p_j in the order of j
//   out_d = (fmaf chain over j of p_j * v_jd, from 0) / l;   0 where l is 0
#pragma once

#include <cstdint>

#include "kernels/quantized_types.h"

namespace torchquant::kernels {

// A [batch, heads, rows, depth] tensor whose last dimension is dense. Strides in elements; 0 repeats.
template <typename T>
struct HeadRows {
  T* data = nullptr;
  int64_t batch_stride = 0;
  int64_t head_stride = 0;
  int64_t row_stride = 0;

  T* head(int64_t batch, int64_t head) const { return data + batch * batch_stride + head * head_stride; }
};

struct AttentionArgs {
  int64_t batch;
  int64_t heads;
  int64_t queries;
  int64_t keys;   // at least 1
  int64_t depth;  // of q, k and v
  HeadRows<const float> q;
  HeadRows<const float> k;
  HeadRows<const float> v;
  HeadRows<const float> mask;  // added to the scaled scores; data is null for none
  int64_t mask_column_stride;
  bool causal;                 // query i sees keys [0, i]
  float scale;
  HeadRows<float> out;
};

// Queries are worked on in blocks of this many, and a thread needs attention_scratch() floats for one.
inline constexpr int64_t kAttentionBlock = 32;
constexpr int64_t attention_blocks(const AttentionArgs& args) {
  return args.batch * args.heads * ((args.queries + kAttentionBlock - 1) / kAttentionBlock);
}
constexpr int64_t attention_scratch(const AttentionArgs& args) { return kAttentionBlock * (args.depth + args.keys); }

// The queries of block `block` of all.
struct AttentionBlock {
  int64_t batch;
  int64_t head;
  int64_t first;
  int64_t count;

  static constexpr AttentionBlock of(const AttentionArgs& args, int64_t block) {
    const int64_t each = (args.queries + kAttentionBlock - 1) / kAttentionBlock;
    const int64_t head = block / each;
    const int64_t first = block % each * kAttentionBlock;
    const int64_t left = args.queries - first;
    return {head / args.heads, head % args.heads, first, left < kAttentionBlock ? left : kAttentionBlock};
  }
};

}  // namespace torchquant::kernels
