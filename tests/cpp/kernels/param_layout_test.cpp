// The index arithmetic that CUDA kernels use, checked on the CPU against plain nested loops.
#include "kernels/param_layout.h"

#include <gtest/gtest.h>

#include <vector>

namespace torchquant::kernels {
namespace {

std::vector<ParamLayout> all_small_layouts() {
  std::vector<ParamLayout> layouts;
  for (int64_t outer : {1, 2, 3}) {
    for (int64_t axis_size : {1, 4, 6}) {
      for (int64_t inner : {1, 2, 5, 8}) {
        layouts.push_back({outer, axis_size, inner, 0});
        for (int64_t group : {1, 2, 3}) {
          if (axis_size % group == 0) layouts.push_back({outer, axis_size, inner, group});
        }
      }
    }
  }
  return layouts;
}

TEST(ParamLayout, ParamOfAgreesWithNestedLoops) {
  for (const ParamLayout& layout : all_small_layouts()) {
    int64_t e = 0;
    for (int64_t o = 0; o < layout.outer; ++o) {
      for (int64_t a = 0; a < layout.axis_size; ++a) {
        for (int64_t i = 0; i < layout.inner; ++i, ++e) {
          const int64_t groups = layout.group_size > 0 ? layout.axis_size / layout.group_size : 0;
          const int64_t expected =
              layout.group_size == 0 ? a : (o * groups + a / layout.group_size) * layout.inner + i;
          ASSERT_EQ(layout.param_of(e), expected) << "o=" << o << " a=" << a << " i=" << i;
        }
      }
    }
    ASSERT_EQ(e, layout.numel());
  }
}

TEST(ParamLayout, ElementOfVisitsEveryElementOnceUnderItsParameter) {
  for (const ParamLayout& layout : all_small_layouts()) {
    std::vector<int> visits(layout.numel(), 0);
    for (int64_t p = 0; p < layout.params(); ++p) {
      for (int64_t j = 0; j < layout.elements_per_param(); ++j) {
        const int64_t e = layout.element_of(p, j);
        ASSERT_GE(e, 0);
        ASSERT_LT(e, layout.numel());
        ASSERT_EQ(layout.param_of(e), p);
        ++visits[e];
      }
    }
    for (int count : visits) ASSERT_EQ(count, 1);
  }
}

TEST(ParamLayout, UniformRunsShareOneParameter) {
  for (const ParamLayout& layout : all_small_layouts()) {
    const int64_t run = layout.uniform_run(8);
    for (int64_t e = 0; e < layout.numel(); ++e) {
      ASSERT_EQ(layout.param_of(e), layout.param_of(e / run * run)) << "run=" << run << " e=" << e;
    }
  }
  EXPECT_EQ((ParamLayout{2, 3, 16, 0}).uniform_run(8), 8);
  EXPECT_EQ((ParamLayout{2, 32, 1, 4}).uniform_run(8), 4);
  EXPECT_EQ((ParamLayout{2, 3, 5, 0}).uniform_run(8), 1);
}

}  // namespace
}  // namespace torchquant::kernels
