// Weight-only linear layers for few rows, whose time is that of reading the weight once; the packing of weights; and a
// plain kernel for groups that have no packed form. Called through linear_weight_only.h.
#include "kernels/cuda/linear_weight_only.cuh"
#include "numerics/affine.h"
#include "numerics/int4.h"

namespace torchquant::kernels::cuda {

namespace {

constexpr int kWarps = kThreads / kWarp;

// Eight neighbours of an input row from k on, zeros beyond its end or for a row that is not there.
template <typename T>
class InputRow {
 public:
  __device__ InputRow(const WeightOnlyArgs& args, int64_t row)
      : row_(static_cast<const T*>(args.x) + row * args.shape.depth),
        depth_(row < args.rows ? args.shape.depth : 0),
        aligned_(reinterpret_cast<uintptr_t>(row_) % 16 == 0) {}

  __device__ __forceinline__ HalfInput<T> load(int64_t k) const {
    T values[8];
    if (aligned_ && k + 8 <= depth_) {
      constexpr int kEach = 16 / sizeof(T);
#pragma unroll
      for (int i = 0; i < 8; i += kEach) {
        const auto pack = *reinterpret_cast<const Pack<T, kEach>*>(row_ + k + i);
#pragma unroll
        for (int j = 0; j < kEach; ++j) values[i + j] = pack.value[j];
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] = k + i < depth_ ? row_[k + i] : from_float<T>(0.0f);
    }
    return as_parts(values);
  }

 private:
  static __device__ __forceinline__ HalfInput<T> as_parts(const T (&values)[8]) {
    HalfInput<T> input;
    if constexpr (std::is_same_v<T, float>) {
      uint32_t words[4][3];
#pragma unroll
      for (int i = 0; i < 4; ++i) split_pair(values[2 * i], values[2 * i + 1], words[i]);
#pragma unroll
      for (int p = 0; p < 3; ++p) input.part[p] = make_uint4(words[0][p], words[1][p], words[2][p], words[3][p]);
    } else {
      uint32_t words[4];
      memcpy(words, values, sizeof(words));
      input.part[0] = make_uint4(words[0], words[1], words[2], words[3]);
    }
    return input;
  }

  const T* row_;
  int64_t depth_;
  bool aligned_;
};

// Adds one block of 16 channels to the sums of 8 * TILES rows.
template <typename T, int BITS, int TILES>
__device__ __forceinline__ void multiply_block(const WeightOnlyArgs& args, const PackedWeight& weight,
                                               const BlockCodes<BITS>& codes, int depth_block, int64_t first_row,
                                               float (&sum)[TILES][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const LaneScales scales = load_scales(weight, static_cast<int>(blockIdx.y), 2 * depth_block + half, lane);
    const Dequantize<kAsBFloat16<T>, BITS> dequantize(scales);
    uint32_t a[2][4];
    dequantize(codes, half, 0, a[0]);
    dequantize(codes, half, 1, a[1]);
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
      const InputRow<T> row(args, first_row + 8 * tile + lane / 4);
      const HalfInput<T> input = row.load(int64_t{kBlockDepth} * depth_block + kScaleDepth * half + 8 * (lane % 4));
      float part[4] = {};
#pragma unroll
      for (int p = kParts<T> - 1; p >= 0; --p) {
#pragma unroll
        for (int product = 0; product < 2; ++product) {
          uint32_t b[2];
          input.get(p, product, b);
          multiply_add_half<kAsBFloat16<T>>(part, a[product], b);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[tile][i] = fmaf(scales.scale[i / 2], part[i], sum[tile][i]);
    }
  }
}

// A block computes 16 channels of 8 * TILES rows; its warps take turns along k, with the codes of two turns in flight.
template <typename T, int BITS, int TILES>
__global__ void __launch_bounds__(kThreads, TILES == 1 ? 2 : 1)
    few_rows_kernel(WeightOnlyArgs args, PackedWeight weight) {
  constexpr int kAhead = BITS == 4 ? 4 : 2;  // blocks in a turn
  __shared__ float partial[kWarps][8 * TILES][kBlockChannels + 1];
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * 8 * TILES;
  constexpr int64_t kBytes = kBlockCodes * BITS / 8;
  const unsigned char* blocks = weight.codes + static_cast<int64_t>(blockIdx.y) * weight.depth_blocks * kBytes;
  BlockCodes<BITS> next[kAhead];
  const auto load = [&](int first) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int block = first + i * kWarps;
      if (block < weight.depth_blocks) next[i] = load_block<BITS>(blocks + block * kBytes, lane);
    }
  };
  load(warp);
  float sum[TILES][4] = {};
  for (int block = warp; block < weight.depth_blocks; block += kWarps * kAhead) {
    BlockCodes<BITS> now[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) now[i] = next[i];
    load(block + kWarps * kAhead);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (block + i * kWarps < weight.depth_blocks) {
        multiply_block<T, BITS, TILES>(args, weight, now[i], block + i * kWarps, first_row, sum);
      }
    }
  }
#pragma unroll
  for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) partial[warp][8 * tile + 2 * (lane % 4) + i % 2][lane / 4 + i / 2 * 8] = sum[tile][i];
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < 8 * TILES * kBlockChannels; i += kThreads) {
    const int64_t row = first_row + i / kBlockChannels;
    const int64_t channel = static_cast<int64_t>(blockIdx.y) * kBlockChannels + i % kBlockChannels;
    if (row >= args.rows || channel >= args.shape.out_channels) continue;
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += partial[w][i / kBlockChannels][i % kBlockChannels];
    store_result<T>(args, row, channel, total);
  }
}

template <typename T, int BITS, int TILES>
cudaError_t start_few_rows(const WeightOnlyArgs& args, const PackedWeight& weight, cudaStream_t stream) {
  // Rows are the larger number: the second axis of a grid ends at 65535.
  const dim3 grid(static_cast<unsigned>(ceil_div(args.rows, 8 * TILES)), static_cast<unsigned>(weight.channel_blocks));
  return start_kernel(few_rows_kernel<T, BITS, TILES>, grid, kThreads, 0, stream, args, weight);
}

template <typename T>
cudaError_t run_few_rows(const WeightOnlyArgs& args, const PackedWeight& weight, cudaStream_t stream) {
  if (args.rows <= 8) {
    return args.shape.bits == 4 ? start_few_rows<T, 4, 1>(args, weight, stream)
                                : start_few_rows<T, 8, 1>(args, weight, stream);
  }
  return args.shape.bits == 4 ? start_few_rows<T, 4, 4>(args, weight, stream)
                              : start_few_rows<T, 8, 4>(args, weight, stream);
}

// ---- weights as they are
// ----------------------------------------------------------------------------------------------

// The stored code of a channel: code - quant_min for 4 bits, code + 128 for 8.
__device__ __forceinline__ uint32_t stored_code(const WeightOnlyShape& shape, const void* codes, int64_t channel,
                                                int64_t k) {
  const auto* bytes = static_cast<const uint8_t*>(codes);
  if (shape.bits == 8) return bytes[channel * shape.depth + k] ^ 0x80u;
  return static_cast<uint32_t>(numerics::unpack_int4_value(bytes + channel * numerics::int4_bytes(shape.depth), k, 0));
}

// A thread writes four bytes of the codes, or a scale with its zero point.
__global__ void __launch_bounds__(kThreads)
    pack_kernel(WeightOnlyShape shape, StoredWeightOnly weight, unsigned char* packed) {
  const PackedWeightLayout layout(shape);
  const int64_t words = layout.scale_offset / 4;
  const int64_t scales = layout.groups * layout.padded_channels();
  const int codes_each = 32 / shape.bits;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < words + scales; i += step) {
    if (i < words) {
      const int64_t block = i / (layout.block_bytes() / 4);
      const int first = static_cast<int>(i % (layout.block_bytes() / 4)) * codes_each;
      uint32_t word = 0;
      for (int c = 0; c < codes_each; ++c) {
        const BlockPlace place = place_of_code(shape.bits, first + c);
        const int64_t channel = block / layout.depth_blocks * kBlockChannels + place.channel;
        const int64_t k = block % layout.depth_blocks * kBlockDepth + place.k;
        if (channel >= shape.out_channels || k >= shape.depth) continue;
        word |= stored_code(shape, weight.codes, channel, k) << (c * shape.bits);
      }
      reinterpret_cast<uint32_t*>(packed)[i] = word;
      continue;
    }
    const int64_t channel = (i - words) % layout.padded_channels();
    const int64_t from = channel * layout.groups + (i - words) / layout.padded_channels();
    const bool inside = channel < shape.out_channels;
    reinterpret_cast<float*>(packed + layout.scale_offset)[i - words] = inside ? weight.scale[from] : 0.0f;
    if (shape.has_zero_points) {
      const float offset = shape.bits == 4 ? static_cast<float>(-shape.quant_min) : 128.0f;
      reinterpret_cast<float*>(packed + layout.zero_point_offset)[i - words] =
          inside ? weight.zero_point[from] + offset : 0.0f;
    }
  }
}

// A warp computes one channel of one row.
template <typename T>
__global__ void __launch_bounds__(kThreads) plain_kernel(WeightOnlyArgs args, StoredWeightOnly weight) {
  const WeightOnlyShape& shape = args.shape;
  const int64_t output = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (output >= args.rows * shape.out_channels) return;
  const int64_t row = output / shape.out_channels;
  const int64_t channel = output % shape.out_channels;
  const auto* x = static_cast<const T*>(args.x) + row * shape.depth;
  const int64_t groups = shape.depth / shape.group_size;
  const int32_t lowest = shape.bits == 4 ? shape.quant_min : -128;
  float sum = 0.0f;
  for (int64_t k = threadIdx.x % kWarp; k < shape.depth; k += kWarp) {
    const int64_t group = channel * groups + k / shape.group_size;
    const numerics::QParams qparams{weight.scale[group], 0.0f,
                                    weight.zero_point != nullptr ? weight.zero_point[group] : 0.0f};
    const int32_t code = static_cast<int32_t>(stored_code(shape, weight.codes, channel, k)) + lowest;
    sum = fmaf(to_float(x[k]), numerics::dequantize_value(static_cast<float>(code), qparams), sum);
  }
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  if (threadIdx.x % kWarp == 0) store_result<T>(args, row, channel, sum);
}

}  // namespace

cudaError_t pack_weight_only(const WeightOnlyShape& shape, const StoredWeightOnly& weight, void* packed,
                             cudaStream_t stream) {
  const int64_t blocks = ceil_div(PackedWeightLayout(shape).bytes / 4, kThreads);
  return start_kernel(pack_kernel, static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks), kThreads, 0,
                      stream, shape, weight, static_cast<unsigned char*>(packed));
}

cudaError_t linear_weight_only(const WeightOnlyArgs& args, const void* packed, cudaStream_t stream) {
  if (detail::takes_tiled(args)) return detail::linear_weight_only_tiled(args, packed, stream);
  const PackedWeight weight(args.shape, packed);
  return dispatch_type(
      args.type, [&](auto* tag) { return run_few_rows<std::remove_pointer_t<decltype(tag)>>(args, weight, stream); });
}

cudaError_t linear_weight_only_plain(const WeightOnlyArgs& args, const StoredWeightOnly& weight, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(ceil_div(args.rows * args.shape.out_channels, kWarps));
  return dispatch_type(args.type, [&](auto* tag) {
    return start_kernel(plain_kernel<std::remove_pointer_t<decltype(tag)>>, blocks, kThreads, 0, stream, args, weight);
  });
}

}  // namespace torchquant::kernels::cuda
