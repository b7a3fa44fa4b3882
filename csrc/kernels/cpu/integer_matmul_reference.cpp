// The integer matrix product that every processor runs and that defines the results. Reached through
// kernels/integer_matmul.h.
#include <vector>

#include "kernels/cpu/matmul_blocks.h"
#include "kernels/cpu/quantized_tile_reference.h"

namespace torchquant::kernels::reference {
namespace {

// The columns of a panel, each dense, with their zero point taken off.
void centre_panel(const MatmulArgs& args, const uint8_t* panel, int64_t columns, int16_t* centred) {
  with_code_type(args.b.type, [&](auto* code) {
    const auto* codes = reinterpret_cast<decltype(code)>(panel);
    for (int64_t c = 0; c < columns; ++c) {
      for (int64_t k = 0; k < args.depth; ++k) {
        const int32_t value = codes[k * args.b_row_stride + c * args.b_column_stride];
        centred[c * args.depth + k] = static_cast<int16_t>(value - args.b.zero_point);
      }
    }
  });
}

void centre_row(const MatmulArgs& args, const uint8_t* row, int16_t* centred) {
  with_code_type(args.a.type, [&](auto* code) {
    centre(reinterpret_cast<decltype(code)>(row), args.depth, args.a.zero_point, centred);
  });
}

int32_t dot(const int16_t* a, const int16_t* b, int64_t n) {
  int32_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<int32_t>(a[i]) * static_cast<int32_t>(b[i]);
  return sum;
}

}  // namespace

void integer_matmul(const MatmulArgs& args, IndexRange panels);

void integer_matmul(const MatmulArgs& args, IndexRange panels) {
  const PanelScale scale(args.multiplier);
  const Epilogue epilogue{scale.multiplier, scale.bias, {}, args.output};
  std::vector<int16_t> columns(kMatmulPanel * args.depth);
  std::vector<int16_t> row(args.depth);
  for_each_block(args, panels, 1, [&](const MatmulBlock& block) {
    const int64_t panel = block.panels.begin;
    const int64_t count = panel_columns(args, panel);
    centre_panel(args, panel_of_b(args, block.place, panel), count, columns.data());
    for (int64_t r = 0; r < args.rows; ++r) {
      centre_row(args, row_of_a(args, block.place, r), row.data());
      int32_t acc[kMatmulPanel];
      for (int64_t c = 0; c < count; ++c) acc[c] = dot(row.data(), columns.data() + c * args.depth, args.depth);
      finish_row(acc, 0, count, epilogue, args.out, out_element(args, block.place, r, panel), 0);
    }
  });
}

}  // namespace torchquant::kernels::reference
