#include "archive/manifest.h"

#include <nlohmann/json.hpp>
#include <stdexcept>

#include "archive/sha256.h"

namespace torchquant::archive {
namespace {

using nlohmann::json;

constexpr const char* kSelfDigest = "sha256";

// nlohmann keeps keys sorted and prints numbers in their shortest form, so parsing and printing again gives the same text.
std::string digest_without_itself(json document) {
  document.erase(kSelfDigest);
  const std::string text = document.dump();
  return sha256_hex(text.data(), text.size());
}

void check_format_version(const json& document) {
  const int64_t found = document.at("format_version").get<int64_t>();
  if (found == kFormatVersion) return;
  throw std::runtime_error("its format version is " + std::to_string(found) + " (written by torchquant " +
                           document.value("torchquant_version", "?") + ") and this library reads version " +
                           std::to_string(kFormatVersion) + "; convert the model again or install the torchquant that wrote it");
}

Manifest from_document(const json& document) {
  check_format_version(document);
  if (document.at(kSelfDigest).get<std::string>() != digest_without_itself(document)) {
    throw std::runtime_error("it is damaged: torchquant.json does not match its SHA-256");
  }
  Manifest manifest;
  manifest.torchquant_version = document.at("torchquant_version").get<std::string>();
  manifest.torch_version = document.at("torch_version").get<std::string>();
  manifest.receipt_json = document.at("receipt").dump();
  manifest.record_digests = document.at("records").get<std::map<std::string, std::string>>();
  return manifest;
}

}  // namespace

std::string to_json(const Manifest& manifest) {
  json document{{"format_version", manifest.format_version},
                {"torchquant_version", manifest.torchquant_version},
                {"torch_version", manifest.torch_version},
                {"receipt", json::parse(manifest.receipt_json)},
                {"records", manifest.record_digests}};
  document[kSelfDigest] = digest_without_itself(document);
  return document.dump();
}

Manifest parse_manifest(const std::string& json_text) {
  try {
    return from_document(json::parse(json_text));
  } catch (const json::exception&) {
    throw std::runtime_error("it is damaged: torchquant.json is not the document that torchquant writes");
  }
}

}  // namespace torchquant::archive
