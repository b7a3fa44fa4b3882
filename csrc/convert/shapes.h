// Shapes of the values of a graph as far as weights and settings determine them, with a symbol for each extent that the
// input decides. Called by the passes that may only act where two shapes are the same or a rank is known.
#pragma once

#include <optional>
#include <unordered_map>
#include <vector>

#include "convert/conversion.h"
#include "torch/csrc/jit/ir/ir.h"

namespace torchquant::conversion {

// symbol + offset; a constant where symbol is 0.
struct Extent {
  int64_t symbol = 0;
  int64_t offset = 0;

  bool operator==(const Extent& other) const { return symbol == other.symbol && offset == other.offset; }
};

using Shape = std::vector<Extent>;

// The graph as it is now; look up only values and nodes that were there when the object was made.
class Shapes {
 public:
  explicit Shapes(const Conversion& conversion);

  std::optional<int64_t> rank(const torch::jit::Value* value) const;
  // Whether both are known to have the same shape, whatever the inputs.
  bool same(const torch::jit::Value* a, const torch::jit::Value* b) const;

 private:
  friend class ShapeRules;

  const Shape* find(const torch::jit::Value* value) const;
  Extent resolved(Extent extent) const;

  std::unordered_map<const torch::jit::Value*, Shape> shapes_;
  std::unordered_map<int64_t, Extent> equal_;  // symbols of which an op says what they are
};

}  // namespace torchquant::conversion
