// Rearranged weights of weight-only layers, in which scales and zero points stand among the codes: kept with the weight
// for the scales of the last call. Used by both halves of quantized_linear_weight_only.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/aminmax.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/round.h>

#include <memory>
#include <mutex>
#include <optional>

#include "kernels/weight_only.h"
#include "ops/weight_cache.h"

namespace torchquant::ops {

// What a layer's weight consists of.
struct WeightOnlyTensors {
  kernels::WeightOnlyShape shape;
  at::Tensor weight;
  at::Tensor scale;
  std::optional<at::Tensor> zero_point;
};

// Packed kernels on CUDA subtract zero points in 16-bit floats, exactly for those that are codes. Reads the values, so
// the host waits for them.
inline void check_packable_zero_points(const char* op, const kernels::WeightOnlyShape& shape,
                                       const at::Tensor& zero_point) {
  const int64_t lowest = shape.bits == 4 ? shape.quant_min : -128;
  const int64_t highest = lowest + (shape.bits == 4 ? 15 : 255);
  const at::Tensor values = zero_point.to(at::kDouble);
  const auto [least, most] = at::aminmax(values);  // NaN if one is NaN
  const bool inside =
      least.item<double>() >= static_cast<double>(lowest) && most.item<double>() <= static_cast<double>(highest);
  TORCH_CHECK(inside && at::equal(values, at::round(values)), op,
              ": on CUDA weight_zero_point must hold whole numbers in [", lowest, ", ", highest, "] for ", shape.bits,
              "-bit weights, got values from ", least.item<double>(), " to ", most.item<double>());
}

// A tensor's contents, as far as they can be told apart without reading them. It holds the memory, so that no other
// tensor can come to lie at the same address.
class TensorContents {
 public:
  explicit TensorContents(const std::optional<at::Tensor>& tensor)
      : tensor_(tensor.has_value() ? tensor->detach() : at::Tensor()), version_(version_of(tensor)) {}
  bool are_of(const std::optional<at::Tensor>& other) const {
    if (!other.has_value() || !tensor_.defined()) return other.has_value() == tensor_.defined();
    return tensor_.const_data_ptr() == other->const_data_ptr() && tensor_.scalar_type() == other->scalar_type() &&
           tensor_.sizes() == other->sizes() && tensor_.strides() == other->strides() && version_ == version_of(other);
  }

 private:
  static int64_t version_of(const std::optional<at::Tensor>& tensor) {
    return tensor.has_value() && !tensor->is_inference() ? tensor->_version() : 0;
  }
  at::Tensor tensor_;
  int64_t version_;
};

// Which scales and zero points something was made with.
class ScalesOf {
 public:
  explicit ScalesOf(const WeightOnlyTensors& tensors) : scale_(tensors.scale), zero_point_(tensors.zero_point) {}
  bool are_of(const WeightOnlyTensors& tensors) const {
    return scale_.are_of(tensors.scale) && zero_point_.are_of(tensors.zero_point);
  }

 private:
  TensorContents scale_;
  TensorContents zero_point_;
};

// What is kept with a weight: the form that was made for the scales of the last call. PACKED is made of tensors, knows
// what scales it was made with (are_for), its kernel() and its bytes().
template <typename PACKED>
class LatestPacked final : public CachedWeight {
 public:
  explicit LatestPacked(const WeightOnlyTensors& tensors) : latest_(std::make_shared<PACKED>(tensors)) {}

  std::shared_ptr<const PACKED> get(const WeightOnlyTensors& tensors) const {
    const std::lock_guard lock(mutex_);
    if (!latest_->are_for(tensors)) latest_ = std::make_shared<PACKED>(tensors);
    return latest_;
  }
  const char* kernel() const override { return PACKED::kernel(); }
  int64_t bytes() const override {
    const std::lock_guard lock(mutex_);
    return latest_->bytes();
  }

 private:
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const PACKED> latest_;
};

template <typename PACKED>
std::shared_ptr<const PACKED> packed_weight_only(WeightKey::Maker maker, const WeightOnlyTensors& tensors) {
  const kernels::WeightOnlyShape& shape = tensors.shape;
  const WeightKey key{maker,
                      {shape.out_channels, shape.depth, shape.group_size, shape.bits, shape.quant_min,
                       static_cast<int64_t>(shape.has_zero_points)}};
  return cached_weight(tensors.weight, key, [&] { return std::make_shared<const LatestPacked<PACKED>>(tensors); })
      ->get(tensors);
}

}  // namespace torchquant::ops
