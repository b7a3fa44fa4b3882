// What the reading and the writing half of the archive must agree on.
#pragma once

#include <string>

#include "caffe2/serialize/inline_container.h"

namespace torchquant::archive {

// TorchScript keeps a user's extra files under extra/, where torch.jit.load ignores them unless asked.
inline constexpr const char* kManifestRecord = "extra/torchquant.json";

// The records that have a digest: all but the manifest, which carries its own, and the identity that torch's writer
// computes last, which no reader uses.
inline bool has_digest(const std::string& name) {
  return name != kManifestRecord && name != caffe2::serialize::kSerializationIdRecordName;
}

}  // namespace torchquant::archive
