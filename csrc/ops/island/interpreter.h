// Runs an island's program op by op through the dispatcher: the definition of torchquant::quantized_island, on every
// device and for fake tensors. Called by the op, and by the planner to learn the shape of every value.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <c10/core/SymInt.h>

#include <string_view>
#include <vector>

#include "ops/island/program.h"

namespace torchquant::island {

// The arguments of one call, besides the program.
struct Operands {
  at::TensorList inputs;
  c10::SymIntArrayRef sizes;
  at::TensorList constants;
};

// What `argument` stands for, given the values that earlier steps computed. `type` is what the step's op expects.
c10::IValue resolve(const Argument& argument, const c10::TypePtr& type, const Operands& operands,
                    const std::vector<c10::IValue>& values);

// Runs one step and appends its results to `values`.
void run_step(const Step& step, const Operands& operands, std::vector<c10::IValue>& values);

// Every value that the program computes.
std::vector<c10::IValue> run_steps(const Program& program, const Operands& operands);

// The whole program: its outputs.
std::vector<at::Tensor> interpret(const Program& program, const Operands& operands);

}  // namespace torchquant::island
