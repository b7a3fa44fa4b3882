// Key-value cache in int8 or fp8 on CUDA: kernels/kv_cache.h's append and attention for 16- and 32-bit tensors. Called
// by csrc/ops/kv_cache_cuda.cpp.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/fake_quantize.h"
#include "kernels/kv_cache.h"

namespace torchquant::kernels::cuda {

// Tokens beyond the capacity are not stored.
cudaError_t kv_append(const KvAppendArgs& args, FloatType type, cudaStream_t stream);

// What a block of the attention computes: the query heads of one head of the cache, at most 16 of them.
constexpr bool attention_takes(const KvAttentionArgs& args) {
  return (args.shape.depth == 64 || args.shape.depth == 128) && args.query_heads / args.shape.heads <= 16;
}

// Bytes that kv_attention needs beside its arguments, aligned to 16.
size_t kv_attention_scratch_bytes(const KvAttentionArgs& args);

// lengths are clamped to [0, capacity]. attention_takes(args).
cudaError_t kv_attention(const KvAttentionArgs& args, FloatType type, void* scratch, cudaStream_t stream);

}  // namespace torchquant::kernels::cuda
