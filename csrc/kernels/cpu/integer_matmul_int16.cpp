// The integer matrix product for AVX2, on the tile kernel of the convolution engine: both sides are widened to int16
// with their zero points taken off, which is exact for every code. Reached through kernels/integer_matmul.h. Compiled
// without instruction-set flags: only the kernels that it calls have them.
#if defined(__x86_64__)

#include <cstring>

#include "kernels/cpu/finish_tile.h"
#include "kernels/cpu/int16_tile.h"
#include "kernels/cpu/matmul_blocks.h"

namespace torchquant::kernels::avx2 {
namespace {

constexpr int64_t kHalves = kMatmulPanel / kTileChannels;

class Block {
 public:
  Block(const MatmulArgs& args, const PanelScale& scale, const MatmulBlock& block, int64_t pairs)
      : args_(args),
        scale_(scale),
        block_(block),
        pairs_(pairs),
        panels_(
            reinterpret_cast<int16_t*>(matmul_scratch(2 * (panel_count() * panel_size() + kTilePixels * 2 * pairs)))),
        rows_(panels_ + panel_count() * panel_size()) {}

  void run() {
    for (int64_t p = 0; p < panel_count(); ++p) pack(block_.panels.begin + p, panels_ + p * panel_size());
    for (int64_t row = 0; row < args_.rows; row += kTilePixels) {
      const int64_t rows = std::min(kTilePixels, args_.rows - row);
      widen_rows(row, rows);
      for (int64_t p = 0; p < panel_count(); ++p) multiply(row, rows, p);
    }
  }

 private:
  int64_t panel_count() const { return block_.panels.end - block_.panels.begin; }
  int64_t panel_size() const { return pairs_ * 2 * kMatmulPanel; }

  // [half][pair][16 columns][2 of the depth]
  void pack(int64_t panel, int16_t* target) const {
    std::memset(target, 0, panel_size() * sizeof(int16_t));
    const uint8_t* codes = panel_of_b(args_, block_.place, panel);
    const bool is_signed = args_.b.type == ElementType::kInt8;
    const int64_t columns = panel_columns(args_, panel);
    for (int64_t k = 0; k < args_.depth; ++k) {
      const uint8_t* row = codes + k * args_.b_row_stride;
      for (int64_t c = 0; c < columns; ++c) {
        const uint8_t code = row[c * args_.b_column_stride];
        const int32_t value = is_signed ? static_cast<int8_t>(code) : code;
        const int64_t pair = c / kTileChannels * pairs_ + k / 2;
        target[(pair * kTileChannels + c % kTileChannels) * 2 + k % 2] =
            static_cast<int16_t>(value - args_.b.zero_point);
      }
    }
  }

  void widen_rows(int64_t row, int64_t rows) const {
    for (int64_t r = 0; r < rows; ++r) {
      int16_t* target = rows_ + r * 2 * pairs_;
      widen(row_of_a(args_, block_.place, row + r), args_.a.type, args_.depth, args_.a.zero_point, target);
      if (args_.depth % 2 != 0) target[args_.depth] = 0;
    }
  }

  void multiply(int64_t row, int64_t rows, int64_t p) const {
    alignas(64) int32_t accumulators[kTilePixels * kMatmulPanel];
    for (int64_t half = 0; half < kHalves; ++half) {
      compute_tile({rows_, 2 * pairs_, rows, panels_ + p * panel_size() + half * pairs_ * 2 * kTileChannels, pairs_,
                    accumulators + half * kTileChannels});
    }
    const int64_t panel = block_.panels.begin + p;
    finish_tile({accumulators, rows, panel_columns(args_, panel), scale_.multiplier, scale_.bias, nullptr, Residual{},
                 0, &args_.output, out_address(args_, block_.place, row, panel),
                 args_.out_row_stride * out_size(args_)});
  }

  const MatmulArgs& args_;
  const PanelScale& scale_;
  const MatmulBlock& block_;
  int64_t pairs_;
  int16_t* panels_;
  int16_t* rows_;  // of a tile, widened
};

}  // namespace

void integer_matmul(const MatmulArgs& args, IndexRange panels);

void integer_matmul(const MatmulArgs& args, IndexRange panels) {
  const PanelScale scale(args.multiplier);
  const int64_t pairs = (args.depth + 1) / 2;
  const int64_t panel_bytes = pairs * 2 * kMatmulPanel * static_cast<int64_t>(sizeof(int16_t));
  for_each_block(args, panels, panels_at_once(panel_bytes),
                 [&](const MatmulBlock& block) { Block(args, scale, block, pairs).run(); });
}

}  // namespace torchquant::kernels::avx2

#endif  // defined(__x86_64__)
