// Which values some op changes in place. Called by the passes that move ops, share results or turn views into copies.
#pragma once

#include <unordered_set>

#include "convert/conversion.h"
#include "torch/csrc/jit/ir/ir.h"

namespace torchquant::conversion {

using Written = std::unordered_set<const torch::jit::Value*>;

// Values whose memory an op writes: what was computed above the op is not what a reader below it finds, and a copy is
// not what a view was. Inputs of the graph included.
Written written_values(const Conversion& conversion);

}  // namespace torchquant::conversion
