// Ops that do to integer codes what they do to the floats that the codes stand for. Called by the passes that move
// quantize and dequantize past them.
#pragma once

#include "convert/conversion.h"
#include "convert/graph.h"

namespace torchquant::conversion {

// Whether insert_on_codes knows the op. It may still refuse the codes: ATen resizes no int8, and no code may stand for
// a padding value.
bool acts_on_codes(const Conversion& conversion, const Node* node);

// Inserts, in front of `node`, the op that computes its result on `codes` of its first input, or nullptr.
Node* insert_on_codes(Conversion& conversion, Node* node, Value* codes, const QuantParams& params);

// Whether a node pads with values of its input (reflect, replicate), which are codes already.
bool pads_with_its_values(const Conversion& conversion, const Node* node);

// Whether a node is a concatenation; its operands are the inputs of its list.
bool is_concat(const Node* node);
// The concatenation of `codes` in front of `node`.
Value* insert_concat(Conversion& conversion, Node* node, std::vector<Value*> codes);

}  // namespace torchquant::conversion
