// Cuts a convolution into phases, tiles and parts. Called through conv_tiling.h.
#include "kernels/cpu/conv_tiling.h"

#include <algorithm>

namespace torchquant::kernels {
namespace {

// Taps of one axis of one phase: kernel element and input position, counted from the base.
struct AxisTap {
  int64_t element;
  int64_t position;
};

std::vector<AxisTap> axis_taps(const ConvAxisSpec& axis, bool transposed, int64_t phase) {
  std::vector<AxisTap> taps;
  for (int64_t k = 0; k < axis.kernel; ++k) {
    if (!transposed) {
      taps.push_back({k, k * axis.dilation});
      continue;
    }
    const int64_t reach = phase + axis.padding - k * axis.dilation;
    if (reach % axis.stride == 0) taps.push_back({k, reach / axis.stride});
  }
  return taps;
}

PhaseAxis phase_axis(const ConvAxisSpec& axis, bool transposed, int64_t phase) {
  if (transposed) return {phase, axis.stride, 0, 1};
  return {0, 1, -axis.padding, axis.stride};
}

// Smallest and largest input position that an axis reads.
struct Reach {
  int64_t first = 0;
  int64_t last = 0;

  void include(const PhaseAxis& axis, int64_t steps, int64_t tap) {
    first = std::min(first, axis.in_base + tap);
    last = std::max(last, axis.in_base + (steps - 1) * axis.in_step + tap);
  }
};

// Offsets of the pixels that a phase reads and writes, in elements of one image.
struct PhaseOffsets {
  int64_t start;
  int64_t row_step;
  int64_t column_step;

  int64_t at(int64_t row, int64_t column) const { return start + row * row_step + column * column_step; }
  bool flat(int64_t columns) const { return row_step == columns * column_step; }
};

PhaseOffsets input_offsets(const ConvPhase& phase, const ImageLayout& in) {
  return {in.offset(0, phase.height.in_base, phase.width.in_base), phase.height.in_step * in.row_pitch,
          phase.width.in_step * in.pixel_pitch};
}

PhaseOffsets output_offsets(const ConvPhase& phase, const ImageLayout& out) {
  return {out.offset(0, phase.height.out_start, phase.width.out_start), phase.height.out_step * out.row_pitch,
          phase.width.out_step * out.pixel_pitch};
}

// Images of fewer pixels are walked through as one where they follow each other, so that the last tile of each is full.
constexpr int64_t kSmallImage = 196;

class Tiler {
 public:
  Tiler(const ConvPhase& phase, const ConvProblem& problem)
      : rows_(phase.rows(problem.out.height)),
        columns_(phase.columns(problem.out.width)),
        in_(input_offsets(phase, problem.in)),
        out_(output_offsets(phase, problem.out)) {
    result_.images = problem.batch;
    result_.in = problem.in;
    result_.out = problem.out;
    result_.residual = problem.residual.value_or(problem.out);
    residual_ = output_offsets(phase, result_.residual);
    result_.in_step = in_.column_step;
    result_.out_step = out_.column_step;
    result_.residual_step = residual_.column_step;
  }

  TiledPhase cut(int64_t max_pixels) {
    if (rows_ == 0 || columns_ == 0) return result_;
    flatten();
    const int64_t run = (max_pixels + 1) / 2;
    int64_t row = 0;
    if (columns_ <= run) {
      for (; row + 2 <= rows_; row += 2) append(2 * columns_, row, 0, row + 1, 0);
    }
    for (; row < rows_; ++row) cut_row(row, max_pixels);
    return result_;
  }

 private:
  // Rows that follow each other are one row, and so are small images.
  void flatten() {
    if (rows_ > 1 && !(in_.flat(columns_) && out_.flat(columns_) && residual_.flat(columns_))) return;
    columns_ *= rows_;
    rows_ = 1;
    const bool adjacent = result_.in.image_pitch == columns_ * in_.column_step &&
                          result_.out.image_pitch == columns_ * out_.column_step &&
                          result_.residual.image_pitch == columns_ * residual_.column_step;
    if (!adjacent || columns_ >= kSmallImage) return;
    columns_ *= result_.images;
    result_.images = 1;
  }

  void cut_row(int64_t row, int64_t max_pixels) {
    const int64_t tiles = (columns_ + max_pixels - 1) / max_pixels;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t begin = columns_ * t / tiles;
      const int64_t pixels = columns_ * (t + 1) / tiles - begin;
      append(pixels, row, begin, row, begin + (pixels + 1) / 2);
    }
  }

  void append(int64_t pixels, int64_t row0, int64_t column0, int64_t row1, int64_t column1) {
    if (pixels == 1) column1 = column0;  // the second run is empty: point at something that is there
    result_.tiles.push_back({pixels,
                             {in_.at(row0, column0), in_.at(row1, column1)},
                             {out_.at(row0, column0), out_.at(row1, column1)},
                             {residual_.at(row0, column0), residual_.at(row1, column1)}});
  }

  int64_t rows_;
  int64_t columns_;
  PhaseOffsets in_;
  PhaseOffsets out_;
  PhaseOffsets residual_{};
  TiledPhase result_{};
};

}  // namespace

std::vector<ConvPhase> conv_phases(const ConvSpec& spec) {
  std::vector<ConvPhase> phases;
  const int64_t height_phases = spec.transposed ? spec.height.stride : 1;
  const int64_t width_phases = spec.transposed ? spec.width.stride : 1;
  for (int64_t py = 0; py < height_phases; ++py) {
    for (int64_t px = 0; px < width_phases; ++px) {
      ConvPhase phase{phase_axis(spec.height, spec.transposed, py), phase_axis(spec.width, spec.transposed, px), {}};
      for (const AxisTap& y : axis_taps(spec.height, spec.transposed, py)) {
        for (const AxisTap& x : axis_taps(spec.width, spec.transposed, px)) {
          phase.taps.push_back({y.element, x.element, y.position, x.position});
        }
      }
      phases.push_back(std::move(phase));
    }
  }
  return phases;
}

Border conv_border(const std::vector<ConvPhase>& phases, const ImageLayout& in, const ImageLayout& out) {
  Reach rows;
  Reach columns;
  for (const ConvPhase& phase : phases) {
    if (phase.rows(out.height) == 0 || phase.columns(out.width) == 0) continue;
    for (const ConvTap& tap : phase.taps) {
      rows.include(phase.height, phase.rows(out.height), tap.row);
      columns.include(phase.width, phase.columns(out.width), tap.column);
    }
  }
  return {-rows.first, std::max<int64_t>(0, rows.last - in.height + 1), -columns.first,
          std::max<int64_t>(0, columns.last - in.width + 1), 0};
}

TiledPhase tile_phase(const ConvPhase& phase, const ConvProblem& problem, int64_t max_pixels) {
  return Tiler(phase, problem).cut(max_pixels);
}

void append_parts(int64_t phase, const PhaseWork& work, int threads, std::vector<ConvPart>& parts) {
  // Several parts per thread, so that one that was interrupted holds the others up for a fraction only.
  constexpr int64_t kPartsPerThread = 4;
  constexpr int64_t kLeastWork = 1 << 20;  // multiply-adds; less is not worth handing out
  constexpr int64_t kTileElements = 14 * 32;
  const int64_t total = work.tiles * work.panels * std::max<int64_t>(1, work.depth) * kTileElements;
  const int64_t wanted =
      threads == 1 ? 1 : std::clamp<int64_t>(total / kLeastWork, 1, static_cast<int64_t>(threads) * kPartsPerThread);
  int64_t panel_parts = 1;
  int64_t tile_parts = 1;
  if (work.weight_bytes > work.input_bytes) {
    panel_parts = std::min(work.panels, wanted);
    tile_parts = std::clamp<int64_t>(wanted / panel_parts, 1, work.tiles);
  } else {
    tile_parts = std::min(work.tiles, wanted);
    panel_parts = std::clamp<int64_t>(wanted / std::max<int64_t>(1, tile_parts), 1, work.panels);
  }
  for (int64_t p = 0; p < panel_parts; ++p) {
    for (int64_t t = 0; t < tile_parts; ++t) {
      parts.push_back({phase, share_of(work.tiles, tile_parts, t), share_of(work.panels, panel_parts, p)});
    }
  }
}

}  // namespace torchquant::kernels
