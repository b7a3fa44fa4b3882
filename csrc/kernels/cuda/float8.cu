// fp8 kernels that read memory once (a row that is quantized by its own largest value comes from the cache the second
// time). Called through float8.h.
#include "kernels/cuda/float8.h"
#include "kernels/cuda/quantize_row.cuh"
#include "numerics/float8.h"

namespace torchquant::kernels::cuda {

namespace {

using numerics::Float8E4M3;
using numerics::Float8E5M2;

constexpr int64_t kWarpDepth = 512;  // rows up to here are quantized by one warp, longer ones by a block

// Calls f with a value of the format that `type` names.
template <typename F>
cudaError_t dispatch_format(Float8Type type, const F& f) {
  return type == Float8Type::kE4M3 ? f(Float8E4M3{}) : f(Float8E5M2{});
}

// Four neighbours of a row; those from `length` on are left out.
template <typename T>
__device__ __forceinline__ void store_four(T* row, int64_t first, int64_t length, const T (&values)[4]) {
  if (first + 4 <= length && reinterpret_cast<uintptr_t>(row) % sizeof(Pack<T, 4>) == 0) {
    Pack<T, 4> pack;
#pragma unroll
    for (int i = 0; i < 4; ++i) pack.value[i] = values[i];
    *reinterpret_cast<Pack<T, 4>*>(row + first) = pack;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (first + i < length) row[first + i] = values[i];
    }
  }
}

// Writes elements first, first + step, ... (four each) of a row: codes where To is uint8_t, else fake-quantized values.
template <typename Format, typename T, typename To>
__device__ void write_share(const RowReader<T>& reader, int64_t length, int64_t first, int64_t step, float scale,
                            To* row) {
  const float inv_scale = 1.0f / scale;
  for (int64_t k = 4 * first; k < length; k += 4 * step) {
    float values[4];
    reader.read(k, values);
    To results[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (std::is_same_v<To, uint8_t>) {
        results[i] = numerics::quantize_float8<Format>(values[i], inv_scale);
      } else {
        results[i] = from_float<To>(numerics::fake_quantize_float8<Format>(values[i], scale, inv_scale));
      }
    }
    store_four(row, k, length, results);
  }
}

// Grid: rows, parts of a row.
template <typename Format, typename T, typename To>
__global__ void __launch_bounds__(kThreads) static_kernel(FloatRows x, RowScales scale, To* y, int64_t pitch) {
  const int64_t row = blockIdx.x;
  const RowReader<T> reader(static_cast<const T*>(x.data) + row * x.depth, x.depth);
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  write_share<Format>(reader, pitch, first, static_cast<int64_t>(gridDim.y) * kThreads,
                      scale.data[scale.per_row ? row : 0], y + row * pitch);
}

// A row belongs to `threads_each` threads: to a warp, or to the whole block.
template <typename Format, typename T, typename To>
__global__ void __launch_bounds__(kThreads)
    dynamic_kernel(FloatRows x, int threads_each, To* y, int64_t pitch, float* scale) {
  __shared__ int32_t largest_of[kThreads / kWarp];
  const int64_t row =
      static_cast<int64_t>(blockIdx.x) * (kThreads / threads_each) + static_cast<int>(threadIdx.x) / threads_each;
  if (row >= x.rows) return;  // whole warps; never where a block has one row
  const int share = static_cast<int>(threadIdx.x) % threads_each;
  const RowReader<T> reader(static_cast<const T*>(x.data) + row * x.depth, x.depth);
  int32_t largest = largest_of_warp(largest_of_share(reader, x.depth, share, threads_each));
  if (threads_each > kWarp) {
    if (threadIdx.x % kWarp == 0) largest_of[threadIdx.x / kWarp] = largest;
    __syncthreads();
#pragma unroll
    for (int32_t other : largest_of) largest = larger(largest, other);
  }
  const float row_scale = numerics::float8_scale<Format>(largest);
  if (share == 0 && scale != nullptr) scale[row] = row_scale;
  write_share<Format>(reader, pitch, share, threads_each, row_scale, y + row * pitch);
}

template <typename Format, typename T>
__global__ void __launch_bounds__(kThreads)
    dequantize_kernel(const uint8_t* codes, int64_t depth, RowScales scale, T* y) {
  const int64_t row = blockIdx.x;
  const float row_scale = scale.data[scale.per_row ? row : 0];
  const uint8_t* from = codes + row * depth;
  const bool aligned = reinterpret_cast<uintptr_t>(from) % 4 == 0;
  const int64_t step = static_cast<int64_t>(gridDim.y) * kThreads;
  for (int64_t k = 4 * (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x); k < depth; k += 4 * step) {
    uint32_t word = 0;
    if (aligned && k + 4 <= depth) {
      word = *reinterpret_cast<const uint32_t*>(from + k);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) word |= k + i < depth ? static_cast<uint32_t>(from[k + i]) << (8 * i) : 0u;
    }
    T values[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[i] = from_float<T>(numerics::float8_value<Format>(static_cast<uint8_t>(word >> (8 * i))) * row_scale);
    }
    store_four(y + row * depth, k, depth, values);
  }
}

// Grid: channels, rows.
template <typename T>
__global__ void __launch_bounds__(kThreads) scale_sums_kernel(ScaleSumsArgs args) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (channel >= args.channels) return;
  const float channel_scale = args.channel_scale.data[args.channel_scale.per_row ? channel : 0];
  const float bias = args.bias != nullptr ? args.bias[channel] : 0.0f;
  for (int64_t row = blockIdx.y; row < args.rows; row += gridDim.y) {
    const float scale = args.row_scale.data[args.row_scale.per_row ? row : 0] * channel_scale;
    static_cast<T*>(args.out)[row * args.channels + channel] =
        from_float<T>(fmaf(args.sums[row * args.pitch + channel], scale, bias));
  }
}

// Rows along x; parts along y where there are too few rows for the GPU.
dim3 grid_of_rows(int64_t rows, int64_t length) {
  const int64_t most = ceil_div(length, int64_t{4} * kThreads);
  const int64_t wanted = ceil_div(kMaxBlocks, rows);
  return {static_cast<unsigned>(rows), static_cast<unsigned>(most < wanted ? most : wanted)};
}

template <typename Format, typename T, typename To>
cudaError_t start_static(const FloatRows& x, RowScales scale, To* y, int64_t pitch, cudaStream_t stream) {
  return start_kernel(static_kernel<Format, T, To>, grid_of_rows(x.rows, pitch), kThreads, 0, stream, x, scale, y,
                      pitch);
}

template <typename Format, typename T, typename To>
cudaError_t start_dynamic(const FloatRows& x, To* y, int64_t pitch, float* scale, cudaStream_t stream) {
  const int threads_each = x.depth <= kWarpDepth ? kWarp : kThreads;
  const auto blocks = static_cast<unsigned>(ceil_div(x.rows, kThreads / threads_each));
  return start_kernel(dynamic_kernel<Format, T, To>, blocks, kThreads, 0, stream, x, threads_each, y, pitch, scale);
}

}  // namespace

cudaError_t quantize_float8(const FloatRows& x, RowScales scale, Float8Type type, uint8_t* codes, int64_t pitch,
                            cudaStream_t stream) {
  return dispatch_format(type, [&](auto format) {
    return dispatch_type(x.type, [&](auto* tag) {
      return start_static<decltype(format), std::remove_pointer_t<decltype(tag)>>(x, scale, codes, pitch, stream);
    });
  });
}

cudaError_t quantize_float8_dynamic(const FloatRows& x, Float8Type type, uint8_t* codes, int64_t pitch, float* scale,
                                    cudaStream_t stream) {
  return dispatch_format(type, [&](auto format) {
    return dispatch_type(x.type, [&](auto* tag) {
      return start_dynamic<decltype(format), std::remove_pointer_t<decltype(tag)>>(x, codes, pitch, scale, stream);
    });
  });
}

cudaError_t fake_quantize_float8(const FloatRows& x, RowScales scale, Float8Type type, void* y, cudaStream_t stream) {
  return dispatch_format(type, [&](auto format) {
    return dispatch_type(x.type, [&](auto* tag) {
      using T = std::remove_pointer_t<decltype(tag)>;
      auto* values = static_cast<T*>(y);
      return scale.data == nullptr ? start_dynamic<decltype(format), T>(x, values, x.depth, nullptr, stream)
                                   : start_static<decltype(format), T>(x, scale, values, x.depth, stream);
    });
  });
}

cudaError_t dequantize_float8(const uint8_t* codes, int64_t rows, int64_t depth, RowScales scale, Float8Type type,
                              void* y, FloatType y_type, cudaStream_t stream) {
  return dispatch_format(type, [&](auto format) {
    return dispatch_type(y_type, [&](auto* tag) {
      using T = std::remove_pointer_t<decltype(tag)>;
      return start_kernel(dequantize_kernel<decltype(format), T>, grid_of_rows(rows, depth), kThreads, 0, stream, codes,
                          depth, scale, static_cast<T*>(y));
    });
  });
}

cudaError_t scale_sums(const ScaleSumsArgs& args, FloatType out_type, cudaStream_t stream) {
  constexpr int64_t kMostOfAnAxis = 65535;
  const dim3 grid(static_cast<unsigned>(ceil_div(args.channels, kThreads)),
                  static_cast<unsigned>(args.rows < kMostOfAnAxis ? args.rows : kMostOfAnAxis));
  return dispatch_type(out_type, [&](auto* tag) {
    return start_kernel(scale_sums_kernel<std::remove_pointer_t<decltype(tag)>>, grid, kThreads, 0, stream, args);
  });
}

}  // namespace torchquant::kernels::cuda
