// The converter: freeze, the ordered list of passes, the receipt, freeze again. See passes.h for what each pass does.
#include "convert/convert.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <sstream>

#include "ATen/core/grad_mode.h"
#include "archive/archive.h"
#include "convert/graph.h"
#include "convert/passes.h"
#include "convert/pipeline.h"
#include "convert/summary.h"
#include "ops/cuda_library.h"
#include "torch/csrc/jit/passes/common_subexpression_elimination.h"
#include "torch/csrc/jit/passes/constant_pooling.h"
#include "torch/csrc/jit/passes/dead_code_elimination.h"
#include "torch/csrc/jit/passes/freeze_module.h"
#include "torch/csrc/jit/passes/lower_tuples.h"
#include "torch/csrc/jit/passes/peephole.h"
#include "torch/csrc/jit/passes/remove_mutation.h"

namespace torchquant {
namespace {

using conversion::Conversion;
using torch::jit::Module;

struct Pass {
  const char* name;
  void (*run)(Conversion&);
  bool joins_layers = false;  // left out where each layer is to keep an op of its own
};

constexpr Pass kPasses[] = {
    {"remove_identities", conversion::remove_identities},
    {"simplify", conversion::simplify},
    {"normalize_shapes", conversion::normalize_shapes},
    {"normalize_convolution", conversion::normalize_convolution},
    {"normalize_linear", conversion::normalize_linear},
    {"normalize_mean", conversion::normalize_mean},
    {"lower_activations", conversion::lower_activations},
    {"hoist_quantize", conversion::hoist_quantize},
    {"sink_dequantize", conversion::sink_dequantize},
    {"lower_fp8_linear", conversion::lower_fp8_linear},
    {"lower_convolution", conversion::lower_convolution},
    {"lower_linear", conversion::lower_linear},
    {"lower_dynamic_linear", conversion::lower_dynamic_linear},
    {"lower_weight_only_linear", conversion::lower_weight_only_linear},
    {"lower_embedding", conversion::lower_embedding},
    {"lower_batch_norm", conversion::lower_batch_norm},
    {"lower_average_pool", conversion::lower_average_pool},
    {"lower_resize", conversion::lower_resize},
    {"lower_add", conversion::lower_add},
    {"lower_mul", conversion::lower_mul},
    {"lower_matmul", conversion::lower_matmul},
    {"lower_pointwise", conversion::lower_pointwise},
    {"collect_fallbacks", conversion::collect_fallbacks},
    {"follow_input_device", conversion::follow_input_device},
    {"lower_attention", conversion::lower_attention},
    {"lower_layer_norm", conversion::lower_layer_norm},
    {"merge_linears", conversion::merge_linears, /*joins_layers=*/true},
    {"form_islands", conversion::form_islands, /*joins_layers=*/true},
};

// Writes graphs into the directory that TORCHQUANT_DUMP_GRAPH names, numbered in the order of the passes.
class GraphDump {
 public:
  GraphDump() {
    const char* directory = std::getenv("TORCHQUANT_DUMP_GRAPH");
    if (directory && *directory) directory_ = directory;
  }

  void write(const std::string& name, const torch::jit::Graph& graph) {
    if (directory_.empty()) return;
    std::filesystem::create_directories(directory_);
    std::ostringstream file_name;
    file_name << std::setw(2) << std::setfill('0') << count_++ << '_' << name << ".txt";
    const auto path = directory_ / file_name.str();
    std::ofstream file(path);
    file << graph;
    TORCH_CHECK(file.good(), "convert: TORCHQUANT_DUMP_GRAPH: cannot write ", path.string());
  }

 private:
  std::filesystem::path directory_;
  int count_ = 0;
};

// The inlined graph forgets them.
conversion::InputRanks input_ranks(const Module& module) {
  conversion::InputRanks ranks;
  for (const torch::jit::Value* input : module.get_method("forward").graph()->inputs()) {
    const auto type = input->type()->cast<c10::TensorType>();
    ranks.push_back(type && type->dim() ? std::optional<int64_t>(*type->dim()) : std::nullopt);
  }
  return ranks;
}

// Parameters stay attributes: a plain freeze would fold fake_quantize(weight) into floats.
Module freeze_parameters(const Module& module) {
  return torch::jit::freeze_module(module, {}, /*freezeInterfaces=*/true, /*preserveParameters=*/true);
}

void check_convertible(Conversion& conversion) {
  bool found = false;
  bool converted = false;
  for (const conversion::Node* node : conversion::all_nodes(conversion.graph())) {
    found |= conversion::is_fake_quant(node);
    converted |= std::string(node->kind().toQualString()).starts_with("torchquant::quantized_");
    if (node->kind() != c10::prim::SetAttr) continue;
    TORCH_CHECK(false, "convert: forward assigns to the attribute '", node->s(c10::attr::name),
                "', and a converted module holds constants only; return the value instead");
  }
  TORCH_CHECK(found, "convert: nothing to quantize: ",
              converted
                  ? "the module is converted already"
                  : "no torchquant::fake_quantize stands in its forward. Call prepare and calibrate (or prepare_qat "
                    "and train) first, with a QConfig that covers at least one layer");
}

void check_fallbacks(Conversion& conversion, const ConvertOptions& options) {
  const std::string fallbacks = conversion::list_fallbacks(conversion);
  if (options.on_fallback == Fallback::kAllow || fallbacks.empty()) return;
  const auto count = std::count(fallbacks.begin(), fallbacks.end(), '\n') + 1;
  TORCH_CHECK(false, "convert: ", count, count == 1 ? " layer" : " layers", " cannot run on integers:\n", fallbacks,
              "\nGive ", count == 1 ? "it" : "them",
              " a QConfig of None, or convert with on_fallback=\"allow\" (C++: Fallback::kAllow) to keep float layers");
}

}  // namespace

namespace conversion {

Conversion start_conversion(const Module& prepared) {
  TORCH_CHECK(prepared.find_method("forward"), "convert: the module has no method 'forward'");
  Module copy = prepared.deepcopy(at::kCPU);  // weights are quantized and packed on the CPU, wherever the module lives
  copy.eval();
  Conversion conversion(freeze_parameters(copy), input_ranks(prepared), read_float_layers(prepared));
  check_convertible(conversion);
  return conversion;
}

void simplify(Conversion& conversion) {
  torch::jit::LowerSimpleTuples(conversion.shared_graph());
  torch::jit::RemoveTensorMutation(conversion.shared_graph());
  torch::jit::PeepholeOptimize(conversion.shared_graph());
  torch::jit::EliminateCommonSubexpression(conversion.shared_graph());
}

void run_passes(Conversion& conversion, bool islands, const std::function<void(const std::string&)>& after) {
  for (const Pass& pass : kPasses) {
    if (pass.joins_layers && !islands) continue;
    pass.run(conversion);
    torch::jit::EliminateDeadCode(conversion.shared_graph());
    if (after) after(pass.name);
  }
  conversion.graph().lint();
}

}  // namespace conversion

ConvertResult convert(const Module& prepared, const ConvertOptions& options) {
  ops::load_cuda_library();  // the result may be moved to a GPU
  const at::NoGradGuard no_grad;
  Conversion conversion = conversion::start_conversion(prepared);

  GraphDump dump;
  dump.write("frozen", conversion.graph());
  conversion::run_passes(conversion, options.islands,
                         [&](const std::string& pass) { dump.write(pass, conversion.graph()); });
  check_fallbacks(conversion, options);

  ConvertResult result{conversion.module(), conversion::make_receipt(conversion)};
  torch::jit::ConstantPooling(conversion.shared_graph());
  // Freezing drops the float weights. The result is what saving and loading gives, because the nodes here still point
  // to functions of `prepared` that are gone: reporting an error of an op would read them.
  result.module = archive::pass_through_archive(freeze_parameters(result.module));
  for (at::Tensor parameter : result.module.parameters()) parameter.set_requires_grad(false);
  dump.write("result", *result.module.get_method("forward").graph());
  return result;
}

}  // namespace torchquant
