// The CUDA kernels for add, multiply and table lookup, run by the emulation, against the CPU reference: every byte.
#include <gtest/gtest.h>

#include <vector>

#include "kernels/cuda/pointwise.h"
#include "support/quantized_cases.h"
#include "support/same_bytes.h"
#include "support/sizes.h"

namespace torchquant::kernels {
namespace {

using test::element_size;
using test::expect_same_bytes;
using test::Random;
using test::random_bytes;

const QuantizedKernels& reference() { return quantized_kernels(Isa::kReference); }

AddArgs random_add(const std::vector<uint8_t>& a, const std::vector<uint8_t>& b, Random& random) {
  return {test::random_operand(a, random), test::random_operand(b, random), test::random_multiplier(random),
          test::random_multiplier(random), test::random_output(random),     nullptr};
}

MulArgs random_mul(const std::vector<uint8_t>& a, const std::vector<uint8_t>& b, Random& random) {
  return {test::random_operand(a, random), test::random_operand(b, random), test::random_multiplier(random),
          test::random_output(random), nullptr};
}

// `expanded` has both operands as long as the output; `args` has those that repeat.
void expect_sum(AddArgs args, AddArgs expanded, Repeat a, Repeat b, int64_t n) {
  expect_same_bytes(
      n * element_size(args.output.type), args.output.type == ElementType::kFloat32,
      [&](uint8_t* out) {
        reference().add((expanded.out = out, expanded), {0, n});
      },
      [&](uint8_t* out) { ASSERT_EQ(cuda::add((args.out = out, args), a, b, n, nullptr), cudaSuccess); });
}

void expect_product(MulArgs args, MulArgs expanded, Repeat a, Repeat b, int64_t n) {
  expect_same_bytes(
      n * element_size(args.output.type), args.output.type == ElementType::kFloat32,
      [&](uint8_t* out) {
        reference().mul((expanded.out = out, expanded), {0, n});
      },
      [&](uint8_t* out) { ASSERT_EQ(cuda::mul((args.out = out, args), a, b, n, nullptr), cudaSuccess); });
}

TEST(CudaPointwise, AddAndMulOnEveryLength) {
  Random random(1);
  for (int round = 0; round < 2; ++round) {
    for (const int64_t n : test::run_lengths()) {
      const auto a = random_bytes(n, random), b = random_bytes(n, random);
      const AddArgs add = random_add(a, b, random);
      const MulArgs mul = random_mul(a, b, random);
      ASSERT_NO_FATAL_FAILURE(expect_sum(add, add, {}, {}, n));
      ASSERT_NO_FATAL_FAILURE(expect_product(mul, mul, {}, {}, n));
    }
  }
}

// As slices of other tensors are: no address is a multiple of the access.
TEST(CudaPointwise, AddAndMulOnUnalignedAddresses) {
  Random random(2);
  for (int64_t shift = 0; shift < 16; ++shift) {
    const int64_t n = 300;
    const auto a = random_bytes(n + shift, random), b = random_bytes(n + 15, random);
    AddArgs add = random_add(a, b, random);
    add.output.type = ElementType::kUInt8;
    add.output.range = {0.0f, 255.0f};
    add.a.data = a.data() + shift;
    add.b.data = b.data() + 15 - shift;
    expect_same_bytes(
        n + 16, false,
        [&](uint8_t* out) {
          reference().add((add.out = out + shift, add), {0, n});
        },
        [&](uint8_t* out) { ASSERT_EQ(cuda::add((add.out = out + shift, add), {}, {}, n, nullptr), cudaSuccess); });
  }
}

// Every pair of codes, so every value that the rounding and the saturation can see, ties among them.
TEST(CudaPointwise, AddAndMulOnEveryPairOfCodes) {
  std::vector<uint8_t> a(65536), b(65536);
  for (size_t i = 0; i < 65536; ++i) {
    a[i] = static_cast<uint8_t>(i / 256);
    b[i] = static_cast<uint8_t>(i % 256);
  }
  Random random(3);
  for (const auto kind : {numerics::Activation::kNone, numerics::Activation::kClamp, numerics::Activation::kGelu}) {
    const OutputSpec output{ElementType::kUInt8, 128.0f, {0.0f, 255.0f}, {kind, {-20.0f, 30.5f}, 0.1f, 10.0f}};
    const Operand left{a.data(), ElementType::kUInt8, 131};
    const Operand right{b.data(), ElementType::kInt8, -7};
    const AddArgs add{left, right, 0.5f, random.uniform(-1.0f, 1.0f), output, nullptr};
    const MulArgs mul{left, right, random.uniform(0.0f, 0.02f), output, nullptr};
    ASSERT_NO_FATAL_FAILURE(expect_sum(add, add, {}, {}, 65536));
    ASSERT_NO_FATAL_FAILURE(expect_product(mul, mul, {}, {}, 65536));
  }
}

std::vector<uint8_t> expanded(const std::vector<uint8_t>& codes, Repeat repeat) {
  std::vector<uint8_t> all;
  const auto inner = static_cast<size_t>(repeat.inner);
  for (size_t first = 0; first < codes.size(); first += inner) {
    for (int64_t i = 0; i < repeat.count; ++i) {
      all.insert(all.end(), codes.begin() + static_cast<int64_t>(first),
                 codes.begin() + static_cast<int64_t>(first + inner));
    }
  }
  return all;
}

// One vector of channels against every pixel, as squeeze-and-excitation has it, on either side; then both sides repeat.
TEST(CudaPointwise, OperandsRepeat) {
  Random random(4);
  for (const int64_t inner : {4, 12, 16, 24, 48, 64}) {
    for (const int64_t count : {2, 7, 49}) {
      const int64_t outer = 3, n = outer * count * inner;
      const auto whole = random_bytes(n, random), part = random_bytes(outer * inner, random);
      const Repeat repeat{inner, count};
      const auto repeated = expanded(part, repeat);
      MulArgs mul = random_mul(whole, part, random), dense_mul = mul;
      dense_mul.b.data = repeated.data();
      ASSERT_NO_FATAL_FAILURE(expect_product(mul, dense_mul, {}, repeat, n));
      AddArgs add = random_add(part, whole, random), dense_add = add;
      dense_add.a.data = repeated.data();
      ASSERT_NO_FATAL_FAILURE(expect_sum(add, dense_add, repeat, {}, n));

      const auto bias = random_bytes(inner, random);
      const auto repeated_bias = expanded(bias, {inner, outer * count});
      add.b.data = bias.data();
      dense_add.b.data = repeated_bias.data();
      ASSERT_NO_FATAL_FAILURE(expect_sum(add, dense_add, repeat, {inner, outer * count}, n));
    }
  }
}

TEST(CudaPointwise, ARunThatAThreadCannotReadAtOnceIsRefused) {
  const std::vector<uint8_t> codes(6);
  std::vector<uint8_t> out(12);
  Random random(5);
  AddArgs add = random_add(codes, codes, random);
  add.out = out.data();
  EXPECT_EQ(cuda::add(add, {6, 2}, {6, 2}, 12, nullptr), cudaErrorInvalidValue);
}

TEST(CudaPointwise, LookupOnEveryCodeLengthAndEntrySize) {
  Random random(6);
  const auto table = random_bytes(256 * 4, random);
  for (const int64_t size : {1, 2, 4}) {
    for (const ElementType type : {ElementType::kUInt8, ElementType::kInt8}) {
      for (const int64_t n : {0, 1, 15, 16, 17, 130, 256, 4095, 70000}) {
        std::vector<uint8_t> x(static_cast<size_t>(n));
        for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint8_t>(i);
        const auto args = [&](uint8_t* out) { return LookupArgs{x.data(), type, table.data(), size, out}; };
        ASSERT_NO_FATAL_FAILURE(expect_same_bytes(
            n * size, false,
            [&](uint8_t* out) {
              reference().lookup(args(out), {0, n});
            },
            [&](uint8_t* out) { ASSERT_EQ(cuda::lookup(args(out), n, nullptr), cudaSuccess); }))
            << "entries of " << size << " bytes, length " << n;
      }
    }
  }
}

// More elements than the grid's threads take in one step.
TEST(CudaPointwise, AThreadGoesOnBehindTheGrid) {
  Random random(7);
  const int64_t n = 2048 * 256 * 16 + 40;
  const auto x = random_bytes(n, random), table = random_bytes(256, random);
  const auto args = [&](uint8_t* out) { return LookupArgs{x.data(), ElementType::kUInt8, table.data(), 1, out}; };
  expect_same_bytes(
      n, false,
      [&](uint8_t* out) {
        reference().lookup(args(out), {0, n});
      },
      [&](uint8_t* out) { ASSERT_EQ(cuda::lookup(args(out), n, nullptr), cudaSuccess); });
}

}  // namespace
}  // namespace torchquant::kernels
