// torchquant::quantized_island: a connected run of integer ops as one op. Emitted by the converter's last pass.
// `program` lists the ops (island/program.h). Running them one by one is the definition, and what every device but the
// CPU does; the CPU runs a plan that gives the same bits.
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "ops/island/interpreter.h"
#include "ops/island/plan_cache.h"
#include "ops/island/program.h"

namespace torchquant::ops {
namespace {

std::vector<at::Tensor> interpreted(at::TensorList inputs, c10::SymIntArrayRef sizes, at::TensorList constants,
                                    std::string_view program) {
  return island::interpret(*island::find_program(program), {inputs, sizes, constants});
}

std::vector<at::Tensor> cpu(at::TensorList inputs, c10::SymIntArrayRef sizes, at::TensorList constants,
                            std::string_view program) {
  if (const auto plan = island::find_plan(program, {inputs, sizes, constants})) return plan->run(inputs, constants);
  return interpreted(inputs, sizes, constants, program);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torchquant, m) {
  m.def("quantized_island(Tensor[] inputs, SymInt[] sizes, Tensor[] constants, str program) -> Tensor[]",
        {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(torchquant, CPU, m) { m.impl("quantized_island", cpu); }
TORCH_LIBRARY_IMPL(torchquant, CompositeImplicitAutograd, m) { m.impl("quantized_island", interpreted); }

}  // namespace torchquant::ops
