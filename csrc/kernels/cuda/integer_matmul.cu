// Batched products of two matrices of codes on the tensor cores; see integer_matmul.h.
//
// A block computes 64 x 64 elements of one product. Both sides come to shared memory as rows along the depth, b's
// columns too, however they lie. The cores multiply uint8 by int8, so codes are shifted by 128 where they have the
// other sign; zero points, shifted alike, are taken out of the sums by the sums of a's rows and b's columns, which the
// block adds up from the same tiles. All modulo 2^32: the whole fits int32, its parts need not.
#include "kernels/cuda/conv_layout.h"
#include "kernels/cuda/finish.cuh"
#include "kernels/cuda/integer_matmul.h"

namespace torchquant::kernels::cuda {
namespace {

constexpr int kTile = 64;  // rows and columns of a block
constexpr int kChunks = 4;
constexpr int kDepth = 16 * kChunks;  // of a step
constexpr int kBlockThreads = 128;    // four warps, of 32 x 32 elements each
constexpr int kWarpTile = 32;
constexpr int kSumPitch = kTile + 8;  // keeps fragments' rows in different banks

struct MatmulParams {
  MatmulArgs args;
  uint32_t flip_a, flip_b;  // of four codes
  uint32_t zero_a, zero_b;  // of the shifted codes
};

// One side of a block: lines along the depth, rows of a or columns of b.
struct Side {
  const uint8_t* from;  // the first code of the first line
  int64_t line_stride;
  int64_t depth_stride;
  int64_t lines;  // that exist
  uint32_t flip;
};

__device__ __forceinline__ uint32_t& word_of(uint4& words, int i) { return reinterpret_cast<uint32_t*>(&words)[i]; }

// 16 codes along the depth of one line, 0 after the flip where there are none.
__device__ __forceinline__ uint4 load_chunk(const Side& side, int64_t line, int64_t depth_begin, int64_t depth) {
  uint4 words = make_uint4(0, 0, 0, 0);
  if (line >= side.lines || depth_begin >= depth) return words;
  const uint8_t* from = side.from + line * side.line_stride + depth_begin * side.depth_stride;
  const int64_t left = depth - depth_begin;
  if (side.depth_stride == 1 && is_whole_access<16>(from, left < 16 ? static_cast<int>(left) : 16)) {
    words = *reinterpret_cast<const uint4*>(from);
#pragma unroll
    for (int i = 0; i < 4; ++i) word_of(words, i) ^= side.flip;
    return words;
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const uint32_t code = i < left ? from[i * side.depth_stride] ^ (side.flip & 0xff) : 0;
    word_of(words, i / 4) |= code << i % 4 * 8;
  }
  return words;
}

// Neighbouring threads take neighbouring lines, which lie side by side in memory where the depth does not.
__device__ __forceinline__ void load_side(const Side& side, int64_t depth_begin, int64_t depth, unsigned char* tile) {
#pragma unroll
  for (int i = 0; i < kTile * kChunks / kBlockThreads; ++i) {
    const int piece = static_cast<int>(threadIdx.x) + i * kBlockThreads;
    const int line = piece % kTile;
    const int chunk = piece / kTile;
    *reinterpret_cast<uint4*>(tile + tile_offset<kChunks>(line, chunk)) =
        load_chunk(side, line, depth_begin + 16 * chunk, depth);
  }
}

// What a thread adds up of its line: the first 64 threads have a's, the others b's.
__device__ __forceinline__ uint32_t sum_line(const unsigned char* tile, int line, bool is_a) {
  uint32_t sum = 0;
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    uint4 words = *reinterpret_cast<const uint4*>(tile + tile_offset<kChunks>(line, chunk));
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const uint32_t code = word_of(words, i / 4) >> i % 4 * 8 & 0xff;
      sum += is_a ? code : static_cast<uint32_t>(static_cast<int32_t>(static_cast<int8_t>(code)));
    }
  }
  return sum;
}

struct WarpProducts {
  int32_t value[2][4][4];
};

__device__ __forceinline__ void multiply_tiles(const unsigned char* a_tile, const unsigned char* b_tile, int row,
                                               int column, WarpProducts& sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int chunk = 0; chunk < kChunks; chunk += 2) {
    uint32_t a[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      load_matrices(a[i], a_tile + tile_offset<kChunks>(row + 16 * i + lane % 16, chunk + lane / 16));
    }
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      // Matrices: columns 0..7 of either half of the depth, then columns 8..15.
      const int line = column + 16 * pair + lane / 16 * 8 + lane % 8;
      uint32_t both[4];
      load_matrices(both, b_tile + tile_offset<kChunks>(line, chunk + lane / 8 % 2));
      const uint32_t b[2][2] = {{both[0], both[1]}, {both[2], both[3]}};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        multiply_add_int8<true>(sums.value[i][2 * pair], a[i], b[0]);
        multiply_add_int8<true>(sums.value[i][2 * pair + 1], a[i], b[1]);
      }
    }
  }
}

__device__ __forceinline__ void write_products(const WarpProducts& sums, int row, int column, int32_t* shared) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int32_t* to = shared + (row + lane / 4) * kSumPitch + column + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int32_t(&v)[4] = sums.value[i][j];
      *reinterpret_cast<int2*>(to + 16 * i * kSumPitch + 8 * j) = {v[0], v[1]};
      *reinterpret_cast<int2*>(to + (16 * i + 8) * kSumPitch + 8 * j) = {v[2], v[3]};
    }
  }
}

// Four columns of a row at a time.
__device__ __forceinline__ void finish_tile(const MatmulParams& params, int64_t out, int64_t rows, int64_t columns,
                                            const int32_t* shared, const uint32_t* line_sums) {
  constexpr int kRun = 4;
  const MatmulArgs& args = params.args;
  const uint32_t both = params.zero_a * params.zero_b * static_cast<uint32_t>(args.depth);
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kTile * kTile / kRun; i += kBlockThreads) {
    const int row = i / (kTile / kRun);
    const int column = i % (kTile / kRun) * kRun;
    if (row >= rows || column >= columns) continue;
    float v[kRun];
#pragma unroll
    for (int c = 0; c < kRun; ++c) {
      const uint32_t acc = static_cast<uint32_t>(shared[row * kSumPitch + column + c]) + both -
                           params.zero_a * line_sums[kTile + column + c] - params.zero_b * line_sums[row];
      v[c] = numerics::scale_accumulator(static_cast<int32_t>(acc), args.multiplier, 0.0f);
    }
    const int64_t left = columns - column;
    store_values(v, args.output, args.out, out + row * args.out_row_stride + column,
                 left < kRun ? static_cast<int>(left) : kRun);
  }
}

__global__ void __launch_bounds__(kBlockThreads) integer_matmul_kernel(const MatmulParams params) {
  alignas(16) __shared__ unsigned char a_tile[kTile * kDepth];
  alignas(16) __shared__ unsigned char b_tile[kTile * kDepth];
  alignas(16) __shared__ int32_t products[kTile * kSumPitch];
  __shared__ uint32_t line_sums[2 * kTile];
  const MatmulArgs& args = params.args;
  const int64_t down = (args.rows + kTile - 1) / kTile;
  const int64_t across = (args.columns + kTile - 1) / kTile;
  const int64_t tile = blockIdx.x % (down * across);
  const MatmulPlace place = args.batch.place(blockIdx.x / (down * across));
  const int64_t row = tile / across * kTile;
  const int64_t column = tile % across * kTile;
  const Side a{static_cast<const uint8_t*>(args.a.data) + place.a + row * args.a_row_stride, args.a_row_stride, 1,
               args.rows - row, params.flip_a};
  const Side b{static_cast<const uint8_t*>(args.b.data) + place.b + column * args.b_column_stride, args.b_column_stride,
               args.b_row_stride, args.columns - column, params.flip_b};
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warp_row = warp / 2 * kWarpTile;
  const int warp_column = warp % 2 * kWarpTile;
  const bool sums_a = threadIdx.x < kTile;
  uint32_t line_sum = 0;
  WarpProducts sums = {};
#pragma unroll 1
  for (int64_t k = 0; k < args.depth; k += kDepth) {
    load_side(a, k, args.depth, a_tile);
    load_side(b, k, args.depth, b_tile);
    __syncthreads();
    line_sum += sum_line(sums_a ? a_tile : b_tile, static_cast<int>(threadIdx.x) % kTile, sums_a);
    multiply_tiles(a_tile, b_tile, warp_row, warp_column, sums);
    __syncthreads();  // the tiles have been read
  }
  line_sums[threadIdx.x] = line_sum;
  write_products(sums, warp_row, warp_column, products);
  __syncthreads();
  finish_tile(params, place.out + row * args.out_row_stride + column, a.lines, b.lines, products, line_sums);
}

}  // namespace

cudaError_t integer_matmul(const MatmulArgs& args, cudaStream_t stream) {
  const bool signed_a = args.a.type == ElementType::kInt8;
  const bool unsigned_b = args.b.type == ElementType::kUInt8;
  const MatmulParams params{args, signed_a ? 0x80808080u : 0u, unsigned_b ? 0x80808080u : 0u,
                            static_cast<uint32_t>(args.a.zero_point + (signed_a ? 128 : 0)),
                            static_cast<uint32_t>(args.b.zero_point - (unsigned_b ? 128 : 0))};
  const int64_t blocks = args.batch.products() * ceil_div(args.rows, kTile) * ceil_div(args.columns, kTile);
  return start_kernel(integer_matmul_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kBlockThreads), 0, stream,
                      params);
}

}  // namespace torchquant::kernels::cuda
