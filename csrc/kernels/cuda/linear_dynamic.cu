// Dynamic integer linear layers: one kernel for few rows, which quantizes them itself, and a row-quantize kernel before
// a tiled product for many. Called through linear_dynamic.h.
//
// Both products read fragments without ldmatrix: a sum over k may take its terms in any order, so lane member m takes
// the 16 neighbours from 16 * m on of each 64 as its four registers of two products, from both operands alike.
#include "kernels/cuda/copy_ring.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/linear_dynamic.h"
#include "kernels/cuda/quantize_row.cuh"
#include "numerics/int4.h"
#include "numerics/requantize.h"

namespace torchquant::kernels::cuda {

namespace {

constexpr int kStep = static_cast<int>(kDepthStep);
constexpr int kPieces = kStep / 16;  // of 16 bytes in a step of one row

// What one accumulator becomes: the contract's formula for dynamic layers.
template <typename T>
__device__ __forceinline__ void store_result(const LinearDynamicArgs& args, int64_t row, int64_t channel, int32_t sum,
                                             float row_scale) {
  const float bias = args.bias != nullptr ? args.bias[channel] : 0.0f;
  const float v = numerics::scale_accumulator(sum, row_scale * args.weight_scale[channel], bias);
  static_cast<T*>(args.out)[row * args.channels + channel] = from_float<T>(numerics::activate(v, args.activation));
}

// sum[16 x 8] += rows of codes * channels of weights, 64 steps along k.
__device__ __forceinline__ void multiply_step(int32_t (&sum)[4], uint4 upper_rows, uint4 lower_rows, uint4 channels) {
  multiply_add_int8<false>(sum, {upper_rows.x, lower_rows.x, upper_rows.y, lower_rows.y}, {channels.x, channels.y});
  multiply_add_int8<false>(sum, {upper_rows.z, lower_rows.z, upper_rows.w, lower_rows.w}, {channels.z, channels.w});
}

// ---- few rows -------------------------------------------------------------------------------------------------------

// Rows of codes in shared memory lie an odd number of steps apart, so that the eight lanes of a quarter-warp's access
// fall on different banks.
TQ_HOST_DEVICE constexpr int64_t shared_row_bytes(int64_t depth) {
  const int64_t padded = padded_depth(depth);
  return padded % (2 * kStep) == 0 ? padded + kStep : padded;
}

// Codes of all rows into shared memory, and their scales. Warps share a row where there are fewer rows than warps.
template <typename T>
__device__ void quantize_to_shared(const LinearDynamicArgs& args, unsigned char* codes, int32_t* largest,
                                   float* scale) {
  constexpr int kWarps = kThreads / kWarp;
  const int rows = static_cast<int>(args.rows);
  int warps_each = kWarps;
  while (warps_each > 1 && kWarps / warps_each < rows) warps_each /= 2;
  const int threads_each = warps_each * kWarp;
  const int first_row = static_cast<int>(threadIdx.x) / threads_each;
  const int share = static_cast<int>(threadIdx.x) % threads_each;
  const int rows_at_once = kThreads / threads_each;
  const auto* x = static_cast<const T*>(args.x);
  for (int row = first_row; row < rows; row += rows_at_once) {
    const RowReader<T> reader(x + row * args.depth, args.depth);
    const int32_t found = largest_of_warp(largest_of_share(reader, args.depth, share, threads_each));
    if (threadIdx.x % kWarp == 0) atomicMax(&largest[row], found);
  }
  __syncthreads();
  for (int row = first_row; row < rows; row += rows_at_once) {
    const RowReader<T> reader(x + row * args.depth, args.depth);
    const auto qparams = numerics::dynamic_qparams(largest[row]);
    if (share == 0) scale[row] = qparams.scale;
    write_codes_of_share(reader, padded_depth(args.depth), share, threads_each, qparams,
                         codes + row * shared_row_bytes(args.depth));
  }
  __syncthreads();
}

// A block computes 8 * TILES channels of all rows; its warps take turns along k. The first weights are on their way
// while the rows are quantized.
template <typename T, int TILES>
__global__ void __launch_bounds__(kThreads, 2) few_rows_kernel(LinearDynamicArgs args) {
  constexpr int kWarps = kThreads / kWarp;
  constexpr int kAhead = 4 / TILES > 0 ? 4 / TILES : 1;  // steps that a warp has in flight
  constexpr int kChannels = 8 * TILES;
  __shared__ int32_t sums[kFewRows][kChannels];
  __shared__ int32_t largest[kFewRows];
  __shared__ float scale[kFewRows];
  unsigned char* codes = dynamic_shared();
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int group = static_cast<int>(threadIdx.x) % kWarp / 4;
  const int member = static_cast<int>(threadIdx.x) % 4;
  const int64_t first_channel = static_cast<int64_t>(blockIdx.x) * kChannels;
  const int rows = static_cast<int>(args.rows);
  const int steps = static_cast<int>(padded_depth(args.depth)) / kStep;  // quantizes_inside() bounds the depth
  const int stride = static_cast<int>(args.weight_stride);

  uint4 weights[kAhead][TILES];
  const auto load = [&](int first_step) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int k = (first_step + i * kWarps) * kStep + 16 * member;
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile) {
        const int64_t channel = first_channel + 8 * tile + group;
        weights[i][tile] = make_uint4(0, 0, 0, 0);
        if (channel < args.channels && k < stride) {
          weights[i][tile] = *reinterpret_cast<const uint4*>(args.weight + channel * args.weight_stride + k);
        }
      }
    }
  };
  load(warp);

  for (int i = static_cast<int>(threadIdx.x); i < static_cast<int>(kFewRows) * kChannels; i += kThreads) {
    sums[i / kChannels][i % kChannels] = 0;
  }
  if (threadIdx.x < kFewRows) largest[threadIdx.x] = 0;
  __syncthreads();
  quantize_to_shared<T>(args, codes, largest, scale);

  int32_t sum[TILES][4] = {};
  const int row_bytes = static_cast<int>(shared_row_bytes(args.depth));
  for (int step = warp; step < steps; step += kWarps * kAhead) {
    uint4 now[kAhead][TILES];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile) now[i][tile] = weights[i][tile];
    }
    load(step + kWarps * kAhead);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int at = (step + i * kWarps) * kStep + 16 * member;
      const bool inside = step + i * kWarps < steps;
      uint4 upper = make_uint4(0, 0, 0, 0);
      uint4 lower = make_uint4(0, 0, 0, 0);
      if (inside && group < rows) upper = *reinterpret_cast<const uint4*>(codes + group * row_bytes + at);
      if (inside && group + 8 < rows) lower = *reinterpret_cast<const uint4*>(codes + (group + 8) * row_bytes + at);
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile) multiply_step(sum[tile], upper, lower, now[i][tile]);
    }
  }

#pragma unroll
  for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) atomicAdd(&sums[group + i / 2 * 8][8 * tile + 2 * member + i % 2], sum[tile][i]);
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < rows * kChannels; i += kThreads) {
    const int64_t channel = first_channel + i % kChannels;
    if (channel < args.channels) {
      store_result<T>(args, i / kChannels, channel, sums[i / kChannels][i % kChannels], scale[i / kChannels]);
    }
  }
}

// ---- many rows ------------------------------------------------------------------------------------------------------

// Rows as the tiled product reads them.
struct QuantizedRows {
  unsigned char* codes;  // [rows, padded_depth]
  float* scale;          // [rows]
};

// One block for each row.
template <typename T>
__global__ void __launch_bounds__(kThreads) quantize_rows_kernel(LinearDynamicArgs args, QuantizedRows rows) {
  __shared__ int32_t largest;
  const int64_t row = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) largest = 0;
  __syncthreads();
  const RowReader<T> reader(static_cast<const T*>(args.x) + row * args.depth, args.depth);
  const int32_t found = largest_of_warp(largest_of_share(reader, args.depth, thread, kThreads));
  if (thread % kWarp == 0) atomicMax(&largest, found);
  __syncthreads();
  const auto qparams = numerics::dynamic_qparams(largest);
  if (thread == 0) rows.scale[row] = qparams.scale;
  const int64_t padded = padded_depth(args.depth);
  write_codes_of_share(reader, padded, thread, kThreads, qparams, rows.codes + row * padded);
}

// What a block computes: SIZE x SIZE outputs by four warps, two by two.
template <int SIZE>
struct Tile {
  static constexpr int kThreads = 4 * kWarp;
  static constexpr int kStages = 4;
  static constexpr int kWarpSize = SIZE / 2;
  static constexpr int kOperandBytes = SIZE * kStep;
  static constexpr int kStageBytes = 2 * kOperandBytes;
  static constexpr int kSumStride = SIZE + 4;  // ints
  static constexpr int kPipelineBytes = kStages * kStageBytes;
  static constexpr int kSumBytes = SIZE * kSumStride * 4;
  static constexpr int kSharedBytes = kPipelineBytes > kSumBytes ? kPipelineBytes : kSumBytes;
};

// Begins to copy 64 steps along k of SIZE rows; zeros beyond the matrix.
template <int SIZE>
__device__ __forceinline__ void copy_operand(unsigned char* to, const void* from, int64_t first_row, int64_t rows,
                                             int64_t stride, int64_t k) {
#pragma unroll
  for (int i = 0; i < SIZE * kPieces / Tile<SIZE>::kThreads; ++i) {
    const int piece = static_cast<int>(threadIdx.x) + i * Tile<SIZE>::kThreads;
    const int64_t row = first_row + piece / kPieces;
    const int64_t column = k + piece % kPieces * 16;
    const bool valid = row < rows && column < stride;
    copy_16_async(to + piece * 16, static_cast<const unsigned char*>(from) + (valid ? row * stride + column : 0),
                  valid);
  }
}

template <int SIZE>
using WarpSums = int32_t[SIZE / 32][SIZE / 16][4];

// Adds one stage's products to a warp's sums.
template <int SIZE>
__device__ __forceinline__ void multiply_stage(const unsigned char* stage, WarpSums<SIZE>& sum) {
  constexpr int kHalf = Tile<SIZE>::kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int group = static_cast<int>(threadIdx.x) % kWarp / 4;
  const int member = static_cast<int>(threadIdx.x) % 4;
  const auto* rows = reinterpret_cast<const uint4*>(stage) + (warp / 2 * kHalf + group) * kPieces + member;
  const auto* channels =
      reinterpret_cast<const uint4*>(stage + Tile<SIZE>::kOperandBytes) + (warp % 2 * kHalf + group) * kPieces + member;
  uint4 a[kHalf / 8];
#pragma unroll
  for (int i = 0; i < kHalf / 8; ++i) a[i] = rows[i * 8 * kPieces];
#pragma unroll
  for (int column = 0; column < kHalf / 8; ++column) {
    const uint4 b = channels[column * 8 * kPieces];
#pragma unroll
    for (int row = 0; row < kHalf / 16; ++row) multiply_step(sum[row][column], a[2 * row], a[2 * row + 1], b);
  }
}

// Through shared memory, so that stores are whole lines and the activation's code stands there once.
template <typename T, int SIZE>
__device__ void store_tile(const LinearDynamicArgs& args, const float* row_scale, int64_t first_row,
                           int64_t first_channel, const WarpSums<SIZE>& sum, int32_t* shared) {
  constexpr int kHalf = Tile<SIZE>::kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int group = static_cast<int>(threadIdx.x) % kWarp / 4;
  const int member = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int row = 0; row < kHalf / 16; ++row) {
#pragma unroll
    for (int column = 0; column < kHalf / 8; ++column) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int32_t* to = shared + (warp / 2 * kHalf + row * 16 + half * 8 + group) * Tile<SIZE>::kSumStride +
                      warp % 2 * kHalf + column * 8 + 2 * member;
        *reinterpret_cast<int2*>(to) = {sum[row][column][2 * half], sum[row][column][2 * half + 1]};
      }
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < SIZE * SIZE; i += Tile<SIZE>::kThreads) {
    const int64_t row = first_row + i / SIZE;
    const int64_t channel = first_channel + i % SIZE;
    if (row >= args.rows || channel >= args.channels) continue;
    store_result<T>(args, row, channel, shared[i / SIZE * Tile<SIZE>::kSumStride + i % SIZE], row_scale[row]);
  }
}

template <typename T, int SIZE>
__global__ void __launch_bounds__(Tile<SIZE>::kThreads) many_rows_kernel(LinearDynamicArgs args, QuantizedRows rows) {
  unsigned char* shared = dynamic_shared();
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * SIZE;
  const int64_t first_channel = static_cast<int64_t>(blockIdx.y) * SIZE;
  const int64_t padded = padded_depth(args.depth);
  WarpSums<SIZE> sum = {};
  run_through_ring<Tile<SIZE>::kStages, Tile<SIZE>::kStageBytes>(
      shared, static_cast<int>(padded / kStep),
      [&](int step, unsigned char* stage) {
        const int64_t k = static_cast<int64_t>(step) * kStep;
        copy_operand<SIZE>(stage, rows.codes, first_row, args.rows, padded, k);
        copy_operand<SIZE>(stage + Tile<SIZE>::kOperandBytes, args.weight, first_channel, args.channels,
                           args.weight_stride, k);
      },
      [&](int, const unsigned char* stage) { multiply_stage<SIZE>(stage, sum); });
  __syncthreads();  // the sums overwrite the stages
  store_tile<T, SIZE>(args, rows.scale, first_row, first_channel, sum, reinterpret_cast<int32_t*>(shared));
}

// ---- launchers ------------------------------------------------------------------------------------------------------

template <typename T, int TILES>
cudaError_t start_few_rows(const LinearDynamicArgs& args, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(ceil_div(args.channels, 8 * TILES));
  const auto shared_bytes = static_cast<size_t>(args.rows * shared_row_bytes(args.depth));
  return start_kernel(few_rows_kernel<T, TILES>, blocks, kThreads, shared_bytes, stream, args);
}

template <typename T, int SIZE>
cudaError_t start_many_rows(const LinearDynamicArgs& args, const QuantizedRows& rows, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(args.rows, SIZE)),
                  static_cast<unsigned>(ceil_div(args.channels, SIZE)));
  return start_kernel(many_rows_kernel<T, SIZE>, grid, Tile<SIZE>::kThreads, Tile<SIZE>::kSharedBytes, stream, args,
                      rows);
}

template <typename T>
cudaError_t run(const LinearDynamicArgs& args, void* scratch, cudaStream_t stream) {
  // Each block quantizes all rows again: with more of them, blocks of more channels do so less often.
  constexpr int64_t kVeryFewRows = 4;
  if (quantizes_inside(args.rows, args.depth)) {
    return args.rows <= kVeryFewRows ? start_few_rows<T, 1>(args, stream) : start_few_rows<T, 4>(args, stream);
  }
  auto* codes = static_cast<unsigned char*>(scratch);
  const QuantizedRows rows{codes, reinterpret_cast<float*>(codes + args.rows * padded_depth(args.depth))};
  const cudaError_t error =
      start_kernel(quantize_rows_kernel<T>, static_cast<unsigned>(args.rows), kThreads, 0, stream, args, rows);
  if (error != cudaSuccess) return error;
  constexpr int64_t kMultiprocessors = 132;  // of the GPUs that this is tuned for: large tiles have to fill them
  const bool large = ceil_div(args.rows, 128) * ceil_div(args.channels, 128) >= kMultiprocessors;
  return large ? start_many_rows<T, 128>(args, rows, stream) : start_many_rows<T, 64>(args, rows, stream);
}

__global__ void __launch_bounds__(kThreads)
    unpack_kernel(StoredWeight weight, int64_t channels, int64_t stride, int8_t* codes) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < channels * stride; i += step) {
    const int64_t channel = i / stride;
    const int64_t k = i % stride;
    int32_t code = 0;
    if (k < weight.columns && weight.bits == 8) {
      code = static_cast<const int8_t*>(weight.data)[channel * weight.columns + k];
    } else if (k < weight.columns) {
      const auto* row = static_cast<const uint8_t*>(weight.data) + channel * numerics::int4_bytes(weight.columns);
      code = numerics::unpack_int4_value(row, k, weight.quant_min);
    }
    codes[i] = static_cast<int8_t>(code);
  }
}

}  // namespace

cudaError_t linear_dynamic(const LinearDynamicArgs& args, void* scratch, cudaStream_t stream) {
  return dispatch_type(args.type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    return run<T>(args, scratch, stream);
  });
}

cudaError_t unpack_weight(const StoredWeight& weight, int64_t channels, int64_t stride, int8_t* codes,
                          cudaStream_t stream) {
  const int64_t blocks = ceil_div(channels * stride, kThreads);
  return start_kernel(unpack_kernel, static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks), kThreads, 0,
                      stream, weight, channels, stride, codes);
}

}  // namespace torchquant::kernels::cuda
