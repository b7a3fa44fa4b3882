// Attention over vectors of 16 lanes, written once for every vector instruction set (V is the Vector of vector_avx2.h
// or vector_avx512.h). Included by quantized_avx2.cpp and quantized_avx512.cpp.
//
// Lanes are queries while scores are computed and output channels while values are summed, so that no sum runs across
// lanes and each keeps the order of kernels/attention.h.
#pragma once

#include <cmath>

#include "kernels/cpu/lanes.h"
#include "kernels/quantized_kernels.h"
#include "numerics/activation.h"

namespace torchquant::kernels {

template <typename V>
class AttentionVector {
 public:
  TQ_KERNEL static void attention(const AttentionArgs& args, IndexRange blocks, float* scratch) {
    for (int64_t b = blocks.begin; b < blocks.end; ++b) {
      AttentionVector(args, AttentionBlock::of(args, b), scratch).run();
    }
  }

 private:
  using Float = typename V::Float;
  static constexpr int64_t kBlock = kAttentionBlock;
  static_assert(kBlock % (V::kTileVectors * kLanes) == 0);

  TQ_HOST_DEVICE AttentionVector(const AttentionArgs& args, const AttentionBlock& block, float* scratch)
      : args_(args), block_(block), queries_(scratch), scores_(scratch + kBlock * args.depth) {}

  TQ_HOST_DEVICE void run() {
    transpose_queries();
    const int64_t tiled = args_.keys - args_.keys % V::kTileRows;
    for (int64_t j = 0; j < tiled; j += V::kTileRows) score_keys<V::kTileRows>(j);
    for (int64_t j = tiled; j < args_.keys; ++j) score_keys<1>(j);
    if (args_.mask.data != nullptr || args_.causal) mask_scores();
    softmax();
    const int64_t rows = block_.count - block_.count % V::kTileRows;
    for (int64_t i = 0; i < rows; i += V::kTileRows) sum_values<V::kTileRows>(i);
    for (int64_t i = rows; i < block_.count; ++i) sum_values<1>(i);
  }

  // [depth][32]; lanes beyond the last query compute on zeros and are never stored.
  TQ_HOST_DEVICE void transpose_queries() {
    const float* q = args_.q.head(block_.batch, block_.head) + block_.first * args_.q.row_stride;
    for (int64_t d = 0; d < args_.depth; ++d) {
      for (int64_t i = 0; i < kBlock; ++i) {
        queries_[d * kBlock + i] = i < block_.count ? q[i * args_.q.row_stride + d] : 0.0f;
      }
    }
  }

  template <int kRows>
  TQ_HOST_DEVICE void score_keys(int64_t j) {
    for (int64_t i = 0; i < kBlock; i += V::kTileVectors * kLanes) score_tile<kRows>(j, i);
  }

  // Scores of kRows keys from key j on and of the queries of a tile from query i of the block on; scaled, unless a mask
  // will be added with the scale in one fmaf.
  template <int kRows>
  TQ_HOST_DEVICE void score_tile(int64_t j, int64_t i) {
    const int64_t step = args_.k.row_stride;
    const float* k = args_.k.head(block_.batch, block_.head) + j * step;
    const float* q = queries_ + i;
    Float acc[kRows][V::kTileVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < V::kTileVectors; ++c) acc[r][c] = V::set(0.0f);
    }
    for (int64_t d = 0; d < args_.depth; ++d) {
      Float queries[V::kTileVectors];
#pragma GCC unroll 2
      for (int c = 0; c < V::kTileVectors; ++c) queries[c] = V::load(q + d * kBlock + c * kLanes, AllLanes{});
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Float key = V::set(k[r * step + d]);
#pragma GCC unroll 2
        for (int c = 0; c < V::kTileVectors; ++c) acc[r][c] = V::fma(queries[c], key, acc[r][c]);
      }
    }
    const Float scale = V::set(args_.mask.data != nullptr ? 1.0f : args_.scale);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < V::kTileVectors; ++c) {
        V::store(scores_ + (j + r) * kBlock + i + c * kLanes, V::mul(acc[r][c], scale), AllLanes{});
      }
    }
  }

  TQ_HOST_DEVICE void mask_scores() {
    const float* mask = args_.mask.data == nullptr ? nullptr : args_.mask.head(block_.batch, block_.head);
    for (int64_t j = 0; j < args_.keys; ++j) {
      float* scores = scores_ + j * kBlock;
      for (int64_t i = 0; i < block_.count; ++i) {
        const int64_t query = block_.first + i;
        if (mask != nullptr) {
          const float value = mask[query * args_.mask.row_stride + j * args_.mask_column_stride];
          scores[i] = std::fmaf(scores[i], args_.scale, value);
        }
        if (args_.causal && j > query) scores[i] = -INFINITY;
      }
    }
  }

  // Scores to exp(score - largest), and the sums of these.
  TQ_HOST_DEVICE void softmax() {
    alignas(64) float largest[kBlock];
    for (float& value : largest) value = -INFINITY;
    for (int64_t j = 0; j < args_.keys; ++j) {
      const float* scores = scores_ + j * kBlock;
      for (int64_t i = 0; i < kBlock; ++i) largest[i] = scores[i] > largest[i] ? scores[i] : largest[i];
    }
    for (float& value : largest) value = value == -INFINITY ? 0.0f : value;
    for (float& sum : sums_) sum = 0.0f;
    for (int64_t j = 0; j < args_.keys; ++j) {
      float* scores = scores_ + j * kBlock;
      for (int64_t i = 0; i < kBlock; ++i) scores[i] = numerics::exp_f32(scores[i] - largest[i]);
      for (int64_t i = 0; i < kBlock; ++i) sums_[i] += scores[i];
    }
  }

  // Outputs of kRows queries from query i of the block on.
  template <int kRows>
  TQ_HOST_DEVICE void sum_values(int64_t i) {
    int64_t d = 0;
    for (; d + V::kTileVectors * kLanes <= args_.depth; d += V::kTileVectors * kLanes) {
      sum_channels<kRows, V::kTileVectors>(i, d, AllLanes{});
    }
    for (; d + kLanes <= args_.depth; d += kLanes) sum_channels<kRows, 1>(i, d, AllLanes{});
    if (d < args_.depth) sum_channels<kRows, 1>(i, d, FirstLanes{static_cast<int>(args_.depth - d)});
  }

  template <int kRows, int kVectors, typename Lanes>
  TQ_HOST_DEVICE void sum_channels(int64_t i, int64_t d, Lanes lanes) {
    const float* v = args_.v.head(block_.batch, block_.head) + d;
    const float* weights = scores_ + i;
    Float acc[kRows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kVectors; ++c) acc[r][c] = V::set(0.0f);
    }
    for (int64_t j = 0; j < args_.keys; ++j) {
      Float values[kVectors];
#pragma GCC unroll 4
      for (int c = 0; c < kVectors; ++c) values[c] = V::load(v + c * kLanes, lanes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Float weight = V::set(weights[r]);
#pragma GCC unroll 4
        for (int c = 0; c < kVectors; ++c) acc[r][c] = V::fma(weight, values[c], acc[r][c]);
      }
      v += args_.v.row_stride;
      weights += kBlock;
    }
    float* out = args_.out.head(block_.batch, block_.head) + (block_.first + i) * args_.out.row_stride + d;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kVectors; ++c) {
        const Float value = sums_[i + r] == 0.0f ? V::set(0.0f) : V::div(acc[r][c], V::set(sums_[i + r]));
        V::store(out + r * args_.out.row_stride + c * kLanes, value, lanes);
      }
    }
  }

  const AttentionArgs& args_;
  AttentionBlock block_;
  float* queries_;
  float* scores_;
  alignas(64) float sums_[kBlock];
};

}  // namespace torchquant::kernels
