// Tensors on disk in the format of Python's torch.save, so that inputs and results travel between Python and C++
// programs.
#pragma once

#include <string>
#include <vector>

#include "ATen/core/ivalue.h"
#include "export.h"

namespace torchquant {

// The batches in a file that Python's torch.save wrote, each the arguments of one call. A list is always of batches; a
// batch is a tensor or a tuple of tensors; what is no list is one batch. The rule is that of the command line (INPUTS
// of `torchquant scan` and `bench`). Throws c10::Error naming the file if it holds anything else.
TQ_API std::vector<std::vector<c10::IValue>> load_batches(const std::string& path);

// The arguments of one call, from a file of one batch. Throws c10::Error naming the file if it holds several.
TQ_API std::vector<c10::IValue> load_inputs(const std::string& path);

// Writes a tensor, or a tuple or list of tensors, so that torch.load(path) reads it; load_batches(path), too, but for
// nested lists.
TQ_API void save_output(const c10::IValue& output, const std::string& path);

}  // namespace torchquant
