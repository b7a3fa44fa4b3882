// What the reading and the writing half of the archive must agree on.
#pragma once

namespace torchquant::archive {

// TorchScript keeps a user's extra files under extra/, where torch.jit.load ignores them unless asked.
inline constexpr const char* kManifestRecord = "extra/torchquant.json";

}  // namespace torchquant::archive
