// The constants that turn what an integer op computed into output codes. Called by the passes that lower convolutions,
// linear layers, average pools and resizes.
#pragma once

#include "convert/epilogue.h"
#include "convert/layers.h"
#include "convert/weight.h"

namespace torchquant::conversion {

// A layer whose input, weight and settings all have an integer form.
struct StaticLayer {
  Quantized x;
  IntegerWeight weight;
  at::Tensor bias;  // fp32 [O]; undefined without one
  Epilogue epilogue;
};

// m = (s_x * s_w) * f / s_y and b = ((bias - mean) * f + beta) / s_y, in fp32; f = 1 without a batch norm.
at::Tensor output_multiplier(const StaticLayer& layer);
at::Tensor output_bias(const StaticLayer& layer);

// A bias that is stored, in fp32; undefined for None. Throws CannotLower for one that is computed at run time.
at::Tensor stored_bias(const Conversion& conversion, const Value* bias);

// Reads what quantized_conv and quantized_linear share of `node` (x, weight, bias first), of a graph with these shapes.
// Throws CannotLower.
StaticLayer read_static_layer(const Conversion& conversion, const Shapes& shapes, Node* node,
                              const WeightLayout& layout, int64_t depth);

// Inserts the fused op with its own arguments and the shared ones, replaces the nodes and writes the receipt's row.
void emit_static_layer(Conversion& conversion, const StaticLayer& layer, const std::string& op, const std::string& kind,
                       std::vector<Argument> own_arguments);

// Inserts `op`, which averages or interpolates the codes x, in the place of `node` and of the quantize behind it, if
// one follows; its own inputs and arguments, then the zero point of x, s_x / s_y and the output's parameters.
void emit_requantized(Conversion& conversion, Node* node, const Quantized& x, const std::string& op,
                      const std::vector<Argument>& own_inputs, std::vector<Argument> own_arguments, ReceiptRow row);

}  // namespace torchquant::conversion
