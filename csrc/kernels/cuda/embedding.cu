// Embedding rows from int8 and int4 tables; called through embedding.h.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/embedding.h"
#include "kernels/cuda/finish.cuh"
#include "numerics/int4.h"

namespace torchquant::kernels::cuda {

namespace {

constexpr int kRun = 4;  // adjacent columns that a thread writes

template <int COUNT>
__device__ __forceinline__ void load_row_codes(int32_t (&q)[COUNT], const StoredWeight& weight, int64_t row,
                                               int64_t column, int valid) {
  if (weight.bits == 8) {
    load_codes(q, weight.data, ElementType::kInt8, row * weight.columns + column, valid);
    return;
  }
  const auto* packed = static_cast<const uint8_t*>(weight.data) + row * numerics::int4_bytes(weight.columns);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    q[i] = i < valid ? numerics::unpack_int4_value(packed, column + i, weight.quant_min) : 0;
  }
}

__device__ __forceinline__ float dequantize_code(const EmbeddingArgs& args, int64_t row, int64_t column, int32_t code) {
  const int64_t index = row * (args.weight.columns / args.group_size) + column / args.group_size;
  const float zero_point = args.weight_zero_point != nullptr ? args.weight_zero_point[index] : 0.0f;
  return numerics::dequantize_value(static_cast<float>(code), {args.weight_scale[index], 0.0f, zero_point});
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    embedding_kernel(EmbeddingArgs args, int64_t count, int64_t rows, void* out) {
  const int64_t runs = (args.weight.columns + kRun - 1) / kRun;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count * runs; i += step) {
    const int64_t row = args.indices[i / runs];
    const int64_t column = i % runs * kRun;
    const int64_t rest = args.weight.columns - column;
    const int valid = rest < kRun ? static_cast<int>(rest) : kRun;
    const bool exists = row >= 0 && row < rows;
    int32_t q[kRun] = {};
    if (exists) load_row_codes(q, args.weight, row, column, valid);
    Pack<T, kRun> values;
#pragma unroll
    for (int k = 0; k < kRun; ++k) {
      float value = __int_as_float(0x7fc00000);  // NaN
      if (exists && k < valid) value = dequantize_code(args, row, column + k, q[k]);
      values.value[k] = from_float<T>(value);
    }
    store_run(values, out, i / runs * args.weight.columns + column, valid);
  }
}

}  // namespace

cudaError_t embedding(const EmbeddingArgs& args, int64_t count, int64_t rows, void* out, FloatType out_type,
                      cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  const int64_t blocks = ceil_div(count * ceil_div(args.weight.columns, kRun), kThreads);
  const auto grid = static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
  return dispatch_type(out_type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    return start_kernel(embedding_kernel<T>, grid, kThreads, 0, stream, args, count, rows, out);
  });
}

}  // namespace torchquant::kernels::cuda
