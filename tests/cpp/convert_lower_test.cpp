// The passes that emit fused ops: the graph after each, with the constants that the integer contract prescribes.
#include <ATen/TensorOperators.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ATen/Functions.h"
#include "convert/passes.h"
#include "support/graph_text.h"

namespace torchquant::conversion {
namespace {

using testing::after;
using testing::Buffers;
using ::testing::HasSubstr;
using testing::make_module;

// x is quantized with (0.5, 3); results with (2, 10); weights of two channels with scales 1 and 2.
Buffers buffers(at::IntArrayRef weight_shape = {2, 4}) {
  return {{"w", at::ones(weight_shape)},
          {"ws", at::tensor({1.0f, 2.0f})},
          {"wz", at::zeros({2})},
          {"s", at::full({1}, 0.5)},
          {"z", at::full({1}, 3.0)},
          {"ys", at::full({1}, 2.0)},
          {"yz", at::full({1}, 10.0)},
          {"b", at::tensor({4.0f, 8.0f})},
          {"mean", at::tensor({1.0f, 2.0f})},
          {"var", at::tensor({3.0f, 15.0f})},
          {"gamma", at::tensor({4.0f, -8.0f})},
          {"beta", at::tensor({1.0f, 1.0f})}};
}

constexpr const char* kWeight =
    "w = torchquant.fake_quantize(self.w, self.ws, self.wz, axis=0, quant_min=-127, quant_max=127)\n";
constexpr const char* kCodes = "q = torchquant.quantize(x, self.s, self.z, dtype=0, quant_min=0, quant_max=255)\n";
constexpr const char* kFloats = "d = torchquant.dequantize(q, self.s, self.z, dtype=6)\n";
const std::string kInput = std::string(kWeight) + kCodes + kFloats;
const std::string kOutput = "return torchquant.quantize(y, self.ys, self.yz, dtype=0, quant_min=0, quant_max=255)";
const std::string kCodesText = "%1 = torchquant::quantize(x, self.s, self.z, None, None, 0, 0, 255)\n";

// `rank` of x, where a test needs it known.
std::string lowered(const std::string& body, void (*pass)(Conversion&), at::IntArrayRef weight_shape = {2, 4},
                    std::optional<int64_t> rank = std::nullopt) {
  return after(make_module(buffers(weight_shape), "x", body), pass, {std::nullopt, rank});
}

// residual multiplier and zero point, activation, its arguments, scale, zero point, range and dtype of the output
TEST(LowerLinear, TakesInActivationAndQuantize) {
  EXPECT_EQ(
      lowered(kInput + "y = torch.hardtanh(torch.linear(d, w, self.b), -1, 4)\n" + kOutput, lower_linear),
      kCodesText +
          "%2 = torchquant::quantized_linear(%1, self.w_weight_int8, self.w_multiplier, self.w_bias, None, 3, 8, -127, "
          "1, 0, hardtanh, [-0.5, 2.], 2, 10, 0, 255, 0)\nreturn %2\n");
}

TEST(LowerLinear, GivesFloatsWhereNoQuantizeFollows) {
  EXPECT_EQ(
      lowered(kInput + "return torch.relu(torch.linear(d, w))", lower_linear),
      kCodesText +
          "%2 = torchquant::quantized_linear(%1, self.w_weight_int8, self.w_multiplier, self.w_bias, None, 3, 8, -127, "
          "1, 0, relu, [0., inf], 1, 0, 0, 255, 6)\nreturn %2\n");
}

// Either operand may be the residual; its multiplier is s / ys.
TEST(LowerLinear, TakesInAQuantizedResidualOnEitherSide) {
  const std::string expected =
      kCodesText +
      "%2 = torchquant::quantized_linear(%1, self.w_weight_int8, self.w_multiplier, self.w_bias, %1, 3, 8, -127, "
      "0.25, 3, relu, [0., inf], 2, 10, 0, 255, 0)\nreturn %2\n";
  EXPECT_EQ(lowered(kInput + "y = torch.relu(torch.linear(d, w) + d)\n" + kOutput, lower_linear, {2, 2}, 3), expected);
  EXPECT_EQ(lowered(kInput + "y = torch.relu(d + torch.linear(d, w))\n" + kOutput, lower_linear, {2, 2}, 3), expected);
}

TEST(LowerLinear, LeavesOtherAddsToFloat) {
  const std::string with_float = lowered(kInput + "y = torch.linear(d, w) + x\n" + kOutput, lower_linear);
  EXPECT_THAT(with_float, HasSubstr("aten::add(%2, x, 1)"));
  const std::string scaled =
      lowered(kInput + "y = torch.add(torch.linear(d, w), d, alpha=2)\n" + kOutput, lower_linear);
  EXPECT_THAT(scaled, HasSubstr("aten::add("));
  // The layer has two columns and x may have one, in any number of rows.
  const std::string other_shape = lowered(kInput + "y = torch.linear(d, w) + d\n" + kOutput, lower_linear, {2, 1}, 2);
  EXPECT_THAT(other_shape, HasSubstr("aten::add("));
  const std::string unknown_shape = lowered(kInput + "y = torch.linear(d, w) + d\n" + kOutput, lower_linear, {2, 2});
  EXPECT_THAT(unknown_shape, HasSubstr("aten::add("));
  const std::string twice = lowered(kInput + "c = torch.linear(d, w)\ny = c + c\n" + kOutput, lower_linear);
  EXPECT_THAT(twice, HasSubstr("aten::add(%2, %2, 1)"));
}

// The value is read twice, so the activation cannot take its place.
TEST(LowerLinear, StopsAtAValueThatIsReadTwice) {
  const std::string text = lowered(kInput + "c = torch.linear(d, w)\nreturn torch.relu(c), c", lower_linear);
  EXPECT_THAT(text, HasSubstr("1, 0, none, [], 1, 0, 0, 255, 6)\n%3 = aten::relu(%2)\n"));
}

// m = s_x * s_w * f / s_y and b = ((bias - mean) * f + beta) / s_y with f = gamma / sqrt(var + 1) = {2, -2}
TEST(LowerConvolution, TakesInBatchNorm) {
  const std::string body =
      kInput +
      "c = torch.convolution(d, w, self.b, [1], [2], [1], False, [0], 1)\n"
      "y = torch.batch_norm(c, self.gamma, self.beta, self.mean, self.var, False, 0.1, 1.0, True)\n" +
      kOutput;
  Conversion conversion(make_module(buffers({2, 4, 3}), "x", body));
  lower_convolution(conversion);
  torch::jit::EliminateDeadCode(conversion.shared_graph());
  EXPECT_EQ(testing::GraphText(conversion.graph()).str(),
            kCodesText +
                "%2 = torchquant::quantized_conv(%1, self.w_weight_int8, self.w_multiplier, self.w_bias, None, [3], "
                "[1], [2], [1], 1, "
                "False, [0], 3, 8, -127, 1, 0, none, [], 2, 10, 0, 255, 0)\nreturn %2\n");
  const auto stored = [&](const char* name) { return conversion.module().attr(name).toTensor(); };
  EXPECT_TRUE(at::equal(stored("w_multiplier"), at::tensor({0.5f, -1.0f}))) << stored("w_multiplier");
  EXPECT_TRUE(at::equal(stored("w_bias"), at::tensor({3.5f, -5.5f}))) << stored("w_bias");
}

TEST(LowerConvolution, LeavesBatchNormInTrainingModeAlone) {
  const std::string body =
      kInput +
      "c = torch.convolution(d, w, None, [1], [0], [1], False, [0], 1)\n"
      "return torch.batch_norm(c, self.gamma, self.beta, self.mean, self.var, True, 0.1, 1.0, True)";
  EXPECT_THAT(lowered(body, lower_convolution, {2, 4, 3}), HasSubstr("aten::batch_norm(%2"));
}

// A pooled tensor of one pixel is broadcast by the add, and a fused residual is not.
TEST(LowerConvolution, LeavesAnAddThatBroadcastsAlone) {
  const std::string body = std::string(kWeight) + kCodes + kFloats +
                           "m = torch.adaptive_avg_pool2d(d, [1, 1])\n"
                           "n = torchquant.dequantize(torchquant.quantize(m, self.s, self.z, dtype=0, quant_min=0, "
                           "quant_max=255), self.s, self.z, dtype=6)\n"
                           "y = d + torch.convolution(n, w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)\n" +
                           kOutput;
  EXPECT_THAT(lowered(body, lower_convolution, {2, 4, 1, 1}), HasSubstr("aten::add("));
}

TEST(LowerDynamicLinear, ReadsTheRowsOfAFloatTensor) {
  const std::string body =
      std::string(kWeight) +
      "s, z = torchquant.choose_qparams(x, axis=-1, group_size=x.size(-1), symmetric=True, quant_min=-127, "
      "quant_max=127)\n"
      "d = torchquant.fake_quantize(x, s, z, axis=-1, group_size=4, quant_min=-127, quant_max=127)\n"
      "return torch.gelu(torch.linear(d, w, self.b))";
  EXPECT_EQ(lowered(body, lower_dynamic_linear),
            "%1 = torchquant::quantized_linear_dynamic(x, self.w_weight_int8, self.w_weight_scale, self.w_bias, 8, "
            "-127, gelu, [])\n"
            "return %1\n");
}

TEST(LowerDynamicLinear, LowersInsideALoop) {
  const std::string body =
      std::string(kWeight) +
      "for i in range(3):\n"
      "  s, z = torchquant.choose_qparams(x, axis=-1, group_size=4, symmetric=True, quant_min=-127, quant_max=127)\n"
      "  x = torch.linear(torchquant.fake_quantize(x, s, z, axis=-1, group_size=4, quant_min=-127, quant_max=127), w)\n"
      "return x";
  EXPECT_EQ(lowered(body, lower_dynamic_linear),
            "%1 = prim::Loop(3, True, x)\n"
            "  %2 = torchquant::quantized_linear_dynamic(%3, self.w_weight_int8, self.w_weight_scale, None, 8, -127, "
            "none, [])\n"
            "  return True, %2\n"
            "return %1\n");
}

TEST(LowerWeightOnlyLinear, PacksGroupsOfFourBits) {
  Buffers grouped{
      {"w", at::ones({2, 4})}, {"ws", at::arange(1, 5, at::kFloat).view({2, 2})}, {"wz", at::full({2, 2}, 9.0)}};
  const std::string body =
      "w = torchquant.fake_quantize(self.w, self.ws, self.wz, axis=1, group_size=2, quant_min=0, quant_max=15)\n"
      "return torch.linear(x, w)";
  EXPECT_EQ(after(make_module(grouped, "x", body), lower_weight_only_linear),
            "%1 = torchquant::quantized_linear_weight_only(x, self.w_weight_int4, self.w_weight_scale, None, None, 4, "
            "-8, 2, none, [])\n"
            "return %1\n");
}

TEST(LowerEmbedding, KeepsTheTableInCodes) {
  EXPECT_EQ(lowered(std::string(kWeight) + "return torch.embedding(w, x)", lower_embedding),
            "%1 = torchquant::quantized_embedding(x, self.w_weight_int8, self.w_weight_scale, None, 8, -127, 4, None, "
            "6)\nreturn %1\n");
}

TEST(LowerBatchNorm, IsAConvolutionPerChannel) {
  const std::string norm =
      "y = torch.batch_norm(d, self.gamma, self.beta, self.mean, self.var, False, 0.1, 1.0, True)\n";
  const auto lowered_norm = [&](const std::string& rest, std::optional<int64_t> rank) {
    return lowered(std::string(kCodes) + kFloats + norm + rest, lower_batch_norm, {2, 4}, rank);
  };
  EXPECT_EQ(lowered_norm("y = torch.relu(y)\n" + kOutput, 4),
            kCodesText +
                "%2 = torchquant::quantized_conv(%1, self.batch_norm_weight_int8, self.batch_norm_multiplier, "
                "self.batch_norm_bias, None, [1, 1], [1, 1], [0, 0], [1, 1], 2, False, [0, 0], 3, 8, -127, 1, 0, relu, "
                "[0., inf], 2, 10, 0, 255, 0)\nreturn %2\n");
  EXPECT_THAT(lowered_norm("return y", 3), HasSubstr("None, [1], [1], [0], [1], 2, False, [0], 3, 8"));
  EXPECT_THAT(lowered_norm("return y", 2), HasSubstr("aten::batch_norm("));
  EXPECT_THAT(lowered_norm("return y", std::nullopt), HasSubstr("aten::batch_norm("));
}

TEST(LowerAveragePool, RequantizesTheSum) {
  EXPECT_EQ(lowered(std::string(kCodes) + kFloats + "y = torch.avg_pool2d(d, [2])\n" + kOutput, lower_average_pool),
            kCodesText +
                "%2 = torchquant::quantized_avg_pool(%1, [2, 2], [2, 2], [0, 0], False, True, None, 3, 0.25, 10, 0, "
                "255, 0)\nreturn %2\n");
  EXPECT_EQ(lowered(std::string(kCodes) + kFloats + "return torch.adaptive_avg_pool1d(d, [1])", lower_average_pool),
            kCodesText + "%2 = torchquant::quantized_adaptive_avg_pool(%1, [1], 3, 0.5, 0, 0, 255, 6)\nreturn %2\n");
}

TEST(LowerResize, RequantizesLinearAndBilinear) {
  EXPECT_EQ(lowered(std::string(kCodes) + kFloats +
                        "y = torch.upsample_bilinear2d(d, [4, 6], True, scale_factors=None)\n" + kOutput,
                    lower_resize),
            kCodesText +
                "%2 = torchquant::quantized_resize_linear(%1, [4, 6], True, None, 3, 0.25, 10, 0, 255, 0)\n"
                "return %2\n");
  EXPECT_EQ(
      lowered(std::string(kCodes) + kFloats + "return torch.upsample_linear1d(d, None, False, scale_factors=[2.0])",
              lower_resize),
      kCodesText +
          "%2 = torchquant::quantized_resize_linear(%1, None, False, [2.], 3, 0.5, 0, 0, 255, 6)\n"
          "return %2\n");
}

TEST(LowerResize, LeavesCubicResizesAndFloatsAlone) {
  const std::string cubic =
      lowered(std::string(kCodes) + kFloats + "return torch.upsample_bicubic2d(d, [4, 6], False, None)", lower_resize);
  EXPECT_THAT(cubic, HasSubstr("aten::upsample_bicubic2d("));
  const std::string floats =
      lowered("return torch.upsample_bilinear2d(x, [4, 6], False, scale_factors=None)", lower_resize);
  EXPECT_THAT(floats, HasSubstr("aten::upsample_bilinear2d(x"));
}

TEST(LowerAdd, KeepsTheOrderOfTheOperands) {
  const std::string body = std::string(kCodes) + kFloats +
                           "e = torchquant.dequantize(q, self.ys, self.yz, dtype=6)\ny = torch.relu6(e + d)\n" +
                           kOutput;
  EXPECT_EQ(
      lowered(body, lower_add),
      kCodesText +
          "%2 = torchquant::quantized_add(%1, %1, 1, 10, 0.25, 3, relu6, [0., 3.], 2, 10, 0, 255, 0)\nreturn %2\n");
}

TEST(LowerMul, MultipliesTheScales) {
  EXPECT_EQ(
      lowered(std::string(kCodes) + kFloats + "y = d * d\n" + kOutput, lower_mul),
      kCodesText + "%2 = torchquant::quantized_mul(%1, %1, 0.125, 3, 3, none, [], 2, 10, 0, 255, 0)\nreturn %2\n");
}

TEST(LowerMatmul, TakesInActivationAndQuantize) {
  const std::string transposed = "t = torchquant.dequantize(torch.transpose(q, 0, 1), self.ys, self.yz, dtype=6)\n";
  EXPECT_EQ(
      lowered(std::string(kCodes) + kFloats + transposed + "y = torch.relu6(torch.matmul(d, t))\n" + kOutput,
              lower_matmul),
      kCodesText +
          "%2 = aten::transpose(%1, 0, 1)\n"
          "%3 = torchquant::quantized_matmul(%1, %2, 0.5, 3, 10, relu6, [0., 3.], 2, 10, 0, 255, 0)\nreturn %3\n");
}

TEST(LowerMatmul, GivesFloatsWhereNoQuantizeFollows) {
  for (const std::string product : {"matmul", "bmm", "mm"}) {
    EXPECT_EQ(
        lowered(std::string(kCodes) + kFloats + "return torch.softmax(torch." + product + "(d, d), -1)", lower_matmul),
        kCodesText +
            "%2 = torchquant::quantized_matmul(%1, %1, 0.25, 3, 3, none, [], 1, 0, 0, 255, 6)\n"
            "%3 = aten::softmax(%2, -1, None)\nreturn %3\n");
  }
}

TEST(LowerMatmul, TakesInANumberThatScalesIt) {
  const std::string product = std::string(kCodes) + kFloats + "y = torch.matmul(d, d)";
  EXPECT_EQ(lowered(product + " / 8.0\n" + kOutput, lower_matmul),
            kCodesText +
                "%2 = torchquant::quantized_matmul(%1, %1, 0.015625, 3, 3, none, [], 2, 10, 0, 255, 0)\n"
                "return %2\n");
  EXPECT_EQ(lowered(product + " * 2.0\nreturn torch.softmax(y, -1)", lower_matmul),
            kCodesText +
                "%2 = torchquant::quantized_matmul(%1, %1, 0.5, 3, 3, none, [], 1, 0, 0, 255, 6)\n"
                "%3 = aten::softmax(%2, -1, None)\nreturn %3\n");
  EXPECT_THAT(lowered(product + " / 0.0\nreturn y", lower_matmul), HasSubstr("aten::div("));
  EXPECT_THAT(lowered(product + " * self.b[0:1]\nreturn y", lower_matmul), HasSubstr("aten::mul("));
}

TEST(LowerMatmul, LeavesFloatsAndVectorsAlone) {
  const std::string mixed = lowered(std::string(kCodes) + kFloats + "return torch.matmul(d, x)", lower_matmul);
  EXPECT_THAT(mixed, HasSubstr("aten::matmul("));
  const std::string vectors =
      lowered(std::string(kCodes) + kFloats + "return torch.matmul(d, d)", lower_matmul, {2, 4}, /*rank=*/1);
  EXPECT_THAT(vectors, HasSubstr("aten::matmul("));
}

// The sigmoid meets its own argument again, and a constant: still one function of one tensor.
TEST(LowerPointwise, MakesATableOfAFunction) {
  const std::string body = std::string(kCodes) + kFloats + "y = d * torch.sigmoid(d) + 1\n" + kOutput;
  Conversion conversion(make_module(buffers(), "x", body));
  lower_pointwise(conversion);
  torch::jit::EliminateDeadCode(conversion.shared_graph());
  EXPECT_EQ(testing::GraphText(conversion.graph()).str(),
            kCodesText + "%2 = torchquant::quantized_lookup(%1, self.add_table, 0, 0)\nreturn %2\n");
  const at::Tensor x = (at::arange(256, at::kDouble) - 3) * 0.5;
  const at::Tensor expected = ((x * x.sigmoid() + 1) / 2).round().add(10).clamp(0, 255).to(at::kByte);
  EXPECT_TRUE(at::equal(conversion.module().attr("add_table").toTensor(), expected));
}

TEST(LowerPointwise, DropsAChangeToTheSameParameters) {
  EXPECT_EQ(lowered(std::string(kCodes) + kFloats +
                        "return torchquant.quantize(d, self.s, self.z, dtype=0, quant_min=0, quant_max=255)",
                    lower_pointwise),
            kCodesText + "return %1\n");
}

TEST(LowerPointwise, LooksUpAChangeOfParameters) {
  EXPECT_THAT(lowered(std::string(kCodes) + kFloats + "y = d\n" + kOutput, lower_pointwise),
              HasSubstr("torchquant::quantized_lookup(%1"));
}

// A tensor with an element for each channel is no function of the value alone.
TEST(LowerPointwise, LeavesFunctionsOfThePositionAlone) {
  EXPECT_THAT(lowered(std::string(kCodes) + kFloats + "y = d * self.b\n" + kOutput, lower_pointwise),
              HasSubstr("aten::mul("));
}

// As tracing leaves it: the device of the CPU copy, and a tensor that the forward made.
TEST(FollowInputDevice, AsksTheInputAndStoresTensors) {
  auto module = make_module({}, "x", "return x");
  const auto graph = module.get_method("forward").graph();
  torch::jit::Value* x = graph->inputs()[1];
  const torch::jit::WithInsertPoint guard(graph->return_node());
  torch::jit::Value* zeros =
      graph->insert(c10::aten::zeros, {std::vector<int64_t>{2}}, {{"device", at::Device(at::kCPU)}});
  torch::jit::Value* moved = graph->insert(c10::aten::add, {x, zeros});
  torch::jit::Value* sum = graph->insert(c10::aten::add, {moved, at::ones({2})});
  graph->eraseOutput(0);
  graph->registerOutput(sum);

  Conversion conversion(module);
  follow_input_device(conversion);
  EXPECT_EQ(testing::GraphText(conversion.graph()).str(),
            "%1 = prim::device(x)\n%2 = aten::zeros([2], None, None, %1, None)\n%3 = aten::add(x, %2, 1)\n"
            "%4 = aten::add(%3, self.constant, 1)\nreturn %4\n");
}

}  // namespace
}  // namespace torchquant::conversion
