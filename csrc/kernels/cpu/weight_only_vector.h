// Weight-only matrix products over vectors of 16 lanes, one output channel a lane; written once for every vector
// instruction set (V is the Vector of vector_avx2.h or vector_avx512.h). Included by quantized_avx2.cpp and
// quantized_avx512.cpp.
//
// A chunk of codes is decoded once for up to kDecodedRows rows. Whole groups, of long ones a page at a time, are
// fetched two pages ahead: the hardware's prefetchers stop at the end of a page, and so many instructions stand between
// two lines here that few loads are under way at once. Shorter distances, or some lines of each group, were slower than
// none.
//
// No chain of additions is longer than kChain terms before its sum goes to the next level. That keeps the error below
// the bound of docs/numerics.md for every K.
#pragma once

#include <cstring>

#include "kernels/cpu/lanes.h"
#include "kernels/quantized_kernels.h"

namespace torchquant::kernels {

// body(step, codes) for the steps of one chunk, as whole-numbered values.
template <typename V, int kBits>
struct ChunkDecoder;

template <typename V>
struct ChunkDecoder<V, 4> {
  static constexpr int kSteps = 8;
  TQ_HOST_DEVICE explicit ChunkDecoder(const WeightOnlyShape& shape) : nibbles(shape.quant_min) {}
  template <typename Body>
  TQ_HOST_DEVICE void operator()(const uint8_t* chunk, Body&& body) const {
    nibbles(V::load_words(chunk), body);
  }
  typename V::Nibbles nibbles;
};

template <typename V>
struct ChunkDecoder<V, 8> {
  static constexpr int kSteps = 4;
  TQ_HOST_DEVICE explicit ChunkDecoder(const WeightOnlyShape&) {}
  template <typename Body>
  TQ_HOST_DEVICE void operator()(const uint8_t* chunk, Body&& body) const {
#pragma GCC unroll 4
    for (int step = 0; step < kSteps; ++step) {
      body(step, V::to_float(V::widen_signed(V::load_bytes(chunk + step * kWeightBlock, AllLanes{}))));
    }
  }
};

template <typename V>
struct WeightOnlyVector {
  using Float = typename V::Float;

  static constexpr int kChain = 16;
  static constexpr int64_t kFetchAhead = 8192;  // bytes
  static constexpr int64_t kFetchAtOnce = 4096;

  TQ_HOST_DEVICE static void fetch(const uint8_t* begin, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += kWeightChunkBytes) __builtin_prefetch(begin + i, /*rw=*/0, /*locality=*/2);
  }

  TQ_HOST_DEVICE static Float zero() { return V::set(0.0f); }

  // The scale and zero point of the 16 channels of one group.
  template <bool kZeroPoints>
  struct Group {
    TQ_HOST_DEVICE explicit Group(const uint8_t* header)
        : scale(V::load(reinterpret_cast<const float*>(header), AllLanes{})), zero_point(zero()) {
      if (kZeroPoints) zero_point = V::load(reinterpret_cast<const float*>(header) + kWeightBlock, AllLanes{});
    }
    TQ_HOST_DEVICE Float centred(Float code) const { return kZeroPoints ? V::sub(code, zero_point) : code; }
    Float scale, zero_point;
  };

  // Adds the bias, activates and stores 16 or fewer channels of one row.
  TQ_HOST_DEVICE static void finish(const PackedWeightOnlyArgs& args, int64_t row, int64_t channel, Float v) {
    const int64_t rest = args.shape.out_channels - channel;
    if (rest >= kLanes) {
      finish_lanes(args, row, channel, v, AllLanes{});
    } else {
      finish_lanes(args, row, channel, v, FirstLanes{static_cast<int>(rest)});
    }
  }
  template <typename Lanes>
  TQ_HOST_DEVICE static void finish_lanes(const PackedWeightOnlyArgs& args, int64_t row, int64_t channel, Float v,
                                          Lanes lanes) {
    if (args.bias != nullptr) v = V::add(v, V::load(args.bias + channel, lanes));
    if (args.activation.kind != numerics::Activation::kNone) {
      float values[kLanes];
      V::store(values, v, AllLanes{});
      for (float& value : values) value = numerics::activate(value, args.activation);
      v = V::load(values, AllLanes{});
    }
    V::store(args.out + row * args.shape.out_channels + channel, v, lanes);
  }

  // kRows rows against one block.
  template <int kBits, bool kZeroPoints, int kRows>
  struct Rows {
    using Decoder = ChunkDecoder<V, kBits>;
    static constexpr int kParts = V::kSums / kRows < 4 ? V::kSums / kRows : 4;  // sums of one row that run side by side
    static constexpr int64_t kRun = kChain * kParts / Decoder::kSteps;          // chunks before the sums are added

    // `stride` lies between the rows of x.
    TQ_HOST_DEVICE static void add_chunks(const Decoder& decode, const Group<kZeroPoints>& group, const uint8_t* chunk,
                                          int64_t count, const float* x, int64_t stride, Float (&totals)[kRows]) {
      Float sums[kRows][kParts];
      for (auto& row : sums) {
        for (Float& sum : row) sum = zero();
      }
      for (int64_t i = 0; i < count; ++i, chunk += kWeightChunkBytes, x += Decoder::kSteps) {
        decode(chunk, [&](int step, Float code) {
          const Float weight = group.centred(code);
          for (int r = 0; r < kRows; ++r) {
            Float& sum = sums[r][step % kParts];
            sum = V::fma(V::set(x[r * stride + step]), weight, sum);
          }
        });
      }
      for (int r = 0; r < kRows; ++r) {
        Float sum = sums[r][0];
        for (int part = 1; part < kParts; ++part) sum = V::add(sum, sums[r][part]);
        totals[r] = V::fma(sum, group.scale, totals[r]);
      }
    }

    // The last chunk of a group whose length is no multiple of a chunk's: x continues with the next group there, so it
    // is copied and filled up with zeros.
    TQ_HOST_DEVICE static void add_last_chunk(const Decoder& decode, const Group<kZeroPoints>& group,
                                              const uint8_t* chunk, int64_t steps, const float* x, int64_t stride,
                                              Float (&totals)[kRows]) {
      float padded[kRows][Decoder::kSteps] = {};
      for (int r = 0; r < kRows; ++r) memcpy(padded[r], x + r * stride, static_cast<size_t>(steps) * sizeof(float));
      add_chunks(decode, group, chunk, 1, padded[0], Decoder::kSteps, totals);
    }

    TQ_HOST_DEVICE static void run(const PackedWeightOnlyArgs& args, const WeightOnlyLayout& layout, int64_t block,
                                   int64_t row) {
      const Decoder decode(args.shape);
      const int64_t depth = args.shape.depth;
      const int64_t whole = args.shape.group_size / Decoder::kSteps;
      const int64_t rest = args.shape.group_size % Decoder::kSteps;
      const uint8_t* header = args.packed + block * layout.block_bytes;
      const float* x = args.x + row * depth;
      Float totals[kRows];
      for (Float& total : totals) total = zero();
      for (int64_t g = 0; g < layout.groups; ++g, header += layout.group_bytes, x += args.shape.group_size) {
        const Group<kZeroPoints> group(header);
        const uint8_t* chunks = header + layout.header_bytes;
        for (int64_t i = 0; i < whole; i += kRun) {
          const int64_t done = i * kWeightChunkBytes;
          if (kRows <= 2 && done % kFetchAtOnce == 0) {  // more rows are not bound by memory
            const int64_t left = layout.group_bytes - done;
            fetch(header + done + kFetchAhead, left < kFetchAtOnce ? left : kFetchAtOnce);
          }
          const int64_t count = whole - i < kRun ? whole - i : kRun;
          add_chunks(decode, group, chunks + i * kWeightChunkBytes, count, x + i * Decoder::kSteps, depth, totals);
        }
        if (rest > 0) {
          add_last_chunk(decode, group, chunks + whole * kWeightChunkBytes, rest, x + whole * Decoder::kSteps, depth,
                         totals);
        }
      }
      for (int r = 0; r < kRows; ++r) finish(args, row + r, block * kWeightBlock, totals[r]);
    }
  };

  template <int kBits, bool kZeroPoints>
  TQ_KERNEL static void run(const PackedWeightOnlyArgs& args, IndexRange blocks) {
    const WeightOnlyLayout layout(args.shape);
    constexpr int kMost = V::kDecodedRows;
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      int64_t row = 0;
      for (; row + kMost <= args.rows; row += kMost) Rows<kBits, kZeroPoints, kMost>::run(args, layout, block, row);
      for (; row + 2 <= args.rows; row += 2) Rows<kBits, kZeroPoints, 2>::run(args, layout, block, row);
      for (; row < args.rows; ++row) Rows<kBits, kZeroPoints, 1>::run(args, layout, block, row);
    }
  }

  static void linear(const PackedWeightOnlyArgs& args, IndexRange blocks) {
    if (args.shape.bits == 4) {
      args.shape.has_zero_points ? run<4, true>(args, blocks) : run<4, false>(args, blocks);
    } else {
      args.shape.has_zero_points ? run<8, true>(args, blocks) : run<8, false>(args, blocks);
    }
  }
};

}  // namespace torchquant::kernels
