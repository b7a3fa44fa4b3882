// What the integer matrix products of all instruction sets share: how a range of panels is cut, and where panels lie.
// Called by kernels/cpu/integer_matmul_*.cpp. Compiled without instruction-set flags, like all its callers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/aligned_buffer.h"
#include "kernels/integer_matmul.h"

namespace torchquant::kernels {

// Panels of one product.
struct MatmulBlock {
  MatmulPlace place;
  IndexRange panels;
};

// Calls body(block) for the parts of `range` that lie in one product and have at most `most` panels.
template <typename Body>
void for_each_block(const MatmulArgs& args, IndexRange range, int64_t most, Body&& body) {
  const int64_t each = panels_of_one(args);
  for (int64_t panel = range.begin; panel < range.end;) {
    const int64_t product = panel / each;
    const int64_t end = std::min({range.end, (product + 1) * each, panel + most});
    body(MatmulBlock{args.batch.place(product), {panel - product * each, end - product * each}});
    panel = end;
  }
}

inline int64_t panel_columns(const MatmulArgs& args, int64_t panel) {
  return std::min(kMatmulPanel, args.columns - panel * kMatmulPanel);
}

// Codes are bytes; whoever reads them knows their sign.
inline const uint8_t* row_of_a(const MatmulArgs& args, const MatmulPlace& place, int64_t row) {
  return static_cast<const uint8_t*>(args.a.data) + place.a + row * args.a_row_stride;
}
inline const uint8_t* panel_of_b(const MatmulArgs& args, const MatmulPlace& place, int64_t panel) {
  return static_cast<const uint8_t*>(args.b.data) + place.b + panel * kMatmulPanel * args.b_column_stride;
}
// The element of `out`, counted from its address, at which a row of a panel begins.
inline int64_t out_element(const MatmulArgs& args, const MatmulPlace& place, int64_t row, int64_t panel) {
  return place.out + row * args.out_row_stride + panel * kMatmulPanel;
}
inline int64_t out_size(const MatmulArgs& args) { return args.output.type == ElementType::kFloat32 ? 4 : 1; }
inline std::byte* out_address(const MatmulArgs& args, const MatmulPlace& place, int64_t row, int64_t panel) {
  return static_cast<std::byte*>(args.out) + out_element(args, place, row, panel) * out_size(args);
}

// One multiplier for all columns, in the form in which layers have theirs.
struct PanelScale {
  alignas(64) float multiplier[kMatmulPanel];
  alignas(64) float bias[kMatmulPanel] = {};

  explicit PanelScale(float scale) { std::fill_n(multiplier, kMatmulPanel, scale); }
};

// How many panels are packed at a time: what a row of `a` meets should stay in L2.
inline int64_t panels_at_once(int64_t panel_bytes) {
  constexpr int64_t kPackedBytes = 256 << 10;
  return std::max<int64_t>(1, kPackedBytes / panel_bytes);
}

// Memory of the calling thread, aligned for vectors, until it asks again.
inline std::byte* matmul_scratch(int64_t bytes) {
  thread_local AlignedBuffer<std::byte> buffer;
  thread_local int64_t size = 0;
  if (size < bytes) {
    buffer = make_aligned<std::byte>(bytes);
    size = bytes;
  }
  return buffer.get();
}

}  // namespace torchquant::kernels
