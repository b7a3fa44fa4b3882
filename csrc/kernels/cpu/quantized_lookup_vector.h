// Table lookups of one-byte entries, written once for every vector instruction set: B is the Bytes of bytes_avx2.h or
// bytes_avx512.h. Included by quantized_avx2.cpp and quantized_avx512.cpp.
#pragma once

#include "kernels/cpu/codes_vector.h"
#include "kernels/cpu/image_runs.h"
#include "kernels/cpu/quantized_reference.h"

namespace torchquant::kernels {

// A table of 256 bytes as shuffles of 16. A shuffle uses the four lowest bits of an index, and gives zero where its top
// bit is set. Let d[0] be the first 16 entries and d[k] the k-th 16 xor the ones before them: then d[k] at index - 16
// k, summed by xor over k = 0 to 7 with negative indices giving zero, telescopes to the entry of an index below 128.
// The upper half of the table works the same way on index - 128, and each half gives zero for the indices of the other.
template <typename B>
class ShuffledTable {
 public:
  using Vector = typename B::Vector;

  TQ_HOST_DEVICE ShuffledTable(const uint8_t* table, uint8_t flip)
      : flip_(B::set(flip)), half_(B::set(0x80)), sixteen_(B::set(16)) {
    for (int part = 0; part < 2 * kParts; ++part) {
      const Vector entries = B::repeat(table + part * 16);
      const bool first = part % kParts == 0;
      differences_[part] = first ? entries : B::bit_xor(entries, B::repeat(table + (part - 1) * 16));
    }
  }

  TQ_HOST_DEVICE void map(const uint8_t* x, uint8_t* out, int64_t n) const {
    int64_t i = 0;
    for (; i + B::kWidth <= n; i += B::kWidth) B::store(out + i, find(B::load(x + i)));
    if (i < n) B::store(out + i, find(B::load(x + i, n - i)), n - i);
  }

 private:
  static constexpr int kParts = 8;  // of each half

  TQ_HOST_DEVICE Vector find(Vector codes) const {
    Vector low = B::bit_xor(codes, flip_);
    Vector high = B::bit_xor(low, half_);
    Vector found = B::bit_xor(B::shuffle(differences_[0], low), B::shuffle(differences_[kParts], high));
#pragma GCC unroll 8
    for (int k = 1; k < kParts; ++k) {
      low = B::sub_saturated(low, sixteen_);
      high = B::sub_saturated(high, sixteen_);
      found =
          B::bit_xor(found, B::bit_xor(B::shuffle(differences_[k], low), B::shuffle(differences_[kParts + k], high)));
    }
    return found;
  }

  Vector flip_, half_, sixteen_;
  Vector differences_[2 * kParts];
};

// The two lookup kernels over a table of one-byte entries; entries of other sizes stay with the reference.
template <typename Table>
struct QuantizedLookupVector {
  TQ_KERNEL static void dense(const LookupArgs& args, IndexRange elements) {
    if (args.element_size != 1) return reference::lookup(args, elements);
    const Table table(static_cast<const uint8_t*>(args.table), sign_flip(args.x_type));
    table.map(static_cast<const uint8_t*>(args.x) + elements.begin, static_cast<uint8_t*>(args.out) + elements.begin,
              elements.end - elements.begin);
  }

  TQ_KERNEL static void image(const LookupArgs& args, const PointwiseImages& images, IndexRange rows) {
    if (args.element_size != 1) return reference::lookup_image(args, images, rows);
    const Table table(static_cast<const uint8_t*>(args.table), sign_flip(args.x_type));
    for_each_run(images, rows, [&](RunOffsets offsets, int64_t n) {
      table.map(static_cast<const uint8_t*>(args.x) + offsets.a, static_cast<uint8_t*>(args.out) + offsets.out, n);
    });
  }
};

}  // namespace torchquant::kernels
