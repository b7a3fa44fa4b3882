// The arguments of the key-value cache ops in the kernels' form. Used by kv_cache.cpp and kv_cache_cuda.cpp, after the
// checks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <optional>

#include "kernels/kv_cache.h"

namespace torchquant::ops {

inline kernels::KvCode kv_code(at::ScalarType type) {
  switch (type) {
    case at::kFloat8_e4m3fn:
      return kernels::KvCode::kFloat8E4M3;
    case at::kFloat8_e5m2:
      return kernels::KvCode::kFloat8E5M2;
    default:
      return kernels::KvCode::kInt8;
  }
}

inline kernels::KvCacheShape kv_shape(const at::Tensor& cache) {
  return {cache.size(0), cache.size(1), cache.size(2), cache.size(3), kv_code(cache.scalar_type())};
}

inline kernels::KvCache kv_cache(const at::Tensor& codes, const at::Tensor& scale) {
  return {static_cast<uint8_t*>(const_cast<void*>(codes.const_data_ptr())),
          const_cast<float*>(scale.const_data_ptr<float>())};
}

inline float kv_scale(const at::Tensor& cache, std::optional<double> scale) {
  return static_cast<float>(scale.value_or(1.0 / std::sqrt(static_cast<double>(cache.size(3)))));
}

}  // namespace torchquant::ops
