// Convolution as a matrix product on the tensor cores: output pixels by output channels, reduced over taps and input
// channels. The matrix of inputs is never made: each 16-byte piece of a row is fetched from the image when a tile needs
// it. Reached through integer_conv.cu.
//
// Tiles go through a ring in shared memory (copy_ring.cuh). Inputs enter the products as uint8: int8 codes get 128
// added, in codes and zero point alike. Padding is stored as the zero point, so that zero_point * weight_sum takes it
// out of every output alike.
#include "kernels/cuda/copy_ring.cuh"
#include "kernels/cuda/finish.cuh"
#include "kernels/cuda/integer_conv_kernels.cuh"

namespace torchquant::kernels::cuda {
namespace {

// A block computes kRows pixels x kColumns channels; its warps have kWarpRows x kWarpColumns each, and where that
// leaves warps over, they share out the depth of each step.
template <int ROWS, int COLUMNS, int DEPTH, int WARP_ROWS, int WARP_COLUMNS>
struct Tile {
  static constexpr int kRows = ROWS;
  static constexpr int kColumns = COLUMNS;
  static constexpr int kDepth = DEPTH;
  static constexpr int kWarpRows = WARP_ROWS;
  static constexpr int kWarpColumns = WARP_COLUMNS;
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kStages = 4;

  static constexpr int kWarpsDown = kRows / kWarpRows;
  static constexpr int kWarpsAcross = kColumns / kWarpColumns;
  static constexpr int kSlices = kWarps / (kWarpsDown * kWarpsAcross);

  static constexpr int kChunks = kDepth / 16;
  static constexpr int kRowsAtOnce = kThreads / kChunks;  // rows that one copy of every thread covers
  static constexpr int kInputBytes = kRows * kDepth;
  static constexpr int kStageBytes = kInputBytes + kColumns * kDepth;

  // After the products the ring holds sums, a row of warps at a time; 8 spare columns keep fragments' rows in
  // different banks.
  static constexpr int kSumPitch = kColumns + 8;
  static constexpr int kSumBytes = kSlices * kWarpRows * kSumPitch * 4;
  static constexpr int kRingBytes = kStages * kStageBytes > kSumBytes ? kStages* kStageBytes : kSumBytes;
  static constexpr int kResidualBytes = kRows * kColumns;
  static constexpr int kSharedBytes = kRingBytes + kResidualBytes;

  static_assert(kRows % kRowsAtOnce == 0 && kColumns % kRowsAtOnce == 0);
  static_assert(kDepth / 32 % kSlices == 0);
};

using LargeTile = Tile<128, 128, 64, 64, 64>;
using MediumTile = Tile<64, 64, 64, 32, 32>;
using SmallTile = Tile<16, 32, 256, 16, 32>;

// The part of the output that a block computes. Blocks that share pixels are neighbours, and find them in the L2 cache.
struct BlockPlace {
  int32_t pixel;
  int32_t group;
  int32_t column;  // within the group

  template <typename T>
  __device__ static BlockPlace of(const ConvShape& shape) {
    const unsigned per_group = (shape.group_out + T::kColumns - 1) / T::kColumns;
    const unsigned across = per_group * (shape.out_channels / shape.group_out);
    const unsigned i = blockIdx.x % across;
    return {static_cast<int32_t>(blockIdx.x / across) * T::kRows, static_cast<int32_t>(i / per_group),
            static_cast<int32_t>(i % per_group) * T::kColumns};
  }
};

// Fetches a block's inputs, step by step. A thread always has the same chunk of the same rows.
template <typename T, bool GATHER>
class InputLoader {
 public:
  __device__ InputLoader(const ConvParams& params, BlockPlace place)
      : x_(params.x + static_cast<int64_t>(place.group) * params.shape.group_in),
        filling_((params.zero_point & 0xff) * 0x01010101u) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int32_t pixel = place.pixel + row(i);
      origin_[i] = pixel < params.shape.pixels ? params.shape.origin(pixel) : ConvShape::nowhere();
    }
    cursor_.advance(params.shape, 16 * chunk());
  }

  __device__ void load(const ConvShape& shape, unsigned char* stage) {
    if constexpr (GATHER) {
      gather(shape, stage);
    } else {
      copy(shape, stage);
    }
    cursor_.advance(shape, T::kDepth);
  }

 private:
  static constexpr int kCount = T::kRows / T::kRowsAtOnce;
  __device__ static int chunk() { return static_cast<int>(threadIdx.x) % T::kChunks; }
  __device__ static int row(int i) { return static_cast<int>(threadIdx.x) / T::kChunks + i * T::kRowsAtOnce; }

  // Chunks of 16 channels that lie in one pixel.
  __device__ void copy(const ConvShape& shape, unsigned char* stage) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int64_t from = offset_at(shape, origin_[i], cursor_);
      unsigned char* to = stage + tile_offset<T::kChunks>(row(i), chunk());
      if (from >= 0) {
        copy_16_async(to, x_ + from);
      } else {
        *reinterpret_cast<uint4*>(to) = make_uint4(filling_, filling_, filling_, filling_);
      }
    }
  }

  // Any number of channels: byte by byte.
  __device__ void gather(const ConvShape& shape, unsigned char* stage) const {
    DepthCursor cursor = cursor_;
#pragma unroll 1
    for (int word = 0; word < 4; ++word) {
      uint32_t words[kCount] = {};
#pragma unroll
      for (int byte = 0; byte < 4; ++byte) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const int64_t from = offset_at(shape, origin_[i], cursor);
          words[i] |= (from >= 0 ? x_[from] : filling_ & 0xff) << 8 * byte;
        }
        cursor.advance(shape, 1);
      }
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        *reinterpret_cast<uint32_t*>(stage + tile_offset<T::kChunks>(row(i), chunk()) + 4 * word) = words[i];
      }
    }
  }

  __device__ static int64_t offset_at(const ConvShape& shape, const PixelOrigin& origin, const DepthCursor& cursor) {
    if (cursor.ky >= shape.height.kernel) return -1;  // behind the depth, where weights are 0
    const int64_t pixel = shape.input_offset(origin, cursor.ky, cursor.kx);
    return pixel < 0 ? -1 : pixel + cursor.channel;
  }

  const uint8_t* x_;
  uint32_t filling_;
  PixelOrigin origin_[kCount];
  DepthCursor cursor_;
};

// Fetches a block's weights, step by step.
template <typename T>
class WeightLoader {
 public:
  __device__ WeightLoader(const ConvParams& params, BlockPlace place)
      : pitch_(params.weight_pitch), depth_(chunk() * 16), rows_(params.shape.group_out - place.column - row(0)) {
    const int64_t first = static_cast<int64_t>(place.group) * params.shape.group_out + place.column + row(0);
    from_ = params.weight + first * pitch_ + depth_;
  }

  __device__ void load(unsigned char* stage) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const bool valid = depth_ < pitch_ && i * T::kRowsAtOnce < rows_;
      const int8_t* from = valid ? from_ + i * T::kRowsAtOnce * pitch_ : from_;
      copy_16_async(stage + tile_offset<T::kChunks>(row(i), chunk()), from, valid);
    }
    depth_ += T::kDepth;
    from_ += T::kDepth;
  }

 private:
  static constexpr int kCount = T::kColumns / T::kRowsAtOnce;
  __device__ static int chunk() { return static_cast<int>(threadIdx.x) % T::kChunks; }
  __device__ static int row(int i) { return static_cast<int>(threadIdx.x) / T::kChunks + i * T::kRowsAtOnce; }

  int64_t pitch_;
  int64_t depth_;
  int32_t rows_;  // this thread's rows end before this many from its first
  const int8_t* from_;
};

// Where a warp works within its block.
template <typename T>
struct WarpPlace {
  int lane = static_cast<int>(threadIdx.x) % kWarp;
  int slice = static_cast<int>(threadIdx.x) / kWarp / (T::kWarpsDown * T::kWarpsAcross);
  int down = static_cast<int>(threadIdx.x) / kWarp / T::kWarpsAcross % T::kWarpsDown;
  int across = static_cast<int>(threadIdx.x) / kWarp % T::kWarpsAcross;
};

template <typename T>
struct WarpSums {
  static constexpr int kDown = T::kWarpRows / 16;
  static constexpr int kAcross = T::kWarpColumns / 8;
  int32_t value[kDown][kAcross][4];
};

// The products of one stage. `flip` turns int8 codes into uint8 ones.
template <typename T>
__device__ __forceinline__ void multiply_stage(const unsigned char* stage, const WarpPlace<T>& warp, uint32_t flip,
                                               WarpSums<T>& sums) {
  using Sums = WarpSums<T>;
  const unsigned char* weights = stage + T::kInputBytes;
#pragma unroll
  for (int step = 0; step < T::kDepth / 32 / T::kSlices; ++step) {
    const int chunk = 2 * (step * T::kSlices + warp.slice);
    uint32_t a[Sums::kDown][4];
#pragma unroll
    for (int i = 0; i < Sums::kDown; ++i) {
      const int row = warp.down * T::kWarpRows + 16 * i + warp.lane % 16;
      load_matrices(a[i], stage + tile_offset<T::kChunks>(row, chunk + warp.lane / 16));
#pragma unroll
      for (int r = 0; r < 4; ++r) a[i][r] ^= flip;
    }
#pragma unroll
    for (int pair = 0; pair < Sums::kAcross / 2; ++pair) {
      // Matrices: channels 0..7 of either half of the depth, then channels 8..15.
      const int row = warp.across * T::kWarpColumns + 16 * pair + warp.lane / 16 * 8 + warp.lane % 8;
      uint32_t both[4];
      load_matrices(both, weights + tile_offset<T::kChunks>(row, chunk + warp.lane / 8 % 2));
      const uint32_t b[2][2] = {{both[0], both[1]}, {both[2], both[3]}};
#pragma unroll
      for (int i = 0; i < Sums::kDown; ++i) {
        multiply_add_int8<true>(sums.value[i][2 * pair], a[i], b[0]);
        multiply_add_int8<true>(sums.value[i][2 * pair + 1], a[i], b[1]);
      }
    }
  }
}

template <typename T>
__device__ __forceinline__ void write_sums(const WarpSums<T>& sums, const WarpPlace<T>& warp, int32_t* shared) {
  int32_t* to = shared + (warp.slice * T::kWarpRows + warp.lane / 4) * T::kSumPitch + warp.across * T::kWarpColumns +
                warp.lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < WarpSums<T>::kDown; ++i) {
#pragma unroll
    for (int j = 0; j < WarpSums<T>::kAcross; ++j) {
      const int32_t(&v)[4] = sums.value[i][j];
      *reinterpret_cast<int2*>(to + 16 * i * T::kSumPitch + 8 * j) = {v[0], v[1]};
      *reinterpret_cast<int2*>(to + (16 * i + 8) * T::kSumPitch + 8 * j) = {v[2], v[3]};
    }
  }
}

// Starts the copy of the block's residual codes, rows of kColumns; false if they do not lie in whole chunks, and are
// left to be read where they are.
template <typename T>
__device__ __forceinline__ bool fetch_residual(const ConvParams& params, BlockPlace place, unsigned char* shared) {
  const ConvShape& shape = params.shape;
  const auto* from = static_cast<const uint8_t*>(params.epilogue.residual.data);
  if (from == nullptr || shape.group_out % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) return false;
  constexpr int kAcross = T::kColumns / 16;
  for (int i = static_cast<int>(threadIdx.x); i < T::kRows * kAcross; i += T::kThreads) {
    const int32_t pixel = place.pixel + i / kAcross;
    const int32_t column = place.column + i % kAcross * 16;
    if (pixel >= shape.pixels || column >= shape.group_out) continue;
    copy_16_async(shared + 16 * i,
                  from + static_cast<int64_t>(pixel) * shape.out_channels + place.group * shape.group_out + column);
  }
  return true;
}

// Finishes the rows of sums that lie in shared memory, four channels of a row at a time. A thread keeps its channels.
template <typename T>
class Finisher {
 public:
  __device__ Finisher(const ConvParams& params, BlockPlace place, const unsigned char* shared_residual)
      : params_(params),
        place_(place),
        shared_residual_(shared_residual),
        channel_(place.group * params.shape.group_out + place.column + column()),
        valid_(params.shape.group_out - place.column - column()),
        scales_(params.epilogue, channel_, valid_) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      offset_[i] =
          i < valid_ ? static_cast<uint32_t>(params.weight_sum[channel_ + i]) * static_cast<uint32_t>(params.zero_point)
                     : 0;
    }
  }

  // `first_row`: of the block, the one in row 0 of `sums`.
  __device__ void finish(const int32_t* sums, int first_row) const {
    if (valid_ <= 0) return;
#pragma unroll 1
    for (int row = static_cast<int>(threadIdx.x) / kAcross; row < T::kWarpRows; row += T::kThreads / kAcross) {
      const int32_t pixel = place_.pixel + first_row + row;
      if (pixel >= params_.shape.pixels) return;
      finish_run_at(sums + row * T::kSumPitch, pixel, first_row + row);
    }
  }

 private:
  static constexpr int kCount = 4;
  static constexpr int kAcross = T::kColumns / kCount;
  __device__ static int column() { return static_cast<int>(threadIdx.x) % kAcross * kCount; }

  __device__ void finish_run_at(const int32_t* sums, int32_t pixel, int row) const {
    // Modulo 2^32: the whole is inside int32, its parts need not be.
    uint32_t acc[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) acc[i] = 0u - offset_[i];
#pragma unroll
    for (int slice = 0; slice < T::kSlices; ++slice) {
      const int4 part = *reinterpret_cast<const int4*>(sums + slice * T::kWarpRows * T::kSumPitch + column());
      const int parts[kCount] = {part.x, part.y, part.z, part.w};
#pragma unroll
      for (int i = 0; i < kCount; ++i) acc[i] += static_cast<uint32_t>(parts[i]);
    }
    const int64_t element = static_cast<int64_t>(pixel) * params_.shape.out_channels + channel_;
    float v[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      v[i] = numerics::scale_accumulator(static_cast<int32_t>(acc[i]), scales_.multiplier[i], scales_.bias[i]);
    }
    Residual residual = params_.epilogue.residual;
    if (shared_residual_ != nullptr) residual.data = shared_residual_;
    add_residual(v, residual, shared_residual_ != nullptr ? row * T::kColumns + column() : element, valid_);
    store_values(v, params_.epilogue.output, params_.out, element, valid_);
  }

  const ConvParams& params_;
  BlockPlace place_;
  const unsigned char* shared_residual_;
  int32_t channel_;
  int32_t valid_;
  ChannelScales<kCount> scales_;
  uint32_t offset_[kCount];  // zero_point * weight_sum
};

template <typename T, bool GATHER>
__device__ __forceinline__ void multiply_block(const ConvParams& params, BlockPlace place, const WarpPlace<T>& warp,
                                               unsigned char* ring, WarpSums<T>& sums) {
  InputLoader<T, GATHER> inputs(params, place);
  WeightLoader<T> weights(params, place);
  const int steps = (params.shape.depth() + T::kDepth - 1) / T::kDepth;
  const uint32_t flip = params.signed_x ? 0x80808080u : 0u;
  run_through_ring<T::kStages, T::kStageBytes>(
      ring, steps,
      [&](int, unsigned char* stage) {
        inputs.load(params.shape, stage);
        weights.load(stage + T::kInputBytes);
      },
      [&](int, const unsigned char* stage) { multiply_stage<T>(stage, warp, flip, sums); });
}

template <typename T, bool GATHER>
__global__ void __launch_bounds__(T::kThreads, 2) conv_mma_kernel(const ConvParams params) {
  unsigned char* ring = dynamic_shared();
  unsigned char* shared_residual = ring + T::kRingBytes;
  const BlockPlace place = BlockPlace::of<T>(params.shape);
  const WarpPlace<T> warp;
  const bool fetched = fetch_residual<T>(params, place, shared_residual);
  WarpSums<T> sums = {};
  multiply_block<T, GATHER>(params, place, warp, ring, sums);
  auto* shared_sums = reinterpret_cast<int32_t*>(ring);
  ConvParams finishing = params;
  finishing.zero_point += params.signed_x ? 128 : 0;
  const Finisher<T> finisher(finishing, place, fetched ? shared_residual : nullptr);
#pragma unroll 1
  for (int down = 0; down < T::kWarpsDown; ++down) {
    __syncthreads();  // the ring, or the rows before, have been read
    if (warp.down == down) write_sums<T>(sums, warp, shared_sums);
    __syncthreads();
    finisher.finish(shared_sums, down * T::kWarpRows);
  }
}

template <typename T>
int64_t block_count(const ConvShape& shape) {
  return ceil_div(shape.pixels, T::kRows) * ceil_div(shape.group_out, T::kColumns) *
         (shape.out_channels / shape.group_out);
}

template <typename T, bool GATHER>
cudaError_t launch(const ConvParams& params, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(block_count<T>(params.shape));
  return start_kernel(conv_mma_kernel<T, GATHER>, dim3(blocks), dim3(T::kThreads), T::kSharedBytes, stream, params);
}

// The largest tile that still gives most of a GPU's multiprocessors something to do.
ConvTile choose_tile(const ConvShape& shape) {
  constexpr int64_t kBusy = 128;
  if (shape.pixels <= SmallTile::kRows) return ConvTile::kSmall;
  if (block_count<LargeTile>(shape) >= kBusy) return ConvTile::kLarge;
  if (block_count<MediumTile>(shape) >= kBusy / 2 || shape.depth() < SmallTile::kDepth) return ConvTile::kMedium;
  return ConvTile::kSmall;
}

}  // namespace

cudaError_t conv_mma(const ConvParams& params, ConvTile tile, cudaStream_t stream) {
  const bool whole_chunks = params.shape.group_in % 16 == 0 && is_aligned(params.x, 16);
  if (!whole_chunks) return launch<MediumTile, true>(params, stream);
  switch (tile == ConvTile::kAuto ? choose_tile(params.shape) : tile) {
    case ConvTile::kLarge:
      return launch<LargeTile, false>(params, stream);
    case ConvTile::kMedium:
      return launch<MediumTile, false>(params, stream);
    default:
      return launch<SmallTile, false>(params, stream);
  }
}

}  // namespace torchquant::kernels::cuda
