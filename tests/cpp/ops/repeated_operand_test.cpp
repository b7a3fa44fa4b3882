// Broadcast operands as kernels read them in place, against at::expand: which are, and that every element is the right
// one.
#include "ops/repeated_operand.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace torchquant::ops {
namespace {

constexpr int64_t kRun = 4;

// What the kernel would read for each element of `out` in memory order, against what broadcasting gives.
void expect_expanded(const at::Tensor& x, const at::Tensor& out) {
  const RepeatedOperand operand = repeated_operand(x, out, kRun);
  const at::Tensor want = at::empty_strided(out.sizes(), out.strides(), x.options()).copy_(x.expand(out.sizes()));
  const auto* data = operand.dense.const_data_ptr<uint8_t>();
  for (int64_t i = 0; i < out.numel(); ++i) {
    ASSERT_EQ(data[operand.repeat.index(i)], want.const_data_ptr<uint8_t>()[i]) << "element " << i;
  }
}

at::Tensor codes(at::IntArrayRef sizes) { return at::randint(0, 256, sizes, at::kByte); }

at::Tensor channels_last(at::IntArrayRef sizes) {
  return at::empty(sizes, at::TensorOptions(at::kByte).memory_format(at::MemoryFormat::ChannelsLast));
}

TEST(RepeatedOperand, OneValuePerChannelIsReadInPlace) {
  const at::Tensor out = channels_last({3, 8, 5, 7});
  const at::Tensor x = codes({3, 8, 1, 1});
  const RepeatedOperand operand = repeated_operand(x, out, kRun);
  EXPECT_TRUE(operand.dense.is_same(x));
  EXPECT_EQ(operand.repeat.inner, 8);
  EXPECT_EQ(operand.repeat.count, 35);
  expect_expanded(x, out);
}

TEST(RepeatedOperand, AVectorOverRowsIsReadInPlace) {
  const at::Tensor out = at::empty({2, 3, 12}, at::kByte);
  for (const at::Tensor& x : {codes({12}), codes({1, 12}), codes({1, 3, 12}), codes({2, 1, 12})}) {
    EXPECT_TRUE(repeated_operand(x, out, kRun).dense.is_same(x)) << x.sizes();
    expect_expanded(x, out);
  }
}

TEST(RepeatedOperand, WhatNoKernelReadsInPlaceIsWrittenOut) {
  const at::Tensor image = channels_last({2, 8, 3, 5});
  const at::Tensor rows = at::empty({2, 3, 12}, at::kByte);
  // A plane for all channels, runs that are too short, values repeated in two places, memory in another order.
  for (const auto& [x, out] :
       {std::pair(codes({2, 1, 3, 5}), image), std::pair(codes({6}), at::empty({4, 6}, at::kByte)),
        std::pair(codes({2, 8, 3, 1}), image), std::pair(codes({1, 8, 3, 1}), image),
        std::pair(codes({12, 3}).t(), rows), std::pair(codes({}), rows)}) {
    const RepeatedOperand operand = repeated_operand(x, out, kRun);
    EXPECT_EQ(operand.repeat.count, 1) << x.sizes();
    EXPECT_EQ(operand.dense.strides(), out.strides()) << x.sizes();
    expect_expanded(x, out);
  }
}

TEST(RepeatedOperand, SizesOfOneAndEmptyOutputs) {
  expect_expanded(codes({1, 8, 1, 1}), channels_last({1, 8, 1, 1}));
  expect_expanded(codes({1, 8, 1, 1}), channels_last({1, 8, 1, 6}));
  expect_expanded(codes({1, 8, 1, 1}), channels_last({0, 8, 2, 6}));
}

}  // namespace
}  // namespace torchquant::ops
