// fake_quantize of an activation -> quantize and dequantize, the form that the later passes rearrange.
#include <cmath>

#include "ATen/core/grad_mode.h"
#include "ATen/ops/full.h"
#include "convert/graph.h"
#include "convert/passes.h"
#include "convert/weight.h"
#include "convert/written.h"
#include "numerics/affine.h"
#include "ops/ops.h"

namespace torchquant::conversion {
namespace {

bool reads_as_weight(const Conversion& conversion, const torch::jit::Use& use) {
  if (is_aten(use.user, {"linear", "convolution", "matmul", "mm", "bilinear"})) return use.offset == 1;
  if (is_aten(use.user, {"embedding", "embedding_bag", "_embedding_bag"})) return use.offset == 0;
  const std::string name = use.user->kind().toUnqualString();
  if (name.find("conv") != std::string::npos) return use.offset == 1;
  if (use.user->kind() != c10::prim::ListUnpack && !moves_data(conversion, use.user)) return false;
  for (const Value* output : use.user->outputs()) {
    for (const auto& next : output->uses()) {
      if (reads_as_weight(conversion, next)) return true;
    }
  }
  return false;
}

bool is_weight(const Conversion& conversion, const Node* node) {
  if (!conversion.resolve(node->input(0))) return false;
  for (const auto& use : node->output()->uses()) {
    if (reads_as_weight(conversion, use)) return true;
  }
  return false;
}

struct FakeQuant {
  std::string path;
  QuantParams params;
  float stored_zero_point;
};

// nullopt for a fake-quant that the integer kernels have no form for: parameters of the run, or several of them.
std::optional<FakeQuant> read(const Conversion& conversion, const Node* node) {
  const auto scale = conversion.resolve(argument(node, "scale"));
  const auto zero_point = conversion.resolve(argument(node, "zero_point"));
  const auto axis = conversion.resolve(argument(node, "axis"));
  const auto low = conversion.resolve(argument(node, "quant_min"));
  const auto high = conversion.resolve(argument(node, "quant_max"));
  if (!scale || !zero_point || !axis || !low || !high) return std::nullopt;
  if (!axis->isNone() || scale->toTensor().numel() != 1) return std::nullopt;
  FakeQuant result{quantize_path(node), {}, zero_point->toTensor().item<float>()};
  QuantParams& params = result.params;
  params.scale = scale->toTensor().item<float>();
  TORCH_CHECK(numerics::valid_scale(params.scale), "convert: the scale of fake-quant '", result.path,
              "' must be finite and > 0, with a finite reciprocal, got ", params.scale);
  TORCH_CHECK(std::isfinite(result.stored_zero_point), "convert: the zero point of fake-quant '", result.path,
              "' must be finite, got ", result.stored_zero_point);
  params.quant_min = low->toInt();
  params.quant_max = high->toInt();
  params.dtype = params.quant_min < 0 ? at::kChar : at::kByte;
  const numerics::QRange range{static_cast<float>(params.quant_min), static_cast<float>(params.quant_max)};
  params.zero_point = static_cast<int64_t>(numerics::effective_zero_point(result.stored_zero_point, range));
  return result;
}

// A parameter used as an activation (a position embedding): its codes are stored.
Value* stored_codes(Conversion& conversion, const Node* node, const FakeQuant& fake_quant) {
  const at::NoGradGuard no_grad;
  const auto get = [&](size_t i) { return conversion.resolve(node->input(i))->toTensor().detach(); };
  const at::Tensor codes = quantize(get(0), get(1), get(2), std::nullopt, std::nullopt, fake_quant.params.dtype,
                                    fake_quant.params.quant_min, fake_quant.params.quant_max);
  return conversion.buffer(fake_quant.path + ".codes", codes);
}

// The same tensor, quantized with the same parameters by another fake-quant: one quantize serves both.
Value* existing_codes(const Conversion& conversion, const Node* node, const QuantParams& params) {
  for (const auto& use : node->input(0)->uses()) {
    if (use.user->kind() != kind::quantize || use.offset != 0) continue;
    if (use.user->owningBlock() != node->owningBlock() || !use.user->isBefore(node)) continue;
    const auto other = quantize_params(conversion, use.user);
    const bool same = other && other->same_codes(params) && other->quant_min == params.quant_min &&
                      other->quant_max == params.quant_max;
    if (same) return use.user->output();
  }
  return nullptr;
}

// What asks a float tensor for its size after this point can ask its codes, and leaves it to one reader.
void ask_codes_for_sizes(Value* x, Value* codes) {
  const std::vector<torch::jit::Use> uses = x->uses();
  for (const auto& use : uses) {
    if (use.offset != 0 || !is_aten(use.user, {"size", "dim", "numel"})) continue;
    if (use.user->isAfter(codes->node())) use.user->replaceInput(0, codes);
  }
}

// The code that stands for 0, as quantize and dequantize read it: dequantize, which knows no range of codes, would
// clamp a stored value elsewhere than fake_quantize.
Value* zero_point_of(Conversion& conversion, Node* node, const FakeQuant& fake_quant) {
  const auto code = static_cast<float>(fake_quant.params.zero_point);
  if (code == fake_quant.stored_zero_point) return node->input(2);
  return conversion.buffer(fake_quant.path + ".zero_point", at::full({1}, code));
}

void lower(Conversion& conversion, Node* node, const FakeQuant& fake_quant, bool input_is_written) {
  Value* zero_point = zero_point_of(conversion, node, fake_quant);
  Value* codes = nullptr;
  if (conversion.resolve(node->input(0))) {
    codes = stored_codes(conversion, node, fake_quant);
  } else if (!input_is_written) {
    codes = existing_codes(conversion, node, fake_quant.params);
  }
  if (!codes) {
    codes = insert_quantize(node, node->input(0), node->input(1), zero_point, fake_quant.params);
    ask_codes_for_sizes(node->input(0), codes);
  }
  node->output()->replaceAllUsesWith(insert_dequantize(node, codes, node->input(1), zero_point));
  node->destroy();
}

void check_not_written(const Written& written, const Node* node) {
  TORCH_CHECK(!written.count(node->output()), "convert: the result of fake-quant '", quantize_path(node),
              "' is changed in place by an op that cannot be rewritten; write the op out of place");
}

}  // namespace

void lower_activations(Conversion& conversion) {
  const Written written = written_values(conversion);
  std::vector<Node*> found;
  for (Node* node : all_nodes(conversion.graph())) {
    if (node->kind() != kind::fake_quantize) continue;
    check_not_written(written, node);
    if (!is_weight(conversion, node)) found.push_back(node);
  }
  for (Node* node : found) {
    const bool input_is_written = written.count(node->input(0)) != 0;
    if (const auto fake_quant = read(conversion, node)) lower(conversion, node, *fake_quant, input_is_written);
  }
}

}  // namespace torchquant::conversion
