// The passes that bring a graph into one form: each test holds a graph before and the whole graph after.
#include <gtest/gtest.h>

#include "ATen/Functions.h"
#include "convert/passes.h"
#include "support/graph_text.h"

namespace torchquant::conversion {
namespace {

using testing::after;
using testing::make_module;

// A weight with its fake-quant, in the source and in what is expected of the result.
constexpr const char* kFakeQuant =
    "w = torchquant.fake_quantize(self.w, self.s, self.z, axis=0, quant_min=-127, quant_max=127)\n";
constexpr const char* kFakeQuantText =
    "%1 = torchquant::fake_quantize(self.w, self.s, self.z, 0, None, -127, 127, 1)\n";

torch::jit::Module with_weight(at::IntArrayRef shape, const std::string& body, const std::string& inputs = "x") {
  return make_module(
      {{"w", at::ones(shape)}, {"s", at::ones({shape[0]})}, {"z", at::zeros({shape[0]})}, {"b", at::ones({shape[0]})}},
      inputs, kFakeQuant + body);
}

TEST(RemoveIdentities, DropsDropoutInEvalMode) {
  const auto module =
      make_module({}, "x", "return torch.relu(torch.feature_dropout(torch.dropout(x, 0.5, False), 0.1, False))");
  EXPECT_EQ(after(module, remove_identities), "%1 = aten::relu(x)\nreturn %1\n");
}

TEST(RemoveIdentities, KeepsDropoutThatIsAskedToTrain) {
  const auto module = make_module({}, "x", "return torch.dropout(x, 0.5, True)");
  EXPECT_EQ(after(module, remove_identities), "%1 = aten::dropout(x, 0.5, True)\nreturn %1\n");
}

// An integer convolution gives a channels-last tensor, of which a view fails.
TEST(NormalizeShapes, ReshapesInsteadOfViewing) {
  const auto module = make_module({}, "x", "return x.view([2, -1])");
  EXPECT_EQ(after(module, normalize_shapes), "%1 = aten::reshape(x, [2, -1])\nreturn %1\n");
}

// Scripted nn.BatchNorm2d asks for the rank of a convolution's result, which would then have two readers.
TEST(NormalizeShapes, FoldsTheRankOfAConvolution) {
  const auto module =
      with_weight({4, 3, 3, 3}, "y = torch.conv2d(x, w)\nif y.dim() != 4:\n  y = torch.neg(y)\nreturn y");
  EXPECT_EQ(after(module, normalize_shapes),
            std::string(kFakeQuantText) + "%2 = aten::conv2d(x, %1, None, [1, 1], [0, 0], [1, 1], 1)\nreturn %2\n");
}

TEST(NormalizeConvolution, WritesScriptedAndTracedFormsAlike) {
  const std::string expected =
      std::string(kFakeQuantText) +
      "%2 = aten::convolution(x, %1, self.b, [2, 2], [1, 1], [1, 1], False, [0, 0], 1)\nreturn %2\n";
  EXPECT_EQ(after(with_weight({4, 3, 3, 3}, "return torch.conv2d(x, w, self.b, [2], [1])"), normalize_convolution),
            expected);
  EXPECT_EQ(after(with_weight({4, 3, 3, 3},
                              "return torch._convolution(x, w, self.b, [2, 2], [1, 1], [1, 1], False, [0, 0], 1, "
                              "False, False, True, True)"),
                  normalize_convolution),
            expected);
}

TEST(NormalizeConvolution, KeepsSettingsOfTransposedConvolutions) {
  const auto module = with_weight({4, 3, 3}, "return torch.conv_transpose1d(x, w, None, [2], [1], [1], 2)");
  EXPECT_EQ(
      after(module, normalize_convolution),
      std::string(kFakeQuantText) + "%2 = aten::convolution(x, %1, None, [2], [1], [1], True, [1], 2)\nreturn %2\n");
}

TEST(NormalizeConvolution, SpellsOutSamePadding) {
  const auto module =
      with_weight({4, 3, 3, 5}, "return torch._convolution_mode(x, w, None, [1, 1], \"same\", [2, 1], 1)");
  EXPECT_EQ(after(module, normalize_convolution),
            std::string(kFakeQuantText) +
                "%2 = aten::convolution(x, %1, None, [1, 1], [2, 2], [2, 1], False, [0, 0], 1)\nreturn %2\n");
}

// An even kernel cannot be padded alike at both ends; torch pads the far one.
TEST(NormalizeConvolution, PadsTheFarEndOfAnEvenKernel) {
  const auto module =
      with_weight({4, 3, 3, 2}, "return torch._convolution_mode(x, w, None, [1, 1], \"same\", [1, 1], 1)");
  EXPECT_EQ(after(module, normalize_convolution),
            std::string(kFakeQuantText) +
                "%2 = aten::constant_pad_nd(x, [0, 1, 0, 0], 0)\n"
                "%3 = aten::convolution(%2, %1, None, [1, 1], [1, 0], [1, 1], False, [0, 0], 1)\nreturn %3\n");
}

TEST(NormalizeConvolution, LeavesFloatConvolutionsAlone) {
  const auto module = make_module({{"w", at::ones({4, 3, 3})}}, "x", "return torch.conv1d(x, self.w)");
  EXPECT_EQ(after(module, normalize_convolution), "%1 = aten::conv1d(x, self.w, None, [1], [0], [1], 1)\nreturn %1\n");
}

TEST(NormalizeLinear, TakesTheBiasThatFollowsAProduct) {
  const std::string expected =
      std::string(kFakeQuantText) + "%2 = aten::t(%1)\n%3 = aten::linear(x, %2, self.b)\nreturn %3\n";
  EXPECT_EQ(after(with_weight({4, 4}, "return torch.matmul(x, w) + self.b"), normalize_linear), expected);
  EXPECT_EQ(after(with_weight({4, 4}, "return self.b + torch.mm(x, w)"), normalize_linear), expected);
  EXPECT_EQ(after(with_weight({4, 4}, "return torch.addmm(self.b, x, w)"), normalize_linear), expected);
}

TEST(NormalizeLinear, LeavesOtherAddsAlone) {
  const auto module = with_weight({4, 4}, "return torch.matmul(x, w) + y", "x, y");
  EXPECT_EQ(after(module, normalize_linear),
            std::string(kFakeQuantText) +
                "%2 = aten::t(%1)\n%3 = aten::linear(x, %2, None)\n%4 = aten::add(%3, y, 1)\nreturn %4\n");
}

// addmm that scales its bias is no linear layer.
TEST(NormalizeLinear, LeavesScaledAddmmAlone) {
  const auto module = with_weight({4, 4}, "return torch.addmm(self.b, x, w, beta=2)");
  EXPECT_EQ(after(module, normalize_linear),
            std::string(kFakeQuantText) + "%2 = aten::addmm(self.b, x, %1, 2, 1)\nreturn %2\n");
}

constexpr const char* kConvAndFakeQuant =
    "y = torchquant.fake_quantize(torch.conv2d(x, w), self.ys, self.yz, quant_min=0, quant_max=255)\n";

torch::jit::Module mean_of_conv(const std::string& mean) {
  return make_module({{"w", at::ones({4, 3, 3, 3})},
                      {"s", at::ones({4})},
                      {"z", at::zeros({4})},
                      {"ys", at::ones({1})},
                      {"yz", at::zeros({1})}},
                     "x", std::string(kFakeQuant) + kConvAndFakeQuant + mean);
}

constexpr const char* kConvAndFakeQuantText =
    "%2 = aten::conv2d(x, %1, None, [1, 1], [0, 0], [1, 1], 1)\n"
    "%3 = torchquant::fake_quantize(%2, self.ys, self.yz, None, None, 0, 255, 1)\n";

TEST(NormalizeMean, PoolsOverEverySpatialDimension) {
  const std::string head = std::string(kFakeQuantText) + kConvAndFakeQuantText;
  EXPECT_EQ(after(mean_of_conv("return torch.mean(y, [-1, -2], True)"), normalize_mean),
            head + "%4 = aten::adaptive_avg_pool2d(%3, [1, 1])\nreturn %4\n");
  EXPECT_EQ(after(mean_of_conv("return torch.mean(y, [2, 3])"), normalize_mean),
            head + "%4 = aten::adaptive_avg_pool2d(%3, [1, 1])\n%5 = aten::flatten(%4, 1, -1)\nreturn %5\n");
}

TEST(NormalizeMean, LeavesOtherMeansAlone) {
  const std::string head = std::string(kFakeQuantText) + kConvAndFakeQuantText;
  EXPECT_EQ(after(mean_of_conv("return torch.mean(y, [1, 2])"), normalize_mean),
            head + "%4 = aten::mean(%3, [1, 2], False, None)\nreturn %4\n");
  EXPECT_EQ(after(mean_of_conv("return torch.mean(y, [3])"), normalize_mean),
            head + "%4 = aten::mean(%3, [3], False, None)\nreturn %4\n");
}

}  // namespace
}  // namespace torchquant::conversion
