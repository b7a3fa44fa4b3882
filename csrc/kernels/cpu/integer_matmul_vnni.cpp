// The integer matrix product for AVX512-VNNI, on the tile kernel of the convolution engine. Reached through
// kernels/integer_matmul.h. Compiled without instruction-set flags: only the kernels that it calls have them.
//
// The kernel multiplies uint8 by int8, so codes are shifted by 128 where they have the other sign, and zero points with
// them. The zero points are taken out of the sum of products,
//   sum (a - z_a)(b - z_b) = sum a b - z_a sum b - z_b sum a + depth z_a z_b
// by what the accumulators start with: a number per column and, where b's shifted zero point is not 0, one per row.
// All of this is computed modulo 2^32: the whole fits int32, its parts need not.
#if defined(__x86_64__)

#include <cmath>
#include <cstring>

#include "kernels/cpu/finish_tile.h"
#include "kernels/cpu/matmul_blocks.h"
#include "kernels/cpu/vnni_codes.h"
#include "kernels/cpu/vnni_interleave.h"
#include "kernels/cpu/vnni_tile.h"

namespace torchquant::kernels::avx512_vnni {
namespace {

static_assert(kTileChannels == kMatmulPanel && kTilePixels <= kFinishPixels);

constexpr float kOnes[kTilePixels] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
constexpr int32_t kZeros[kTileChannels] = {};
constexpr int64_t kWhole = 0;  // the one segment of a row

// What is alike for all blocks of a call.
struct Product {
  const MatmulArgs& args;
  PanelScale scale;
  int64_t steps;  // of four codes
  bool signed_a;
  uint8_t flip_b;
  uint32_t zero_a, zero_b;  // of the shifted codes
  bool direct;              // whether the tile kernel does the whole output step
  CodeVectors codes{};
  const TileKernel* direct_kernels;
  const TileKernel* indirect_kernels;

  explicit Product(const MatmulArgs& product)
      : args(product),
        scale(product.multiplier),
        steps((product.depth + 3) / 4),
        signed_a(product.a.type == ElementType::kInt8),
        flip_b(product.b.type == ElementType::kUInt8 ? 0x80 : 0),
        zero_a(static_cast<uint32_t>(product.a.zero_point + (signed_a ? 128 : 0))),
        zero_b(static_cast<uint32_t>(product.b.zero_point - (flip_b != 0 ? 128 : 0))) {
    const OutputSpec& output = args.output;
    const bool floats = output.type == ElementType::kFloat32;
    const float largest = std::fabs(args.multiplier) * 255.0f * 255.0f * static_cast<float>(args.depth);
    direct = floats ? output.activation.kind == numerics::Activation::kNone
                    : is_byte_clamp(output) && largest < kLargestDirectValue;
    if (direct && !floats) codes = code_vectors(output);
    direct_kernels = kernels(floats ? TileOutput::kFloats : TileOutput::kCodes);
    indirect_kernels = kernels(TileOutput::kAccumulators);
  }

  int64_t panel_bytes() const { return steps * kStepBytes; }
  bool needs_row_sums() const { return zero_b != 0; }

 private:
  const TileKernel* kernels(TileOutput output) const {
    return (needs_row_sums() ? row_tile_kernels : tile_kernels)(signed_a, steps, output).data();
  }
};

class Block {
 public:
  Block(const Product& product, const MatmulBlock& block)
      : product_(product), args_(product.args), block_(block), count_(block.panels.end - block.panels.begin) {
    const int64_t starts_bytes = count_ * kTileChannels * static_cast<int64_t>(sizeof(int32_t));
    std::byte* memory = matmul_scratch(count_ * product.panel_bytes() + starts_bytes + kTilePixels * row_bytes());
    panels_ = reinterpret_cast<int8_t*>(memory);
    starts_ = reinterpret_cast<int32_t*>(memory + count_ * product.panel_bytes());
    rows_ = reinterpret_cast<uint8_t*>(memory + count_ * product.panel_bytes() + starts_bytes);
    tile_.x_step = copies_rows() ? row_bytes() : args_.a_row_stride;
    tile_.segments = &kWhole;
    tile_.segment_count = 1;
    tile_.segment_steps = product.steps;
    tile_.multiplier = product.scale.multiplier;
    tile_.bias = product.scale.bias;
    tile_.codes = &product.codes;
    tile_.out_step = args_.out_row_stride * out_size(args_);
    tile_.row_scale[0] = tile_.row_scale[1] = kOnes;
    tile_.accumulators = accumulators_;
  }

  void run() {
    pack();
    const int64_t tiles = (args_.rows + kTilePixels - 1) / kTilePixels;
    for (int64_t t = 0; t < tiles; ++t) {
      start_tile(share_of(args_.rows, tiles, t));
      for (int64_t p = 0; p < count_; ++p) compute(p);
    }
  }

 private:
  int64_t row_bytes() const { return 4 * product_.steps; }
  // The kernel reads whole steps, and behind the last row there may be nothing to read.
  bool copies_rows() const { return args_.depth % 4 != 0; }

  void pack() {
    for (int64_t p = 0; p < count_; ++p) {
      const int64_t panel = block_.panels.begin + p;
      interleave_panel({panel_of_b(args_, block_.place, panel), args_.b_row_stride, args_.b_column_stride, args_.depth,
                        panel_columns(args_, panel), product_.flip_b},
                       panel_codes(p));
    }
    std::memset(rows_, 1, row_bytes());
    for (int64_t p = 0; p < count_; ++p) fill_starts(p);
  }

  // The columns' sums are their products with a row of ones.
  void fill_starts(int64_t p) {
    TileArgs tile = tile_;
    tile.x[0] = tile.x[1] = rows_;
    tile.weight = panel_codes(p);
    tile.prefetch = reinterpret_cast<const char*>(tile.weight);
    tile.start = kZeros;
    tile_kernels(/*signed_input=*/false, product_.steps, TileOutput::kAccumulators)[0](tile);
    const auto depth = static_cast<uint32_t>(args_.depth);
    for (int64_t c = 0; c < kTileChannels; ++c) {
      const auto sum = static_cast<uint32_t>(accumulators_[c]);
      starts_[p * kTileChannels + c] = static_cast<int32_t>(product_.zero_a * (depth * product_.zero_b - sum));
    }
  }

  void start_tile(IndexRange rows) {
    row_ = rows.begin;
    row_count_ = rows.end - rows.begin;
    const int64_t first = row_count_ == 1 ? 0 : (row_count_ + 1) / 2;  // where the second run begins; there may be none
    if (copies_rows()) {
      for (int64_t r = 0; r < row_count_; ++r) {
        std::memcpy(rows_ + r * row_bytes(), row_of_a(args_, block_.place, row_ + r), args_.depth);
      }
    }
    const uint8_t* x = copies_rows() ? rows_ : row_of_a(args_, block_.place, row_);
    for (int64_t run = 0; run < 2; ++run) {
      tile_.x[run] = x + run * first * tile_.x_step;
      tile_.row_start[run] = row_starts_ + run * first;
    }
    second_run_ = first;
    if (!product_.needs_row_sums()) return;
    for (int64_t r = 0; r < row_count_; ++r) {
      const int32_t sum = sum_codes(row_of_a(args_, block_.place, row_ + r), args_.depth, product_.signed_a ? 0x80 : 0);
      row_starts_[r] = static_cast<int32_t>(0u - product_.zero_b * static_cast<uint32_t>(sum));
    }
  }

  void compute(int64_t p) {
    const int64_t panel = block_.panels.begin + p;
    std::byte* out = out_address(args_, block_.place, row_, panel);
    tile_.weight = panel_codes(p);
    tile_.prefetch = reinterpret_cast<const char*>(tile_.weight);
    tile_.start = starts_ + p * kTileChannels;
    for (int64_t run = 0; run < 2; ++run) {
      tile_.out[run] = reinterpret_cast<uint8_t*>(out) + run * second_run_ * tile_.out_step;
    }
    const int64_t columns = panel_columns(args_, panel);
    if (product_.direct && columns == kMatmulPanel) return product_.direct_kernels[row_count_ - 1](tile_);
    product_.indirect_kernels[row_count_ - 1](tile_);
    avx512::finish_tile({accumulators_, row_count_, columns, tile_.multiplier, tile_.bias, nullptr, Residual{}, 0,
                         &args_.output, out, tile_.out_step});
  }

  int8_t* panel_codes(int64_t p) const { return panels_ + p * product_.panel_bytes(); }

  const Product& product_;
  const MatmulArgs& args_;
  const MatmulBlock& block_;
  int64_t count_;    // of panels
  int8_t* panels_;   // packed
  int32_t* starts_;  // of their columns
  uint8_t* rows_;    // ones, then the rows of a tile where they are copied
  TileArgs tile_{};
  int64_t row_ = 0;
  int64_t row_count_ = 0;
  int64_t second_run_ = 0;
  int32_t row_starts_[kTilePixels] = {};
  alignas(64) int32_t accumulators_[kTilePixels * kTileChannels];
};

}  // namespace

void integer_matmul(const MatmulArgs& args, IndexRange panels);

void integer_matmul(const MatmulArgs& args, IndexRange panels) {
  const Product product(args);
  for_each_block(args, panels, panels_at_once(product.panel_bytes()),
                 [&](const MatmulBlock& block) { Block(product, block).run(); });
}

}  // namespace torchquant::kernels::avx512_vnni

#endif  // defined(__x86_64__)
