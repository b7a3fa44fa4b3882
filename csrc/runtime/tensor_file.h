// Tensors on disk in the format of Python's torch.save, so that inputs and results travel between Python and C++ programs.
#pragma once

#include <string>
#include <vector>

#include "ATen/core/ivalue.h"
#include "export.h"

namespace torchquant {

// The arguments of one call, from a file that torch.save(tensor, path) or torch.save((tensor, tensor), path) wrote. Throws
// c10::Error naming the file if it holds anything else.
TQ_API std::vector<c10::IValue> load_inputs(const std::string& path);

// Writes a tensor, or a tuple or list of tensors, so that torch.load(path) and load_inputs(path) read it.
TQ_API void save_output(const c10::IValue& output, const std::string& path);

}  // namespace torchquant
