// The constant evaluator: what it resolves, what it refuses, and evaluation on substituted tensors.
#include "convert/evaluate.h"

#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include "ATen/Functions.h"
#include "support/graph_text.h"

namespace torchquant::conversion {
namespace {

// The value that forward returns, evaluated.
std::optional<c10::IValue> evaluate_body(const std::string& body, const Known& known = {}) {
  const auto module = testing::make_module({{"w", at::arange(6, at::kFloat).view({2, 3})}}, "x", body);
  const auto graph = module.get_method("forward").graph();
  return evaluate(graph->outputs()[0], module, known);
}

TEST(Evaluate, RunsPureOpsOverAttributes) {
  const auto value = evaluate_body("return torch.exp(torch.t(self.w) * 2)");
  ASSERT_TRUE(value);
  EXPECT_TRUE(at::equal(value->toTensor(), at::arange(6, at::kFloat).view({2, 3}).t().mul(2).exp()));
}

TEST(Evaluate, ReadsListsAndTuples) {
  const auto value = evaluate_body("a, b, c = torch.chunk(self.w, 3, 1)\nt = (torch.cat([c, a], 1), b)\nreturn t[0]");
  ASSERT_TRUE(value);
  EXPECT_TRUE(at::equal(value->toTensor(), at::arange(6, at::kFloat).view({2, 3}).index_select(1, at::tensor({2, 0}))));
}

TEST(Evaluate, RefusesWhatDependsOnAnInput) { EXPECT_FALSE(evaluate_body("return self.w + x")); }

// A random tensor has no inputs, but another value at every run.
TEST(Evaluate, RefusesRandomNumbers) { EXPECT_FALSE(evaluate_body("return torch.rand([2], dtype=6)")); }

TEST(Evaluate, RefusesInPlaceOps) { EXPECT_FALSE(evaluate_body("return torch.neg_(self.w)")); }

// The list is empty where it is made, and holds what the loop appended where it is read.
TEST(Evaluate, RefusesAListThatALoopAppendsTo) {
  EXPECT_FALSE(
      evaluate_body("pieces = [self.w]\nfor i in range(2):\n  pieces.append(self.w)\nreturn torch.cat(pieces)"));
}

TEST(Evaluate, TakesKnownValuesAsGiven) {
  const auto module = testing::make_module({{"w", at::ones({2})}}, "x", "return x * 3 + self.w");
  const auto graph = module.get_method("forward").graph();
  const auto value = evaluate(graph->outputs()[0], module, {{graph->inputs()[1], at::arange(2, at::kFloat)}});
  ASSERT_TRUE(value);
  EXPECT_TRUE(at::equal(value->toTensor(), at::arange(2, at::kFloat) * 3 + 1));
}

}  // namespace
}  // namespace torchquant::conversion
