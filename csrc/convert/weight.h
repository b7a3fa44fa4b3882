// Weights: from a fake-quant on a parameter to the integer codes and scales of the fused ops. Called by the passes that
// lower convolutions, linear layers and embeddings.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ATen/core/Tensor.h"
#include "convert/conversion.h"
#include "convert/graph.h"

namespace torchquant::conversion {

// The fake-quant that stands on a weight, also where the op reads a transpose, slice or chunk of its result; nullptr
// where the weight carries none.
Node* weight_fake_quant(const Conversion& conversion, const Value* weight);

// Shape of a stored weight as the op reads it; nullopt for one that is computed at run time.
std::optional<std::vector<int64_t>> weight_shape(const Conversion& conversion, const Value* weight);

// Path of the module that owns a weight: what the receipt calls the layer.
std::string layer_of(const Conversion& conversion, const Value* weight);

// How a weight's elements belong to output channels.
struct WeightLayout {
  bool transposed = false;  // [I, O/groups, ...] instead of [O, I/groups, ...]
  int64_t groups = 1;
};

struct IntegerWeight {
  std::string layer;
  at::Tensor codes;       // int8, in the shape that the op reads
  at::Tensor scale;       // fp32 [O], or [O, K / group_size]
  at::Tensor zero_point;  // fp32 like scale; undefined where 0 everywhere
  std::optional<int64_t> group_size;
  int64_t bits = 8;  // 8 or 4
  int64_t quant_min = -127;

  std::string precision() const { return bits == 4 ? "int4" : "int8"; }
};

// Throws CannotLower where the integer kernels have no form for the weight.
IntegerWeight integer_weight(const Conversion& conversion, const Value* weight, const WeightLayout& layout = {});

struct Float8Weight {
  std::string layer;
  at::Tensor codes;  // float8 [O, K], as the op reads it
  at::Tensor scale;  // fp32 [O]

  std::string precision() const { return codes.scalar_type() == at::kFloat8_e5m2 ? "fp8_e5m2" : "fp8_e4m3"; }
};

// Of a weight whose fake-quant is to fp8. Throws CannotLower where the kernel has no form for it.
Float8Weight float8_weight(const Conversion& conversion, const Value* weight);

// Refuses what only weight-only kernels take: groups along the inputs and zero points.
void require_symmetric_per_channel(const IntegerWeight& weight);
// Refuses an accumulator that could leave int32.
void require_int32_sum(const IntegerWeight& weight, int64_t depth);

// The buffer of the codes, packed two a byte for 4 bits.
Value* weight_buffer(Conversion& conversion, const IntegerWeight& weight);

}  // namespace torchquant::conversion
