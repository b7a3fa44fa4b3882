// Weight-only linear layers for many rows of 16-bit floats: tiles whose inputs go through shared memory and whose
// weights go from global memory to registers, where they are dequantized. Called through linear_weight_only.h.
#include "kernels/cuda/copy_ring.cuh"
#include "kernels/cuda/linear_weight_only.cuh"

namespace torchquant::kernels::cuda {

namespace {

// A block computes 64 rows by 128 channels; each of its four warps all rows of 32 channels.
constexpr int kTileThreads = 4 * kWarp;
constexpr int kTileRows = 64;
constexpr int kRowTiles = kTileRows / 8;
constexpr int kWarpBlocks = 2;  // blocks of 16 channels
constexpr int kTileChannels = 4 * kWarpBlocks * static_cast<int>(kBlockChannels);
constexpr int kStages = 4;
constexpr int kRowPieces = static_cast<int>(kBlockDepth) * 2 / 16;  // of 16 bytes
constexpr int kStageBytes = kTileRows * kRowPieces * 16;
constexpr int kSumStride = kTileChannels + 4;  // floats
constexpr int kSumBytes = kTileRows * kSumStride * 4;
constexpr int kSharedBytes = kSumBytes > kStages* kStageBytes ? kSumBytes : kStages* kStageBytes;

// Pieces of odd rows are exchanged by halves, so that the two rows of a quarter-warp's access fall on different banks.
__device__ __forceinline__ int piece_place(int row, int piece) { return row * kRowPieces + (piece ^ (row % 2 * 4)); }

// Begins to copy 64 steps along k of the tile's rows; zeros beyond the matrix.
__device__ __forceinline__ void copy_rows(const WeightOnlyArgs& args, int64_t first_row, int64_t k,
                                          unsigned char* stage) {
#pragma unroll
  for (int i = 0; i < kTileRows * kRowPieces / kTileThreads; ++i) {
    const int piece = static_cast<int>(threadIdx.x) + i * kTileThreads;
    const int row = piece / kRowPieces;
    const int64_t column = k + piece % kRowPieces * 8;
    const bool valid = first_row + row < args.rows && column < args.shape.depth;
    const auto* from =
        static_cast<const unsigned char*>(args.x) + (valid ? ((first_row + row) * args.shape.depth + column) * 2 : 0);
    copy_16_async(stage + piece_place(row, piece % kRowPieces) * 16, from, valid);
  }
}

using WarpSums = float[kWarpBlocks][kRowTiles][4];

template <typename T, int BITS>
__device__ __forceinline__ void multiply_stage(const PackedWeight& weight, const BlockCodes<BITS> (&codes)[kWarpBlocks],
                                               int first_block, int depth_block, const unsigned char* stage,
                                               WarpSums& sum) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll(BITS == 4 ? 2 : 1)
  for (int half = 0; half < 2; ++half) {
    uint32_t a[kWarpBlocks][2][4];
    LaneScales scales[kWarpBlocks];
#pragma unroll
    for (int block = 0; block < kWarpBlocks; ++block) {
      const int inside = first_block + block < weight.channel_blocks ? first_block + block : 0;
      scales[block] = load_scales(weight, inside, 2 * depth_block + half, lane);
      const Dequantize<kAsBFloat16<T>, BITS> dequantize(scales[block]);
      dequantize(codes[block], half, 0, a[block][0]);
      dequantize(codes[block], half, 1, a[block][1]);
    }
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      const int place = piece_place(8 * tile + lane / 4, 4 * half + lane % 4);
      const HalfInput<T> input{{reinterpret_cast<const uint4*>(stage)[place]}};
#pragma unroll
      for (int block = 0; block < kWarpBlocks; ++block) {
        float part[4] = {};
#pragma unroll
        for (int product = 0; product < 2; ++product) {
          uint32_t b[2];
          input.get(0, product, b);
          multiply_add_half<kAsBFloat16<T>>(part, a[block][product], b);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sum[block][tile][i] = fmaf(scales[block].scale[i / 2], part[i], sum[block][tile][i]);
        }
      }
    }
  }
}

// Through shared memory, so that stores are whole lines and the activation's code stands there once.
template <typename T>
__device__ void store_tile(const WeightOnlyArgs& args, int64_t first_row, int64_t first_channel, const WarpSums& sum,
                           float* shared) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int block = 0; block < kWarpBlocks; ++block) {
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = 8 * tile + 2 * (lane % 4) + i % 2;
        const int channel = (kWarpBlocks * warp + block) * static_cast<int>(kBlockChannels) + lane / 4 + i / 2 * 8;
        shared[row * kSumStride + channel] = sum[block][tile][i];
      }
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kTileRows * kTileChannels; i += kTileThreads) {
    const int64_t row = first_row + i / kTileChannels;
    const int64_t channel = first_channel + i % kTileChannels;
    if (row >= args.rows || channel >= args.shape.out_channels) continue;
    store_result<T>(args, row, channel, shared[i / kTileChannels * kSumStride + i % kTileChannels]);
  }
}

template <typename T, int BITS>
__global__ void __launch_bounds__(kTileThreads, 2) tiled_kernel(WeightOnlyArgs args, PackedWeight weight) {
  constexpr int64_t kBytes = kBlockCodes * BITS / 8;
  unsigned char* shared = dynamic_shared();
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTileRows;
  const int first_block = (static_cast<int>(blockIdx.y) * 4 + warp) * kWarpBlocks;
  const int steps = weight.depth_blocks;
  BlockCodes<BITS> next[kWarpBlocks] = {};
  const auto load_codes = [&](int step) {
#pragma unroll
    for (int block = 0; block < kWarpBlocks; ++block) {
      if (step >= steps || first_block + block >= weight.channel_blocks) continue;
      const int64_t place = static_cast<int64_t>(first_block + block) * weight.depth_blocks + step;
      next[block] = load_block<BITS>(weight.codes + place * kBytes, lane);
    }
  };
  load_codes(0);
  WarpSums sum = {};
  run_through_ring<kStages, kStageBytes>(
      shared, steps, [&](int step, unsigned char* stage) { copy_rows(args, first_row, step * kBlockDepth, stage); },
      [&](int step, const unsigned char* stage) {
        BlockCodes<BITS> now[kWarpBlocks];
#pragma unroll
        for (int block = 0; block < kWarpBlocks; ++block) now[block] = next[block];
        load_codes(step + 1);
        multiply_stage<T, BITS>(weight, now, first_block, step, stage, sum);
      });
  __syncthreads();  // the sums overwrite the stages
  store_tile<T>(args, first_row, static_cast<int64_t>(blockIdx.y) * kTileChannels, sum,
                reinterpret_cast<float*>(shared));
}

template <typename T, int BITS>
cudaError_t start(const WeightOnlyArgs& args, const void* packed, cudaStream_t stream) {
  const PackedWeight weight(args.shape, packed);
  const dim3 grid(static_cast<unsigned>(ceil_div(args.rows, kTileRows)),
                  static_cast<unsigned>(ceil_div(args.shape.out_channels, kTileChannels)));
  return start_kernel(tiled_kernel<T, BITS>, grid, kTileThreads, kSharedBytes, stream, args, weight);
}

}  // namespace

namespace detail {

bool takes_tiled(const WeightOnlyArgs& args) {
  return args.type != FloatType::kFloat32 && args.rows >= kTiledFromRows && args.shape.depth % 8 == 0 &&
         is_aligned(args.x, 16);
}

cudaError_t linear_weight_only_tiled(const WeightOnlyArgs& args, const void* packed, cudaStream_t stream) {
  const bool four = args.shape.bits == 4;
  if (args.type == FloatType::kFloat16) {
    return four ? start<__half, 4>(args, packed, stream) : start<__half, 8>(args, packed, stream);
  }
  return four ? start<__nv_bfloat16, 4>(args, packed, stream) : start<__nv_bfloat16, 8>(args, packed, stream);
}

}  // namespace detail

}  // namespace torchquant::kernels::cuda
