// The state of one conversion; see conversion.h.
#include "convert/conversion.h"

#include <algorithm>

#include "ATen/ops/equal.h"
#include "kernels/quantized_kernels.h"

namespace torchquant::conversion {
namespace {

std::string identifier(std::string name) {
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return !std::isalnum(c); }, '_');
  return std::isdigit(static_cast<unsigned char>(name[0])) ? "_" + name : name;
}

}  // namespace

bool same_tensor(const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() != b.scalar_type() || a.sizes() != b.sizes()) return false;
  // torch compares no 8-bit floats
  return c10::isFloat8Type(a.scalar_type()) ? at::equal(a.view(at::kByte), b.view(at::kByte)) : at::equal(a, b);
}

Conversion::Conversion(torch::jit::Module module, InputRanks input_ranks, FloatLayers float_layers)
    : module_(std::move(module)),
      graph_(module_.get_method("forward").graph()),
      input_ranks_(std::move(input_ranks)),
      float_layers_(std::move(float_layers)) {}

torch::jit::Value* Conversion::buffer(const std::string& name, const at::Tensor& tensor) {
  for (const auto& [stored, value] : buffers_) {
    if (same_tensor(stored, tensor)) return value;
  }
  const std::string stem = identifier(name);
  std::string unique = stem;
  for (int number = 2; module_.hasattr(unique); ++number) unique = stem + "_" + std::to_string(number);
  // A copy: a buffer that shared memory with a parameter would keep the parameter in the frozen module.
  module_.register_buffer(unique, tensor.detach().clone());
  torch::jit::WithInsertPoint guard(graph_->block()->nodes().front());
  torch::jit::Value* value = graph_->insertGetAttr(graph_->inputs()[0], unique);
  buffers_.emplace_back(tensor, value);
  return value;
}

void Conversion::set_lowered(const torch::jit::Node* node, ReceiptRow row) {
  const char* backend = node->kind().is_aten() ? "aten" : kernels::quantized_kernels().name;
  row.kernel = std::string(node->kind().toUnqualString()) + "/" + backend;
  if (row.precision.empty()) row.precision = "int8";
  rows_[node] = {std::move(row)};
}

void Conversion::set_fallback(const torch::jit::Node* node, const std::string& layer, const std::string& kind,
                              const std::string& reason) {
  rows_[node] = {ReceiptRow{.layer = layer, .kind = kind, .precision = "float", .reason = reason, .fallback = true}};
  fallbacks_.insert(node);
}

void Conversion::merge_rows(const std::vector<torch::jit::Node*>& nodes, const torch::jit::Node* merged) {
  for (size_t i = 1; i < nodes.size(); ++i) {
    for (ReceiptRow& row : rows_[nodes[i]]) row.fused.emplace_back("merged");
  }
  move_rows(nodes, merged);
}

void Conversion::move_rows(const std::vector<torch::jit::Node*>& nodes, const torch::jit::Node* island) {
  for (const torch::jit::Node* node : nodes) {
    auto moved = rows_.extract(node);
    if (moved.empty()) continue;
    std::vector<ReceiptRow>& rows = rows_[island];
    rows.insert(rows.end(), moved.mapped().begin(), moved.mapped().end());
  }
}

const std::vector<ReceiptRow>& Conversion::rows(const torch::jit::Node* node) const {
  static const std::vector<ReceiptRow> kNone;
  const auto found = rows_.find(node);
  return found == rows_.end() ? kNone : found->second;
}

bool Conversion::is_fallback(const torch::jit::Node* node) const { return fallbacks_.count(node) != 0; }

}  // namespace torchquant::conversion
