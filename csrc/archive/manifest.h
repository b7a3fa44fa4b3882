// torchquant.json, the record that makes a TorchScript archive a TorchQuant file. Called by the archive reader and writer.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace torchquant::archive {

// Goes up when an older reader would misread a file; a reader refuses every other version.
inline constexpr int64_t kFormatVersion = 1;

struct Manifest {
  int64_t format_version = kFormatVersion;
  std::string torchquant_version;  // the versions that made the file
  std::string torch_version;
  std::string receipt_json;
  std::map<std::string, std::string> record_digests;  // record name -> SHA-256, every record but torchquant.json
};

// Carries a SHA-256 of itself, because the archive's digests cannot include the record that holds them.
std::string to_json(const Manifest& manifest);

// Throws std::runtime_error with one clause saying what is wrong with the text.
Manifest parse_manifest(const std::string& json_text);

}  // namespace torchquant::archive
