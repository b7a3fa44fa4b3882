// torchquant::quantized_island: a connected run of integer ops as one op. Emitted by the converter's last pass.
// `program` lists the ops (island/program.h); running them one by one is the definition, and what every device but the
// CPU does.
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "ops/island/interpreter.h"
#include "ops/island/program.h"

namespace torchquant::ops {
namespace {

std::vector<at::Tensor> quantized_island(at::TensorList inputs, c10::SymIntArrayRef sizes, at::TensorList constants,
                                         std::string_view program) {
  return island::interpret(island::Program::parse(program), {inputs, sizes, constants});
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  m.def("quantized_island(Tensor[] inputs, SymInt[] sizes, Tensor[] constants, str program) -> Tensor[]",
        {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(torchquant, CompositeImplicitAutograd, m) { m.impl("quantized_island", quantized_island); }

}  // namespace torchquant::ops
