// The arguments of the key-value cache ops in the kernels' form. Used by kv_cache.cpp and kv_cache_cuda.cpp, after the
// checks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <optional>

#include "kernels/kv_cache.h"

namespace torchquant::ops {

inline kernels::KvCacheShape kv_shape(const at::Tensor& cache) {
  return {cache.size(0), cache.size(1), cache.size(2), cache.size(3)};
}

inline kernels::KvCache kv_cache(const at::Tensor& codes, const at::Tensor& scale) {
  return {const_cast<int8_t*>(codes.const_data_ptr<int8_t>()), const_cast<float*>(scale.const_data_ptr<float>())};
}

inline float kv_scale(const at::Tensor& cache, std::optional<double> scale) {
  return static_cast<float>(scale.value_or(1.0 / std::sqrt(static_cast<double>(cache.size(3)))));
}

}  // namespace torchquant::ops
