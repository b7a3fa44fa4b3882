// The passes that turn fake-quants into quantize and dequantize and move those two through the graph.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ATen/Functions.h"
#include "convert/passes.h"
#include "support/graph_text.h"

namespace torchquant::conversion {
namespace {

using testing::after;
using testing::make_module;

// Two sets of parameters: (s, z) and (s2, z2).
testing::Buffers parameters() {
  return {{"s", at::full({1}, 0.5)},
          {"z", at::full({1}, 3.0)},
          {"s2", at::full({1}, 0.25)},
          {"z2", at::full({1}, 7.0)},
          {"p", at::ones({2})}};
}

torch::jit::Module module_of(const std::string& body, const std::string& inputs = "x") {
  return make_module(parameters(), inputs, body);
}

std::string fake_quantize(const std::string& x) {
  return "torchquant.fake_quantize(" + x + ", self.s, self.z, quant_min=0, quant_max=255)";
}
std::string quantize(const std::string& x, const std::string& n = "") {
  return "torchquant.quantize(" + x + ", self.s" + n + ", self.z" + n + ", dtype=0, quant_min=0, quant_max=255)";
}
std::string dequantize(const std::string& q, const std::string& n = "") {
  return "torchquant.dequantize(" + q + ", self.s" + n + ", self.z" + n + ", dtype=6)";
}
// A quantize and a dequantize as GraphText writes them.
std::string quantize_text(const std::string& x, const std::string& n = "") {
  return "torchquant::quantize(" + x + ", self.s" + n + ", self.z" + n + ", None, None, 0, 0, 255)\n";
}
std::string dequantize_text(const std::string& q, const std::string& n = "") {
  return "torchquant::dequantize(" + q + ", self.s" + n + ", self.z" + n + ", None, None, 6)\n";
}

TEST(LowerActivations, SplitsAFakeQuant) {
  EXPECT_EQ(after(module_of("return torch.relu(" + fake_quantize("x") + ")"), lower_activations),
            "%1 = " + quantize_text("x") + "%2 = " + dequantize_text("%1") + "%3 = aten::relu(%2)\nreturn %3\n");
}

TEST(LowerActivations, SharesTheCodesOfOneTensor) {
  const auto module = module_of("a = " + fake_quantize("x") + "\nb = " + fake_quantize("x") + "\nreturn a + b");
  EXPECT_EQ(after(module, lower_activations), "%1 = " + quantize_text("x") + "%2 = " + dequantize_text("%1") + "%3 = " +
                                                  dequantize_text("%1") + "%4 = aten::add(%2, %3, 1)\nreturn %4\n");
}

// Otherwise the layer before would have a second reader and could not take the quantize in.
TEST(LowerActivations, AsksTheCodesForSizes) {
  const auto module =
      module_of("y = torch.relu(x)\nq = " + fake_quantize("y") + "\nreturn torch.reshape(q, [y.size(0), -1])");
  EXPECT_EQ(after(module, lower_activations),
            "%1 = aten::relu(x)\n%2 = " + quantize_text("%1") + "%3 = " + dequantize_text("%2") +
                "%4 = aten::size(%2, 0)\n%5 = prim::ListConstruct(%4, -1)\n%6 = aten::reshape(%3, %5)\nreturn %6\n");
}

TEST(LowerActivations, StoresTheCodesOfAParameter) {
  EXPECT_EQ(after(module_of("return x + " + fake_quantize("self.p")), lower_activations),
            "%1 = " + dequantize_text("self._codes") + "%2 = aten::add(x, %1, 1)\nreturn %2\n");
}

TEST(LowerActivations, LeavesWeightsAndChannelsAlone) {
  const std::string weight =
      "return torch.linear(x, torchquant.fake_quantize(self.p, self.s, self.z, quant_min=-127, quant_max=127))";
  EXPECT_THAT(after(module_of(weight), lower_activations), ::testing::HasSubstr("torchquant::fake_quantize(self.p"));
  const std::string channels = "return torchquant.fake_quantize(x, self.p, self.p, axis=1, quant_min=0, quant_max=255)";
  EXPECT_THAT(after(module_of(channels), lower_activations), ::testing::HasSubstr("torchquant::fake_quantize(x"));
}

TEST(LowerActivations, RefusesABadScale) {
  const auto module =
      make_module({{"s", at::full({1}, 0.0)}, {"z", at::zeros({1})}}, "x", "return " + fake_quantize("x"));
  EXPECT_THAT([&] { after(module, lower_activations); },
              ::testing::ThrowsMessage<c10::Error>(::testing::HasSubstr("must be finite and > 0, with a finite reciprocal, got 0")));
}

// Its other readers would see the float tensor changed, and the codes not.
TEST(LowerActivations, RefusesAResultThatIsChangedInPlace) {
  const auto module = module_of("y = " + fake_quantize("x") + "\ny.add_(x)\nreturn y");
  EXPECT_THAT([&] { after(module, lower_activations); },
              ::testing::ThrowsMessage<c10::Error>(::testing::HasSubstr("changed in place")));
}

TEST(HoistQuantize, MovesOverConcatenationToEveryOperand) {
  const auto module =
      module_of("return " + quantize("torch.cat([torch.relu(x), " + dequantize("y", "2") + "], 1)"), "x, y");
  EXPECT_EQ(after(module, hoist_quantize), "%1 = aten::relu(x)\n%2 = " + dequantize_text("y", "2") +
                                               "%3 = " + quantize_text("%1") + "%4 = " + quantize_text("%2") +
                                               "%5 = prim::ListConstruct(%3, %4)\n%6 = aten::cat(%5, 1)\nreturn %6\n");
}

TEST(HoistQuantize, MovesOverPoolAndReshape) {
  const auto module = module_of("return " + quantize("torch.flatten(torch.max_pool2d(x, [2], [], [1]), 1)"));
  EXPECT_EQ(after(module, hoist_quantize), "%1 = " + quantize_text("x") +
                                               "%2 = torchquant::quantized_max_pool(%1, [2, 2], [2, 2], [1, 1], [1, "
                                               "1], False, 0)\n%3 = aten::flatten(%2, 1, -1)\n"
                                               "return %3\n");
}

// The float tensor is read as well, so the op before it must give floats anyway.
TEST(HoistQuantize, StaysWhereTheFloatsAreReadToo) {
  const auto module = module_of("y = torch.flatten(x, 1)\nreturn " + quantize("y") + ", y");
  EXPECT_EQ(after(module, hoist_quantize), "%1 = aten::flatten(x, 1, -1)\n%2 = " + quantize_text("%1") +
                                               "%3 = prim::TupleConstruct(%2, %1)\nreturn %3\n");
}

TEST(SinkDequantize, MovesBelowOpsThatMoveValues) {
  const auto module = module_of("y = torch.permute(" + dequantize(quantize("x")) +
                                ", [0, 2, 1])\nreturn torch.relu(torch.select(y, 1, 0))");
  EXPECT_EQ(after(module, sink_dequantize),
            "%1 = " + quantize_text("x") + "%2 = aten::permute(%1, [0, 2, 1])\n%3 = aten::select(%2, 1, 0)\n%4 = " +
                dequantize_text("%3") + "%5 = aten::relu(%4)\nreturn %5\n");
}

TEST(SinkDequantize, MovesIntoListsOfPieces) {
  const auto module = module_of("a, b = torch.chunk(" + dequantize(quantize("x")) + ", 2, 1)\nreturn torch.relu(b)");
  EXPECT_EQ(after(module, sink_dequantize), "%1 = " + quantize_text("x") +
                                                "%2 = aten::chunk(%1, 2, 1)\n"
                                                "%3, %4 = prim::ListUnpack(%2)\n%5 = " +
                                                dequantize_text("%4") + "%6 = aten::relu(%5)\nreturn %6\n");
}

TEST(SinkDequantize, JoinsTensorsOfOneScale) {
  const auto module =
      module_of("return torch.cat([" + dequantize(quantize("x")) + ", " + dequantize(quantize("y")) + "], 1)", "x, y");
  EXPECT_EQ(after(module, sink_dequantize), "%1 = " + quantize_text("x") + "%2 = " + quantize_text("y") +
                                                "%3 = prim::ListConstruct(%1, %2)\n%4 = aten::cat(%3, 1)\n%5 = " +
                                                dequantize_text("%4") + "return %5\n");
}

TEST(SinkDequantize, LeavesTensorsOfDifferentScalesInFloat) {
  const auto module = module_of(
      "return torch.cat([" + dequantize(quantize("x")) + ", " + dequantize(quantize("y", "2"), "2") + "], 1)", "x, y");
  EXPECT_THAT(after(module, sink_dequantize), ::testing::EndsWith("aten::cat(%5, 1)\nreturn %6\n"));
}

TEST(SinkDequantize, PadsWithTheCodeOfTheValue) {
  const auto pad = [](const std::string& value) {
    return module_of("return torch.pad(" + dequantize(quantize("x")) + ", [1, 1], \"constant\", " + value + ")");
  };
  const std::string head = "%1 = " + quantize_text("x");
  EXPECT_EQ(after(pad("None"), sink_dequantize),
            head + "%2 = aten::constant_pad_nd(%1, [1, 1], 3)\n%3 = " + dequantize_text("%2") + "return %3\n");
  EXPECT_EQ(after(pad("1.0"), sink_dequantize),
            head + "%2 = aten::constant_pad_nd(%1, [1, 1], 5)\n%3 = " + dequantize_text("%2") + "return %3\n");
  // No code stands for 0.3.
  EXPECT_EQ(after(pad("0.3"), sink_dequantize),
            head + "%2 = " + dequantize_text("%1") + "%3 = aten::pad(%2, [1, 1], constant, 0.3)\nreturn %3\n");
}

}  // namespace
}  // namespace torchquant::conversion
