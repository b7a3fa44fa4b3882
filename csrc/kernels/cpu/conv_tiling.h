// Cuts a convolution into what tile kernels compute: phases, segments of input bytes and tiles of output pixels. Plain
// arithmetic on shapes, for any instruction set. Called by kernels/cpu/integer_conv_*.cpp.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/integer_conv.h"

namespace torchquant::kernels {

// One element of the kernel, and the input pixel it reads, counted from the one that element (0, 0) of a plain
// convolution would read.
struct ConvTap {
  int64_t ky;
  int64_t kx;
  int64_t row;
  int64_t column;
};

// How one axis of a phase walks: output position start + i * out_step reads input positions base + i * in_step + tap.
struct PhaseAxis {
  int64_t out_start;
  int64_t out_step;
  int64_t in_base;
  int64_t in_step;
};

// An ordinary convolution over a part of the output. A forward convolution has one phase; a transposed one has one for
// every position that an output pixel can have between two input pixels, each with the taps that reach it.
struct ConvPhase {
  PhaseAxis height;
  PhaseAxis width;
  std::vector<ConvTap> taps;

  int64_t rows(int64_t out_height) const { return steps(height, out_height); }
  int64_t columns(int64_t out_width) const { return steps(width, out_width); }

 private:
  static int64_t steps(const PhaseAxis& axis, int64_t size) {
    return size > axis.out_start ? (size - axis.out_start - 1) / axis.out_step + 1 : 0;
  }
};

std::vector<ConvPhase> conv_phases(const ConvSpec& spec);

// The pixels around the input that the phases read; tail_bytes is left to the kernel.
Border conv_border(const std::vector<ConvPhase>& phases, const ImageLayout& in, const ImageLayout& out);

// Output pixels that a tile kernel computes together: two runs, the first of (pixels + 1) / 2 pixels. Offsets in
// elements from the first pixel of an image.
struct PixelTile {
  int64_t pixels;
  int64_t in[2];
  int64_t out[2];
  int64_t residual[2];
};

// All tiles of a phase: those of one image, repeated for each image. Pitches and steps in elements; a step leads from
// one pixel of a run to the next.
struct TiledPhase {
  int64_t images;
  ImageLayout in;
  ImageLayout out;
  ImageLayout residual;
  int64_t in_step;
  int64_t out_step;
  int64_t residual_step;
  std::vector<PixelTile> tiles;

  int64_t count() const { return images * static_cast<int64_t>(tiles.size()); }
};

TiledPhase tile_phase(const ConvPhase& phase, const ConvProblem& problem, int64_t max_pixels);

// A rectangle of work: tiles [tiles.begin, tiles.end) of one phase with panels of output channels.
struct ConvPart {
  int64_t phase;
  IndexRange tiles;
  IndexRange panels;
};

// What one phase costs and moves, by which it is cut into parts.
struct PhaseWork {
  int64_t tiles;
  int64_t panels;
  int64_t depth;         // multiply-adds per output element
  int64_t weight_bytes;  // of all panels
  int64_t input_bytes;   // of all tiles
};

// Appends the parts of a phase for `threads` threads: by panels where the weights are the larger operand, so that every
// thread reads its own, and by tiles otherwise.
void append_parts(int64_t phase, const PhaseWork& work, int threads, std::vector<ConvPart>& parts);

}  // namespace torchquant::kernels
