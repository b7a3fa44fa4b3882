// The lookup of AVX-512 processors without VBMI. quantized_agreement_test.cpp reaches it only on such a processor, so
// it is called here by itself.
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#include "kernels/cpu/bytes_avx512.h"
#include "kernels/cpu/quantized_lookup_vector.h"
#endif
#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/isa.h"
#include "support/rng.h"

namespace torchquant::kernels {
namespace {

#if defined(__x86_64__)
void expect_every_entry(uint8_t flip) {
  test::Random random(flip);
  uint8_t table[256], codes[256], found[256];
  for (int i = 0; i < 256; ++i) {
    table[i] = static_cast<uint8_t>(random.integer(0, 255));
    codes[i] = static_cast<uint8_t>(i);
  }
  for (const int64_t n : {256, 200, 64, 63, 1}) {
    std::fill_n(found, 256, 0);
    const ShuffledTable<avx512::Bytes> lookup(table, flip);
    lookup.map(codes, found, n);
    for (int64_t i = 0; i < 256; ++i) ASSERT_EQ(found[i], i < n ? table[i ^ flip] : 0) << "code " << i << " of " << n;
  }
}

TEST(QuantizedLookupAvx512, ShufflesFindEveryEntry) {
  const auto isas = available_isas();
  if (std::find(isas.begin(), isas.end(), Isa::kAvx512) == isas.end()) GTEST_SKIP() << "no AVX-512 here";
  expect_every_entry(0);
  expect_every_entry(0x80);
}
#endif

}  // namespace
}  // namespace torchquant::kernels
