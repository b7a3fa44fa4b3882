// Two codes a byte: every pair of codes, both offsets, odd counts.
#include <gtest/gtest.h>

#include <vector>

#include "numerics/int4.h"

namespace torchquant::numerics {
namespace {

TEST(Int4, LowNibbleComesFirst) {
  const int8_t codes[] = {-8, 7};
  uint8_t packed = 0;
  pack_int4(codes, 2, -8, &packed);
  EXPECT_EQ(packed, 0xF0);
}

TEST(Int4, AnOddCountLeavesTheLastHighNibbleZero) {
  const int8_t codes[] = {1, 2, 3};
  uint8_t packed[2] = {0xFF, 0xFF};
  pack_int4(codes, 3, -8, packed);
  EXPECT_EQ(packed[0], 0xA9);
  EXPECT_EQ(packed[1], 0x0B);
}

TEST(Int4, BytesRoundUp) {
  EXPECT_EQ(int4_bytes(0), 0);
  EXPECT_EQ(int4_bytes(1), 1);
  EXPECT_EQ(int4_bytes(2), 1);
  EXPECT_EQ(int4_bytes(3), 2);
}

TEST(Int4, EveryPairOfCodesRoundTripsAtEveryCount) {
  for (const int32_t quant_min : {-8, -7, 0}) {
    std::vector<int8_t> codes;
    for (int32_t a = 0; a < 16; ++a) {
      for (int32_t b = 0; b < 16; ++b) {
        codes.push_back(static_cast<int8_t>(a + quant_min));
        codes.push_back(static_cast<int8_t>(b + quant_min));
      }
    }
    for (int64_t count = 0; count <= static_cast<int64_t>(codes.size()); ++count) {
      std::vector<uint8_t> packed(int4_bytes(count));
      std::vector<int8_t> unpacked(count);
      pack_int4(codes.data(), count, quant_min, packed.data());
      unpack_int4(packed.data(), count, quant_min, unpacked.data());
      ASSERT_EQ(unpacked, std::vector<int8_t>(codes.begin(), codes.begin() + count)) << "count " << count;
      for (int64_t i = 0; i < count; ++i) ASSERT_EQ(unpack_int4_value(packed.data(), i, quant_min), codes[i]);
    }
  }
}

}  // namespace
}  // namespace torchquant::numerics
