// What kernels made of a weight, kept with the tensor that holds it: packed once per process, shared by every module
// that shares the tensor, made again when the tensor's version changes, freed with the tensor. Called by the integer
// ops.
//
// A change that autograd's version counter does not see (through `.data`, or to a tensor made in inference mode) is not
// noticed.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "export.h"

namespace torchquant::ops {

// What was made, in what form: an identifier of the maker, then its parameters.
struct WeightKey {
  enum class Maker : int64_t {
    kConv = 1,
    kLinear,
    kWeightOnly,
    kMatmul,
    kCudaConv,
    kCudaCodes,
    kCudaWeightOnly,
    kCudaFloat8
  };
  Maker maker;
  std::array<int64_t, 23> parameters{};

  bool operator==(const WeightKey&) const = default;
};

// One made thing, as receipts report it.
struct PackedRecord {
  std::string kernel;
  int64_t bytes;
  double milliseconds;
};

// Base of what is cached.
class CachedWeight {
 public:
  virtual ~CachedWeight() = default;
  virtual const char* kernel() const = 0;
  virtual int64_t bytes() const = 0;
};

namespace detail {
using MakeCached = std::shared_ptr<const CachedWeight> (*)(void* context);
TQ_API std::shared_ptr<const CachedWeight> find_or_make(const at::Tensor& weight, const WeightKey& key, MakeCached make,
                                                        void* context);
}  // namespace detail

// What `make` made for this key at the weight's present version. `make` returns a shared_ptr<const T>, T a
// CachedWeight, always the same T for one key; it runs once, while other callers for the same weight wait.
template <typename Make>
auto cached_weight(const at::Tensor& weight, const WeightKey& key, Make&& make) {
  using Result = std::invoke_result_t<Make&>;
  const auto erased = [](void* context) -> std::shared_ptr<const CachedWeight> {
    return (*static_cast<std::remove_reference_t<Make>*>(context))();
  };
  return std::static_pointer_cast<typename Result::element_type>(
      detail::find_or_make(weight, key, erased, const_cast<void*>(static_cast<const void*>(&make))));
}

// Everything that is cached for a weight.
TQ_API std::vector<PackedRecord> packed_records(const at::Tensor& weight);

}  // namespace torchquant::ops
