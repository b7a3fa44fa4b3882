// Finds the plan of an island call. Called by torchquant::quantized_island on every call.
#pragma once

#include <memory>
#include <string_view>

#include "ops/island/batch_plan.h"
#include "ops/island/interpreter.h"

namespace torchquant::island {

// The plan for operands like these, made now if there is none yet; nullptr if the island must be interpreted. Plans are
// kept on one of the constants and are made anew where a constant was written or replaced.
std::shared_ptr<const BatchPlan> find_plan(std::string_view program, const Operands& operands);

}  // namespace torchquant::island
