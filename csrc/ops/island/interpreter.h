// Runs an island's program op by op through the dispatcher: the definition of torchquant::quantized_island, on every
// device and for fake tensors. Called by the op, and by the planner to learn the shape of every value.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <c10/core/SymInt.h>

#include <memory>
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

// A program with the values that nothing reads behind each step, so that their memory serves the next ones.
struct InterpretedProgram {
  explicit InterpretedProgram(std::string_view text);

  Program program;
  std::vector<std::vector<int64_t>> last_read;  // by step: values
};

// The program of this text, parsed at the first call and kept: parsing takes as long as enqueuing the ops on a GPU.
std::shared_ptr<const InterpretedProgram> find_program(std::string_view text);

// The whole program: its outputs.
std::vector<at::Tensor> interpret(const InterpretedProgram& interpreted, const Operands& operands);

}  // namespace torchquant::island
