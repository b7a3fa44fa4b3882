#include "runtime/packed_weights.h"

#include "ops/weight_cache.h"

namespace torchquant {

std::vector<PackedWeight> packed_weights(const torch::jit::Module& module) {
  std::vector<PackedWeight> weights;
  for (const auto& [name, buffer] : module.named_buffers()) {
    for (const ops::PackedRecord& record : ops::packed_records(buffer)) {
      weights.push_back({name, record.kernel, record.bytes, record.milliseconds});
    }
  }
  return weights;
}

}  // namespace torchquant
