// convert() as a whole: what it computes, what its module and receipt hold, and each of its errors.
#include "convert/convert.h"

#include <ATen/TensorOperators.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "ATen/Functions.h"
#include "kernels/isa.h"
#include "support/graph_text.h"

namespace torchquant {
namespace {

using ::testing::AllOf;
using testing::Buffers;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::make_module;
using ::testing::Not;
using ::testing::ThrowsMessage;

// Two layers of one width, so that they can follow each other and reuse one another's weights.
Buffers buffers() {
  at::manual_seed(0);
  return {{"w", at::randn({4, 4})}, {"ws", at::full({4}, 0.02)}, {"wz", at::zeros({4})},
          {"b", at::randn({4})},    {"s", at::full({1}, 0.03)},  {"z", at::full({1}, 120.0)},
          {"u", at::randn({4, 4})}, {"k", at::randn({4, 4, 3})}, {"ps", at::arange(1, 5) * 0.05f},
          {"pz", at::zeros({4})}};
}

constexpr const char* kDefinitions =
    "x = torchquant.fake_quantize(x, self.s, self.z, quant_min=0, quant_max=255)\n"
    "w = torchquant.fake_quantize(self.w, self.ws, self.wz, axis=0, quant_min=-127, quant_max=127)\n"
    "k = torchquant.fake_quantize(self.k, self.ws, self.wz, axis=0, quant_min=-127, quant_max=127)\n";

// x is a matrix, as tracing tells.
torch::jit::Module prepared(const std::string& body) {
  auto module = make_module(buffers(), "x", kDefinitions + body);
  module.get_method("forward").graph()->inputs()[1]->setType(c10::TensorType::get()->withDim(2));
  return module;
}

std::vector<std::string> layers(const Receipt& receipt) {
  std::vector<std::string> names;
  for (const auto& row : receipt.rows) names.push_back(row.layer + ":" + row.kernel);
  return names;
}

std::vector<std::string> buffer_names(const torch::jit::Module& module) {
  std::vector<std::string> names;
  for (const auto& buffer : module.named_buffers()) names.push_back(buffer.name);
  return names;
}

TEST(Convert, ComputesWhatTheFakeQuantizedModuleComputes) {
  auto module = prepared(
      "y = torchquant.fake_quantize(torch.relu(torch.linear(x, w, self.b)), self.s, self.z, quant_min=0, "
      "quant_max=255)\n"
      "return torch.linear(y, w) + x");
  auto result = convert(module);
  const at::Tensor x = at::randn({64, 4});
  const at::Tensor expected = module.forward({x}).toTensor();
  EXPECT_LT((result.module.forward({x}).toTensor() - expected).abs().max().item<float>(), 1e-5f);
  const std::string kernel = std::string("quantized_linear/") + kernels::isa_name(kernels::selected_isa());
  EXPECT_THAT(layers(result.receipt), ElementsAre("w:" + kernel, "w#2:" + kernel));
  EXPECT_THAT(result.receipt.rows[1].fused, ElementsAre("add"));
}

TEST(Convert, HoldsOneCopyOfSharedWeightsAndNoFloatWeights) {
  const auto result =
      convert(prepared("return torch.linear(torch.tanh(torch.linear(x, w)), self.u), torch.linear(x, w)"));
  EXPECT_THAT(buffer_names(result.module),
              ::testing::UnorderedElementsAre("s", "z", "u", "w_weight_int8", "w_multiplier", "w_bias"));
}

TEST(Convert, LeavesTheGivenModuleAlone) {
  const auto module = prepared("return torch.linear(x, w) + self.b");
  const std::string graph = module.get_method("forward").graph()->toString();
  const auto names = buffer_names(module);
  const auto result = convert(module);
  EXPECT_EQ(module.get_method("forward").graph()->toString(), graph);
  EXPECT_EQ(buffer_names(module), names);
  EXPECT_TRUE(module.is_training());
  // Training the given module on must not change the converted one.
  module.attr("b").toTensor().zero_();
  EXPECT_GT(result.module.attr("b").toTensor().abs().max().item<float>(), 0.0f);
}

TEST(Convert, ListsEveryFallbackInOneError) {
  const auto module = prepared(
      "y = torch.linear(torch.relu(x), torchquant.fake_quantize(self.u, self.ps, self.pz, axis=1, quant_min=-127, "
      "quant_max=127))\n"
      "return y + torch.mean(torch.conv1d(torch.neg(y).unsqueeze(-1), k, None, [1], [1]))");
  EXPECT_THAT([&] { convert(module); },
              ThrowsMessage<c10::Error>(AllOf(
                  HasSubstr("2 layers cannot run on integers"), HasSubstr("u (linear): its weight's scales differ"),
                  HasSubstr("k (conv1d): its input carries no fake-quant, and there is no weight-only kernel"),
                  HasSubstr("on_fallback=\"allow\""))));
}

TEST(Convert, KeepsAllowedFallbacksInFloat) {
  auto module = prepared("return torch.conv1d(torch.neg(x).unsqueeze(-1), k, None, [1], [1])");
  auto result = convert(module, {.on_fallback = Fallback::kAllow});
  const at::Tensor x = at::randn({8, 4});
  EXPECT_TRUE(at::equal(result.module.forward({x}).toTensor(), module.forward({x}).toTensor()));
  ASSERT_EQ(result.receipt.rows.size(), 1u);
  EXPECT_EQ(result.receipt.rows[0].precision, "float");
  EXPECT_THAT(result.receipt.rows[0].reason, HasSubstr("no weight-only kernel for conv1d"));
}

TEST(Convert, NamesWhatStaysFloatByDesign) {
  const auto result = convert(prepared("return torch.softmax(torch.matmul(torch.linear(x, w), self.u), -1)"));
  ASSERT_EQ(result.receipt.rows.size(), 3u);
  EXPECT_EQ(result.receipt.rows[1].kind, "matmul");
  EXPECT_THAT(result.receipt.rows[1].reason,
              HasSubstr("float by design: QConfigMapping.set_object_type(\"matmul\", ...)"));
  EXPECT_EQ(result.receipt.rows[2].kind, "softmax");
}

TEST(Convert, LeavesAddsOfFloatsAlone) {
  auto module = prepared("return torch.linear(x, w) + torch.linear(x, w, self.b)");
  auto result = convert(module);
  const at::Tensor x = at::randn({8, 4});
  EXPECT_TRUE(at::allclose(result.module.forward({x}).toTensor(), module.forward({x}).toTensor(), 1e-5, 1e-5));
}

// A linear layer that sums `depth` products of codes from `lowest` up.
torch::jit::Module deep_linear(int64_t depth, int64_t lowest) {
  Buffers deep{{"w", at::full({1, depth}, static_cast<float>(lowest))},
               {"ws", at::ones({1})},
               {"wz", at::zeros({1})},
               {"s", at::ones({1})},
               {"z", at::zeros({1})}};
  return make_module(deep, "x",
                     "x = torchquant.fake_quantize(x, self.s, self.z, quant_min=0, quant_max=255)\n"
                     "return torch.linear(x, torchquant.fake_quantize(self.w, self.ws, self.wz, axis=0, quant_min=" +
                         std::to_string(lowest) + ", quant_max=127))");
}

TEST(Convert, RefusesASumThatCouldOverflow) {
  const auto module = deep_linear(66312, -127);
  EXPECT_THAT([&] { convert(module); },
              ThrowsMessage<c10::Error>(HasSubstr("sums 66312 products, and an int32 sum holds at most 66311")));
}

// A weight code may be -128 where the range of the codes says so.
TEST(Convert, RefusesASumThatTheLowestCodeCouldOverflow) {
  const auto module = deep_linear(66311, -128);
  EXPECT_THAT([&] { convert(module); },
              ThrowsMessage<c10::Error>(HasSubstr("sums 66311 products, and an int32 sum holds at most 65793")));
}

// The nodes of the graph must not point to functions that conversion freed: reporting the error would read them.
TEST(Convert, AnErrorOfAnOpIsReported) {
  auto converted = convert(prepared("return torch.linear(torch.relu(torch.linear(x, w)), w)")).module;
  EXPECT_THAT(
      [&] {
        converted.forward({at::ones({2, 3})});
      },
      ThrowsMessage<std::exception>(HasSubstr("quantized_linear")));
}

TEST(Convert, RefusesAModuleWithoutFakeQuants) {
  const auto module = make_module({}, "x", "return torch.relu(x)");
  EXPECT_THAT([&] { convert(module); },
              ThrowsMessage<c10::Error>(AllOf(HasSubstr("nothing to quantize"), HasSubstr("Call prepare"))));
}

TEST(Convert, RefusesAConvertedModule) {
  const auto converted = convert(prepared("return torch.linear(x, w)")).module;
  EXPECT_THAT([&] { convert(converted); }, ThrowsMessage<c10::Error>(HasSubstr("the module is converted already")));
}

TEST(Convert, RefusesAModuleWithoutForward) {
  EXPECT_THAT([] { convert(torch::jit::Module("Net")); }, ThrowsMessage<c10::Error>(HasSubstr("no method 'forward'")));
}

TEST(Convert, RefusesABadWeightScale) {
  auto broken = buffers();
  broken[1].second = at::tensor({1.0f, std::numeric_limits<float>::quiet_NaN(), 1.0f, 1.0f});
  const auto module = make_module(broken, "x", std::string(kDefinitions) + "return torch.linear(x, w)");
  EXPECT_THAT(
      [&] { convert(module); },
      ThrowsMessage<c10::Error>(HasSubstr(
          "the scale of the weight of 'w' must be finite and > 0, with a finite reciprocal, got nan at index 1")));
}

TEST(Convert, DumpsTheGraphAfterEveryPass) {
  namespace fs = std::filesystem;
  const fs::path directory = fs::temp_directory_path() / ("torchquant-dump-" + std::to_string(getpid()));
  setenv("TORCHQUANT_DUMP_GRAPH", directory.c_str(), 1);
  convert(prepared("return torch.linear(x, w)"));
  unsetenv("TORCHQUANT_DUMP_GRAPH");
  EXPECT_TRUE(fs::exists(directory / "00_frozen.txt"));
  EXPECT_TRUE(fs::exists(directory / "07_lower_activations.txt"));
  fs::remove_all(directory);
}

}  // namespace
}  // namespace torchquant
