// The constant evaluator: what a value of the graph always is, whatever the inputs. Called by every pass that reads a
// weight, a scale or a setting.
#pragma once

#include <optional>
#include <unordered_map>

#include "ATen/core/ivalue.h"
#include "torch/csrc/jit/api/module.h"
#include "torch/csrc/jit/ir/ir.h"

namespace torchquant::conversion {

using Known = std::unordered_map<const torch::jit::Value*, c10::IValue>;

// The value of `value` if it is made of constants, attributes of `self` and pure ops over them; nullopt if it depends
// on an input. Values in `known` are taken as given, which evaluates a part of the graph on other tensors.
std::optional<c10::IValue> evaluate(const torch::jit::Value* value, const torch::jit::Module& self,
                                    const Known& known = {});

}  // namespace torchquant::conversion
