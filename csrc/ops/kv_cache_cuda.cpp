// CUDA half of kv_cache_append and kv_cache_attention.
#include <torch/library.h>

#include "kernels/cuda/kv_cache.h"
#include "ops/cuda_call.h"
#include "ops/kv_cache.h"
#include "ops/kv_cache_args.h"

namespace torchquant::ops {
namespace {

constexpr int64_t kMostOfAnAxis = 65535;  // blocks along the second and the third axis of a grid

// The kernels read and write 16 bytes at a time.
void check_aligned(const char* op, const char* name, const at::Tensor& cache) {
  TORCH_CHECK(reinterpret_cast<uintptr_t>(cache.const_data_ptr()) % 16 == 0, op, ": on CUDA ", name,
              " must begin at a multiple of 16 bytes, and this one is a part of a tensor that does not: allocate it by "
              "itself");
}

void append(const at::Tensor& key, const at::Tensor& value, const at::Tensor& key_cache, const at::Tensor& key_scale,
            const at::Tensor& value_cache, const at::Tensor& value_scale, const at::Tensor& lengths) {
  check_and_allocate<&kv_cache_append>("torchquant::kv_cache_append", key, value, key_cache, key_scale, value_cache,
                                       value_scale, lengths);
  if (key.numel() == 0) return;
  check_aligned("kv_cache_append", "key_cache", key_cache);
  check_aligned("kv_cache_append", "value_cache", value_cache);
  const c10::cuda::CUDAGuard guard(key.device());
  const at::Tensor keys = key.contiguous();
  const at::Tensor values = value.contiguous();
  const kernels::KvAppendArgs args{kv_shape(key_cache),
                                   key.size(2),
                                   keys.const_data_ptr(),
                                   values.const_data_ptr(),
                                   lengths.const_data_ptr<int32_t>(),
                                   kv_cache(key_cache, key_scale),
                                   kv_cache(value_cache, value_scale)};
  C10_CUDA_CHECK(kernels::cuda::kv_append(args, float_type(key), c10::cuda::getCurrentCUDAStream(key.get_device())));
}

at::Tensor attention(const at::Tensor& query, const at::Tensor& key_cache, const at::Tensor& key_scale,
                     const at::Tensor& value_cache, const at::Tensor& value_scale, const at::Tensor& lengths,
                     std::optional<double> scale) {
  const at::Tensor out = check_and_allocate<&kv_cache_attention>("torchquant::kv_cache_attention", query, key_cache,
                                                                 key_scale, value_cache, value_scale, lengths, scale);
  if (out.numel() == 0) return out;
  if (key_cache.size(2) == 0) return out.zero_();
  check_aligned("kv_cache_attention", "key_cache", key_cache);
  check_aligned("kv_cache_attention", "value_cache", value_cache);
  TORCH_CHECK(key_cache.size(0) <= kMostOfAnAxis && key_cache.size(1) <= kMostOfAnAxis,
              "kv_cache_attention: on CUDA batch and heads of the cache must each be at most ", kMostOfAnAxis,
              ", got a key_cache of shape ", key_cache.sizes());
  const c10::cuda::CUDAGuard guard(query.device());
  const at::Tensor queries = query.contiguous();
  const kernels::KvAttentionArgs args{kv_shape(key_cache),
                                      query.size(1),
                                      queries.const_data_ptr(),
                                      kv_cache(key_cache, key_scale),
                                      kv_cache(value_cache, value_scale),
                                      lengths.const_data_ptr<int32_t>(),
                                      kv_scale(key_cache, scale),
                                      out.mutable_data_ptr()};
  TORCH_CHECK(kernels::cuda::attention_takes(args),
              "kv_cache_attention: on CUDA head_dim must be 64 or 128, and at most 16 query heads may share a head of "
              "the cache; got a query of shape ",
              query.sizes(), " and a key_cache of shape ", key_cache.sizes());
  const auto scratch_bytes = static_cast<int64_t>(kernels::cuda::kv_attention_scratch_bytes(args));
  const at::Tensor scratch = at::empty({scratch_bytes}, query.options().dtype(at::kByte));
  C10_CUDA_CHECK(kernels::cuda::kv_attention(args, float_type(query), scratch.mutable_data_ptr(),
                                             c10::cuda::getCurrentCUDAStream(query.get_device())));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(torchquant, CUDA, m) {
  m.impl("kv_cache_append", append);
  m.impl("kv_cache_attention", attention);
}

}  // namespace torchquant::ops
