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
  TORCH_CHECK(file, "torchquant::load_batches: cannot read '", path, "': ", std::strerror(errno));
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  try {
    return torch::jit::pickle_load(bytes);
  } catch (const std::exception&) {
    TORCH_CHECK(false, "torchquant::load_batches: '", path,
                "' is not a file that torch.save wrote, or it holds Python objects");
  }
}

constexpr const char* kForm =
    "a tensor, a tuple of tensors (the arguments of one call), or a list of such batches, from torch.save";

std::vector<c10::IValue> arguments_of(const c10::IValue& batch, const std::string& path) {
  std::vector<c10::IValue> arguments = batch.isTuple() ? batch.toTupleRef().elements().vec() : std::vector{batch};
  TORCH_CHECK(!arguments.empty(), "torchquant::load_batches: '", path, "' holds an empty tuple; it must hold ", kForm);
  for (const c10::IValue& argument : arguments) {
    TORCH_CHECK(argument.isTensor(), "torchquant::load_batches: '", path, "' holds a ", argument.tagKind(),
                "; it must hold ", kForm);
  }
  return arguments;
}

}  // namespace

std::vector<std::vector<c10::IValue>> load_batches(const std::string& path) {
  const c10::IValue held = read_pickle(path);
  if (!held.isList()) return {arguments_of(held, path)};
  TORCH_CHECK(!held.toListRef().empty(), "torchquant::load_batches: '", path, "' holds an empty list; it must hold ",
              kForm);
  std::vector<std::vector<c10::IValue>> batches;
  for (const c10::IValue& batch : held.toListRef()) batches.push_back(arguments_of(batch, path));
  return batches;
}

std::vector<c10::IValue> load_inputs(const std::string& path) {
  std::vector<std::vector<c10::IValue>> batches = load_batches(path);
  TORCH_CHECK(batches.size() == 1, "torchquant::load_inputs: '", path, "' holds a list of ", batches.size(),
              " batches, and the arguments of one call are wanted: a tensor or a tuple of tensors");
  return batches[0];
}

void save_output(const c10::IValue& output, const std::string& path) {
  const std::vector<char> bytes = torch::jit::pickle_save(output);
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size())).flush();
  TORCH_CHECK(file, "torchquant::save_output: cannot write '", path, "': ", std::strerror(errno));
}

}  // namespace torchquant
