// torchquant::save: the writing half of archive.h.
#include <cstring>
#include <utility>

#include "archive/archive.h"
#include "archive/file_sink.h"
#include "archive/records.h"
#include "archive/sha256.h"
#include "caffe2/serialize/inline_container.h"
#include "torch/csrc/jit/serialization/export.h"
#include "torch/csrc/jit/serialization/import.h"
#include "torch/headeronly/version.h"

namespace torchquant {
namespace archive {
namespace {

using caffe2::serialize::PyTorchStreamReader;
using caffe2::serialize::PyTorchStreamWriter;

// TorchScript's records as bytes in memory, to be read back record by record.
class MemorySource final : public caffe2::serialize::ReadAdapterInterface {
 public:
  explicit MemorySource(std::string bytes) : bytes_(std::move(bytes)) {}
  size_t size() const override { return bytes_.size(); }
  size_t read(uint64_t position, void* buffer, size_t count, const char*) const override {
    const size_t available = position < bytes_.size() ? bytes_.size() - position : 0;
    const size_t taken = count < available ? count : available;
    std::memcpy(buffer, bytes_.data() + position, taken);
    return taken;
  }

 private:
  std::string bytes_;
};

bool lives_on_cpu(const torch::jit::Module& module) {
  for (const at::Tensor& parameter : module.parameters()) {
    if (!parameter.device().is_cpu()) return false;
  }
  for (const at::Tensor& buffer : module.buffers()) {
    if (!buffer.device().is_cpu()) return false;
  }
  return true;
}

std::shared_ptr<MemorySource> export_to_memory(torch::jit::Module module) {
  if (!lives_on_cpu(module)) {
    module = module.deepcopy();
    module.to(at::kCPU);
  }
  std::string bytes;
  torch::jit::ExportModule(module, [&bytes](const void* data, size_t size) {
    bytes.append(static_cast<const char*>(data), size);
    return size;
  });
  return std::make_shared<MemorySource>(std::move(bytes));
}

// Debug records hold source lines and paths of the machine that converted, often outweigh int8 weights, and nothing at
// run time needs them.
bool is_debug_record(const std::string& name) { return name.ends_with(".debug_pkl"); }

// Code shrinks to a fraction; tensors hardly shrink and stay mappable when stored as they are.
bool is_text_worth_compressing(const std::string& name, size_t size) {
  return size > 200 && (name.starts_with("code/") || name == kManifestRecord);
}

Manifest copy_records(PyTorchStreamReader& reader, PyTorchStreamWriter& writer) {
  Manifest manifest;
  manifest.torchquant_version = TORCHQUANT_VERSION;
  manifest.torch_version = TORCH_VERSION;
  for (const std::string& name : reader.getAllRecords()) {
    if (!has_digest(name) || is_debug_record(name)) continue;
    const auto [data, size] = reader.getRecord(name);
    writer.writeRecord(name, data.get(), size, is_text_worth_compressing(name, size));
    manifest.record_digests[name] = sha256_hex(data.get(), size);
  }
  return manifest;
}

}  // namespace

torch::jit::Module pass_through_archive(const torch::jit::Module& module) {
  return torch::jit::load(export_to_memory(module), at::kCPU, /*load_debug_files=*/false);
}

}  // namespace archive

void save(const torch::jit::Module& module, const Receipt& receipt, const std::string& path) {
  using namespace archive;
  PyTorchStreamReader reader(export_to_memory(module));
  FileSink sink(path);
  {
    PyTorchStreamWriter writer([&sink](const void* data, size_t size) {
      sink.write(data, size);
      return size;
    });
    Manifest manifest = copy_records(reader, writer);
    manifest.receipt_json = receipt.to_json();
    const std::string text = to_json(manifest);
    writer.writeRecord(kManifestRecord, text.data(), text.size(), is_text_worth_compressing(kManifestRecord, text.size()));
    writer.writeEndOfFile();
  }
  sink.commit();
}

}  // namespace torchquant
