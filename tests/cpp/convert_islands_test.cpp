// form_islands: which ops become one island, what its program says, and what stays outside.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ATen/Functions.h"
#include "convert/passes.h"
#include "ops/island/program.h"
#include "support/graph_text.h"

namespace torchquant::conversion {
namespace {

using testing::after;
using testing::Buffers;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::make_module;
using ::testing::Not;

Buffers buffers() { return {{"s", at::full({1}, 0.5)}, {"z", at::full({1}, 3.0)}, {"t", at::zeros({256}, at::kByte)}}; }

constexpr const char* kCodes = "q = torchquant.quantize(x, self.s, self.z, dtype=0, quant_min=0, quant_max=255)\n";
constexpr const char* kFloats = "return torchquant.dequantize(q, self.s, self.z, dtype=6)";
constexpr const char* kLookup = "q = torchquant.quantized_lookup(q, self.t, table_min=0, output_dtype=0)\n";

std::string islands(const std::string& body) { return after(make_module(buffers(), "x", body), form_islands); }

// The program of the graph's only island.
island::Program program(const std::string& body) {
  Conversion conversion(make_module(buffers(), "x", body));
  auto graph = conversion.shared_graph();
  torch::jit::ConstantPropagation(graph);
  form_islands(conversion);
  for (const torch::jit::Node* node : conversion.graph().nodes()) {
    if (std::string(node->kind().toQualString()) != "torchquant::quantized_island") continue;
    return island::Program::parse(torch::jit::toIValue(node->namedInput("program"))->toStringView());
  }
  return {};
}

std::vector<std::string> ops(const island::Program& program) {
  std::vector<std::string> names;
  for (const island::Step& step : program.steps) names.push_back(step.op);
  return names;
}

constexpr const char* kOneIsland =
    R"(%1 = prim::ListConstruct(x)
%2 = prim::ListConstruct()
%3 = prim::ListConstruct(self.s, self.z, self.t)
%4 = torchquant::quantized_island(%1, %2, %3, {"version":1,"steps":[)"
    R"({"op":"torchquant::quantize","args":[{"input":0},{"constant":0},{"constant":1},null,null,0,0,255]},)"
    R"({"op":"torchquant::quantized_lookup","args":[{"value":0},{"constant":2},0,0]},)"
    R"({"op":"torchquant::dequantize","args":[{"value":1},{"constant":0},{"constant":1},null,null,6]}],)"
    R"("outputs":[{"value":2}]})
%5 = prim::ListUnpack(%4)
return %5
)";

TEST(FormIslands, TurnsAConnectedRunIntoOneOp) {
  EXPECT_EQ(islands(std::string(kCodes) + kLookup + kFloats), kOneIsland);
}

TEST(FormIslands, LeavesASingleOpAlone) {
  EXPECT_THAT(islands(std::string(kCodes) + "return q"), Not(HasSubstr("island")));
}

// tanh reads the first half and feeds the second: one island for both would wait for itself.
TEST(FormIslands, StopsWhereAPathLeavesIntegersAndComesBack) {
  const std::string text =
      islands(std::string(kCodes) + kLookup +
              "d = torch.tanh(torchquant.dequantize(q, self.s, self.z, dtype=6))\n"
              "r = torchquant.quantize(d, self.s, self.z, dtype=0, quant_min=0, quant_max=255)\n"
              "q = torchquant.quantized_add(q, r, a_multiplier=1., a_zero_point=3, b_multiplier=1., b_zero_point=3, "
              "output_dtype=0)\n" +
              kFloats);
  const size_t first = text.find("quantized_island");
  const size_t between = text.find("aten::tanh");
  const size_t second = text.find("quantized_island", between);
  EXPECT_LT(first, between);
  EXPECT_NE(second, std::string::npos);
  EXPECT_EQ(text.find("quantized_island", second + 1), std::string::npos);
}

TEST(FormIslands, ComputesSizesInside) {
  const island::Program found =
      program(std::string(kCodes) + "q = q.reshape([q.size(0), q.size(1) * 2, -1])\n" + kLookup + "return q");
  EXPECT_THAT(ops(found), ElementsAre("torchquant::quantize", island::kSizeOf, island::kSizeOf, island::kMultiplySizes,
                                      "aten::reshape", "torchquant::quantized_lookup"));
}

TEST(FormIslands, ReadsSizesOfItsInputsFromOutside) {
  const std::string body =
      "n = x.size(0)\n" + std::string(kCodes) + "q = q.reshape([n, -1])\n" + kLookup + "return q, n";
  EXPECT_THAT(islands(body), HasSubstr("= prim::ListConstruct(%1)\n"));
  const island::Program found = program(body);
  EXPECT_THAT(ops(found), ElementsAre("torchquant::quantize", "aten::reshape", "torchquant::quantized_lookup"));
  EXPECT_EQ(std::get<island::Reference>(std::get<island::List>(found.steps[1].arguments[1].content)[0].content),
            (island::Reference{island::Source::kSize, 0}));
}

// A size that a reader outside needs as well is computed there once more, from the island's result.
TEST(FormIslands, KeepsSizesThatAreReadOutside) {
  const std::string text =
      islands(std::string(kCodes) + kLookup + "n = q.size(0)\nq = q.reshape([n, -1])\n" + kLookup + "return q, n");
  EXPECT_LT(text.find("quantized_island"), text.find("aten::size"));
}

TEST(FormIslands, TakesInConcatenationsAndChunks) {
  const island::Program found = program(std::string(kCodes) + "a, b = torch.chunk(q, 2, 1)\n" +
                                        "q = torch.cat([b, a], 1)\n" + kLookup + "return q");
  EXPECT_THAT(ops(found), ElementsAre("torchquant::quantize", "aten::chunk", island::kUnpack, "aten::cat",
                                      "torchquant::quantized_lookup"));
}

TEST(IslandProgram, ReadsBackWhatItWrites) {
  const std::string text =
      R"({"version":1,"steps":[{"op":"a::b.c","args":[{"input":0},{"size":1},null,true,-3,0.1,{"float":"inf"},"x",[1,[{"constant":2}]]],)"
      R"("results":2}],"outputs":[{"value":1}]})";
  EXPECT_EQ(island::Program::parse(text).to_text(), text);
}

TEST(IslandProgram, RefusesWhatItCannotRead) {
  for (const char* text :
       {"", "{}", R"({"version":2,"steps":[],"outputs":[]})", R"({"version":1,"steps":[],"outputs":[{"value":0}]})",
        R"({"version":1,"steps":[{"op":"a","args":[{"value":0}]}],"outputs":[]})"}) {
    EXPECT_THROW(island::Program::parse(text), c10::Error) << text;
  }
}

}  // namespace
}  // namespace torchquant::conversion
