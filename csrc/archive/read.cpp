// torchquant::read_receipt and open_verified: the reading half of archive.h. Nothing of TorchScript is parsed or run here.
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <stdexcept>

#include "archive/archive.h"
#include "archive/records.h"
#include "archive/sha256.h"
#include "c10/util/Exception.h"
#include "caffe2/serialize/file_adapter.h"
#include "caffe2/serialize/inline_container.h"

namespace torchquant {
namespace archive {
namespace {

using caffe2::serialize::PyTorchStreamReader;

// Thrown inside this file: one clause that follows "cannot load 'path': ".
struct Refusal : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void check_is_zip(const std::string& path) {
  if (std::filesystem::is_directory(path)) throw Refusal("it is a directory");
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Refusal(std::strerror(errno));
  char start[4] = {};
  if (!file.read(start, sizeof(start))) throw Refusal("it is truncated or empty");
  // Every zip entry starts so.
  if (std::memcmp(start, "PK\x03\x04", sizeof(start)) != 0) throw Refusal("it is not a TorchScript archive (no zip file)");
}

// Runs `read`, which goes through torch's zip reader: its exceptions have many types and long texts.
template <typename Read>
auto or_damaged(const std::string& what, Read&& read) {
  try {
    return read();
  } catch (const std::exception&) {
    throw Refusal("it is truncated or damaged: " + what + " cannot be read");
  }
}

// Into a buffer of our own, filled beforehand: a record that a flipped bit marks as a directory is reported as read while
// the buffer stays as it was, and fresh memory may by chance hold the right bytes from an earlier load.
std::string read_record(PyTorchStreamReader& reader, const std::string& name) {
  return or_damaged("record '" + name + "'", [&] {
    std::string bytes(reader.getRecordSize(name), '\xa5');
    reader.getRecord(name, bytes.data(), bytes.size());
    return bytes;
  });
}

Manifest read_manifest(PyTorchStreamReader& reader) {
  if (!reader.hasRecord(kManifestRecord)) {
    throw Refusal(
        "it is not a TorchQuant file (it holds no torchquant.json); make one with QuantizedModel.save in Python or "
        "torchquant::save in C++");
  }
  return parse_manifest(read_record(reader, kManifestRecord));
}

void check_record_names(PyTorchStreamReader& reader, const Manifest& manifest) {
  std::set<std::string> found;
  for (const std::string& name : or_damaged("its list of records", [&] { return reader.getAllRecords(); })) {
    if (!found.insert(name).second) throw Refusal("it is damaged: record '" + name + "' is there twice");
    if (has_digest(name) && !manifest.record_digests.count(name)) {
      throw Refusal("record '" + name + "' was added after torchquant wrote it");
    }
  }
  for (const auto& [name, digest] : manifest.record_digests) {
    if (!found.count(name)) throw Refusal("record '" + name + "' is missing");
  }
}

void check_record_contents(PyTorchStreamReader& reader, const Manifest& manifest) {
  for (const auto& [name, digest] : manifest.record_digests) {
    const std::string bytes = read_record(reader, name);
    if (sha256_hex(bytes.data(), bytes.size()) != digest) {
      throw Refusal("it is damaged: record '" + name + "' does not match its SHA-256");
    }
  }
}

[[noreturn]] void refuse(const std::string& path, const char* clause) {
  TORCH_CHECK(false, "torchquant: cannot load '", path, "': ", clause);
  __builtin_unreachable();
}

VerifiedFile verify(const std::string& path) {
  check_is_zip(path);
  VerifiedFile file;
  file.source = or_damaged("it", [&] { return std::make_shared<caffe2::serialize::FileAdapter>(path); });
  const auto reader =
      or_damaged("its zip directory", [&] { return std::make_unique<PyTorchStreamReader>(file.source); });
  file.manifest = read_manifest(*reader);
  check_record_names(*reader, file.manifest);
  check_record_contents(*reader, file.manifest);
  return file;
}

}  // namespace

VerifiedFile open_verified(const std::string& path) {
  try {
    return verify(path);
  } catch (const c10::Error&) {
    refuse(path, "it is truncated or damaged");
  } catch (const std::exception& error) {
    refuse(path, error.what());
  }
}

}  // namespace archive

Receipt read_receipt(const std::string& path) {
  return Receipt::from_json(archive::open_verified(path).manifest.receipt_json);
}

}  // namespace torchquant
