// The tables of quantized_lookup against values worked out by hand and against the formula.
#include <ATen/core/Tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "ops/lookup_table.h"

namespace torchquant::ops {
namespace {

using testing::HasSubstr;

const LookupInput kUint8Input{at::kByte, 0.1f, 128};
const LookupOutput kUint8Output{at::kByte, 0.1f, 128, 0, 255};

// Runs fn, which must throw, and returns the message.
template <typename Fn>
std::string error_of(Fn&& fn) {
  try {
    fn();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "no error";
}

TEST(LookupTable, SameQparamsWithoutActivationIsTheIdentity) {
  const at::Tensor table = build_lookup_table("none", {}, kUint8Input, kUint8Output);
  for (int64_t i = 0; i < 256; ++i) EXPECT_EQ(table.const_data_ptr<uint8_t>()[i], i);
}

TEST(LookupTable, SignedInputStartsAtMinus128) {
  EXPECT_EQ(lookup_table_min(at::kChar), -128);
  EXPECT_EQ(lookup_table_min(at::kByte), 0);
  const LookupInput input{at::kChar, 1.0f, 0};
  const LookupOutput output{at::kChar, 1.0f, 0, -127, 127};
  const at::Tensor table = build_lookup_table("none", {}, input, output);
  EXPECT_EQ(table.scalar_type(), at::kChar);
  EXPECT_EQ(table.const_data_ptr<int8_t>()[0], -127);  // -128 saturates
  EXPECT_EQ(table.const_data_ptr<int8_t>()[128], 0);
  EXPECT_EQ(table.const_data_ptr<int8_t>()[255], 127);
}

TEST(LookupTable, TiesGoToEven) {
  const LookupInput input{at::kByte, 0.5f, 0};
  const LookupOutput output{at::kByte, 1.0f, 3, 0, 255};
  const at::Tensor table = build_lookup_table("none", {}, input, output);
  EXPECT_EQ(table.const_data_ptr<uint8_t>()[1], 3);  // 0.5 -> 0
  EXPECT_EQ(table.const_data_ptr<uint8_t>()[3], 5);  // 1.5 -> 2
  EXPECT_EQ(table.const_data_ptr<uint8_t>()[5], 5);  // 2.5 -> 2
}

TEST(LookupTable, NanGivesTheZeroPoint) {
  const auto square_root = [](double x) { return std::sqrt(x); };
  const at::Tensor table = build_lookup_table(square_root, kUint8Input, kUint8Output);
  EXPECT_EQ(table.const_data_ptr<uint8_t>()[0], 128);
}

TEST(LookupTable, FloatOutputStoresTheFunctionItself) {
  const LookupOutput output{at::kFloat};
  const at::Tensor table = build_lookup_table("tanh", {}, kUint8Input, output);
  EXPECT_EQ(table.scalar_type(), at::kFloat);
  EXPECT_EQ(table.const_data_ptr<float>()[138], static_cast<float>(std::tanh(10 * static_cast<double>(0.1f))));
}

TEST(LookupTable, HardtanhBoundsAreRealValues) {
  const at::Tensor table = build_lookup_table("hardtanh", {-1.0, 2.0}, kUint8Input, kUint8Output);
  EXPECT_EQ(table.const_data_ptr<uint8_t>()[0], 118);
  EXPECT_EQ(table.const_data_ptr<uint8_t>()[255], 148);
}

TEST(LookupTable, RefusesWhatItCannotMean) {
  const auto build = [](const char* name, std::vector<double> args, LookupInput input, LookupOutput output) {
    return error_of([&] { build_lookup_table(name, args, input, output); });
  };
  EXPECT_THAT(build("swish", {}, kUint8Input, kUint8Output), HasSubstr("activation must be one of none, relu"));
  EXPECT_THAT(build("hardtanh", {}, kUint8Input, kUint8Output), HasSubstr("activation_args must be [lo, hi]"));
  EXPECT_THAT(build("none", {}, {at::kFloat, 0.1f, 0}, kUint8Output), HasSubstr("input dtype must be uint8 or int8"));
  EXPECT_THAT(build("none", {}, {at::kByte, 0.0f, 0}, kUint8Output), HasSubstr("input scale must be finite and > 0"));
  EXPECT_THAT(build("none", {}, {at::kByte, 0.1f, 256}, kUint8Output), HasSubstr("input zero_point must lie in"));
  EXPECT_THAT(build("none", {}, kUint8Input, {at::kByte, std::nanf(""), 0, 0, 255}), HasSubstr("output_scale"));
  EXPECT_THAT(build("none", {}, kUint8Input, {at::kByte, 0.1f, 0, 0, 300}), HasSubstr("output_quant_max"));
}

}  // namespace
}  // namespace torchquant::ops
