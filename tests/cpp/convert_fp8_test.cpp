// lower_fp8_linear: the graph after it, the codes that it stores, and the layers that it leaves with a reason.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ATen/Functions.h"
#include "convert/graph.h"
#include "convert/passes.h"
#include "support/graph_text.h"

namespace torchquant::conversion {
namespace {

using testing::after;
using ::testing::HasSubstr;
using testing::make_module;

testing::Buffers buffers() {
  return {{"w", at::tensor({448.0f, 1.0f, -0.5f, 2.0f}).view({2, 2})},
          {"b", at::tensor({4.0f, 8.0f})},
          {"s", at::full({1}, 0.5)},
          {"ss", at::full({2}, 0.5)}};
}

constexpr const char* kWeight = "w = torchquant.fake_quantize_fp8(self.w, dtype=24)\n";
constexpr const char* kInput = "q = torchquant.fake_quantize_fp8(x, dtype=24)\n";

std::string lowered(const std::string& body) { return after(make_module(buffers(), "x", body), lower_fp8_linear); }

// The reason that the receipt gives for the only fallback.
std::string reason(const std::string& body) {
  Conversion conversion(make_module(buffers(), "x", body));
  lower_fp8_linear(conversion);
  for (const Node* node : all_nodes(conversion.graph())) {
    if (conversion.is_fallback(node)) return conversion.rows(node).front().reason;
  }
  return "";
}

TEST(LowerFp8Linear, TakesEachRowsOwnScaleOrOneThatIsGiven) {
  EXPECT_EQ(lowered(std::string(kWeight) + kInput + "return torch.relu(torch.linear(q, w, self.b))"),
            "%1 = torchquant::quantized_linear_fp8(x, self.w_weight_fp8, self.w_weight_scale, self.w_bias, None, 24)\n"
            "%2 = aten::relu(%1)\nreturn %2\n");
  EXPECT_EQ(
      lowered(std::string(kWeight) + "q = torchquant.fake_quantize_fp8(x, self.s, dtype=23)\n" +
              "return torch.linear(q, w)"),
      "%1 = torchquant::quantized_linear_fp8(x, self.w_weight_fp8, self.w_weight_scale, None, self.w_x_scale, 23)\n"
      "return %1\n");
}

TEST(LowerFp8Linear, StoresCodesAndOneScaleForEachOutputChannel) {
  Conversion conversion(make_module(buffers(), "x", std::string(kWeight) + kInput + "return torch.linear(q, w)"));
  lower_fp8_linear(conversion);
  const at::Tensor codes = conversion.module().attr("w_weight_fp8").toTensor();
  EXPECT_EQ(codes.scalar_type(), at::kFloat8_e4m3fn);
  EXPECT_TRUE(at::equal(codes.to(at::kFloat), at::tensor({448.0f, 1.0f, -112.0f, 448.0f}).view({2, 2})));
  const at::Tensor scale = conversion.module().attr("w_weight_scale").toTensor();
  EXPECT_TRUE(at::equal(scale, at::tensor({1.0f, 2.0f / 448.0f})));
}

TEST(LowerFp8Linear, SaysWhyALayerStaysFloat) {
  EXPECT_THAT(reason(std::string(kWeight) + "return torch.linear(x, w)"),
              HasSubstr("its input carries no fp8 fake-quant"));
  EXPECT_THAT(reason("w = torchquant.fake_quantize_fp8(self.w, self.s, dtype=24)\n" + std::string(kInput) +
                     "return torch.linear(q, w)"),
              HasSubstr("of its weight has a given scale"));
  EXPECT_THAT(reason(std::string(kWeight) + "q = torchquant.fake_quantize_fp8(x, self.ss, dtype=24)\n" +
                     "return torch.linear(q, w)"),
              HasSubstr("has several scales"));
  EXPECT_THAT(reason(std::string(kWeight) + "return torch.embedding(w, x)"),
              HasSubstr("there is no fp8 kernel for embedding"));
}

TEST(LowerFp8Linear, LeavesWeightsOfIntegersAlone) {
  const std::string body =
      "return torch.linear(x, torchquant.fake_quantize(self.w, self.s, self.s, quant_min=-127, quant_max=127))";
  EXPECT_THAT(lowered(body), HasSubstr("aten::linear"));
  EXPECT_EQ(reason(body), "");
}

}  // namespace
}  // namespace torchquant::conversion
