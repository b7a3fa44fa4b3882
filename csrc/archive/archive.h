// A TorchQuant file: a TorchScript archive with one more record, torchquant.json, that holds the receipt and a SHA-256 of
// every other record. Written by save(), read by torchquant::load and read_receipt.
#pragma once

#include <memory>
#include <string>

#include "archive/manifest.h"
#include "archive/receipt.h"
#include "caffe2/serialize/read_adapter_interface.h"
#include "export.h"
#include "torch/csrc/jit/api/module.h"

namespace torchquant {

// Writes `module` and its receipt to `path`. A failure throws c10::Error and leaves a file that was there before whole.
// Weights are stored on the CPU wherever the module lives now, so that one file serves every device.
TQ_API void save(const torch::jit::Module& module, const Receipt& receipt, const std::string& path);

// The receipt of a saved file, after the same verification as load().
TQ_API Receipt read_receipt(const std::string& path);

namespace archive {

// `module` as loading its saved file would give it, without a file: on the CPU, with nothing shared with the one given.
torch::jit::Module pass_through_archive(const torch::jit::Module& module);

struct VerifiedFile {
  Manifest manifest;
  // The open file: reading the module through it gives what was verified even if the path is replaced meanwhile.
  std::shared_ptr<caffe2::serialize::ReadAdapterInterface> source;
};

// Throws c10::Error, with one sentence, for a file that is missing, damaged, foreign or of another format version.
TQ_API VerifiedFile open_verified(const std::string& path);

}  // namespace archive
}  // namespace torchquant
