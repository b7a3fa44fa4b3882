#include "runtime/tensor_file.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>

#include "ATen/core/Tensor.h"
#include "ATen/core/ivalue_inl.h"
#include "c10/util/Exception.h"
#include "torch/csrc/jit/serialization/pickle.h"

namespace torchquant {
namespace {

c10::IValue read_pickle(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  TORCH_CHECK(file, "torchquant::load_inputs: cannot read '", path, "': ", std::strerror(errno));
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  try {
    return torch::jit::pickle_load(bytes);
  } catch (const std::exception&) {
    TORCH_CHECK(false, "torchquant::load_inputs: '", path, "' is not a file that torch.save wrote, or it holds Python objects");
  }
}

std::vector<c10::IValue> elements(const c10::IValue& value) {
  if (value.isTuple()) return value.toTupleRef().elements().vec();
  if (value.isList()) return value.toListRef().vec();
  return {value};
}

}  // namespace

std::vector<c10::IValue> load_inputs(const std::string& path) {
  std::vector<c10::IValue> inputs = elements(read_pickle(path));
  for (const c10::IValue& input : inputs) {
    TORCH_CHECK(input.isTensor(), "torchquant::load_inputs: '", path, "' must hold a tensor or a tuple of tensors; got ",
                input.tagKind());
  }
  return inputs;
}

void save_output(const c10::IValue& output, const std::string& path) {
  const std::vector<char> bytes = torch::jit::pickle_save(output);
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size())).flush();
  TORCH_CHECK(file, "torchquant::save_output: cannot write '", path, "': ", std::strerror(errno));
}

}  // namespace torchquant
