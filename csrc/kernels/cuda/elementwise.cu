// Elementwise training kernels (fake-quantize forward and straight-through backward, quantize, dequantize) for every
// granularity; called through launch.h.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"
#include "numerics/affine.h"

namespace torchquant::kernels::cuda {

namespace {

// Each operation reads up to two inputs of type In and writes one Out.
template <typename T>
struct FakeQuantize {
  using In = T;
  using Out = T;
  static constexpr bool kReadsSecond = false;
  __device__ static T apply(T x, T, QParams p, QRange range) {
    return from_float<T>(numerics::fake_quantize_value(to_float(x), p, range));
  }
};

template <typename T>
struct Backward {
  using In = T;
  using Out = T;
  static constexpr bool kReadsSecond = true;
  __device__ static T apply(T x, T grad, QParams p, QRange range) {
    return from_float<T>(numerics::ste_grad(to_float(grad), to_float(x), p, range));
  }
};

template <typename T>
struct Quantize {
  using In = T;
  using Out = uint8_t;
  static constexpr bool kReadsSecond = false;
  // Through int, so that negative codes wrap into their two's-complement byte.
  __device__ static uint8_t apply(T x, T, QParams p, QRange range) {
    return static_cast<uint8_t>(static_cast<int>(numerics::quantize_value(to_float(x), p, range)));
  }
};

template <typename T, typename Code>
struct Dequantize {
  using In = Code;
  using Out = T;
  static constexpr bool kReadsSecond = false;
  __device__ static T apply(Code q, Code, QParams p, QRange) {
    return from_float<T>(numerics::dequantize_value(static_cast<float>(q), p));
  }
};

struct Arguments {
  const void* first;
  const void* second;
  void* out;
  ParamLayout layout;
  DeviceQParams qparams;
  QRange range;
  bool per_tensor;

  __device__ QParams params(int64_t index) const {
    return numerics::make_qparams(qparams.scale[index], qparams.zero_point[index], range);
  }
};

// Packs that a thread has in flight: the loads of all come before the first store.
constexpr int kUnroll = 2;
constexpr int64_t kPacksPerBlock = static_cast<int64_t>(kThreads) * kUnroll;

// The pack at `index`. UNIFORM: its elements share one parameter.
template <typename Op, int VEC, bool UNIFORM>
__device__ __forceinline__ Pack<typename Op::Out, VEC> apply_pack(const Arguments& args, int64_t index,
                                                                  const Pack<typename Op::In, VEC>& a,
                                                                  const Pack<typename Op::In, VEC>& b) {
  Pack<typename Op::Out, VEC> result;
  if constexpr (UNIFORM) {
    const QParams p = args.params(args.per_tensor ? 0 : args.layout.param_of(index * VEC));
#pragma unroll
    for (int k = 0; k < VEC; ++k) result.value[k] = Op::apply(a.value[k], b.value[k], p, args.range);
  } else {
    ParamCursor cursor(args.layout, index * VEC);
#pragma unroll
    for (int k = 0; k < VEC; ++k) {
      result.value[k] = Op::apply(a.value[k], b.value[k], args.params(cursor.param()), args.range);
      cursor.next();
    }
  }
  return result;
}

// Elements from `begin` on that fill no pack, one a thread; by the last block.
template <typename Op>
__device__ __forceinline__ void apply_tail(const Arguments& args, int64_t begin) {
  const int64_t e = begin + threadIdx.x;
  if (e >= args.layout.numel()) return;
  const auto a = static_cast<const typename Op::In*>(args.first)[e];
  auto b = a;
  if constexpr (Op::kReadsSecond) b = static_cast<const typename Op::In*>(args.second)[e];
  static_cast<typename Op::Out*>(args.out)[e] = Op::apply(a, b, args.params(args.layout.param_of(e)), args.range);
}

template <typename Op, int VEC, bool UNIFORM>
__global__ void __launch_bounds__(kThreads, 4) elementwise_kernel(Arguments args) {
  using InPack = Pack<typename Op::In, VEC>;
  using OutPack = Pack<typename Op::Out, VEC>;
  const int64_t packs = args.layout.numel() / VEC;
  const int64_t begin = blockIdx.x * kPacksPerBlock + threadIdx.x;
  InPack a[kUnroll];
  InPack b[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t i = begin + u * kThreads;
    if (i >= packs) break;
    a[u] = static_cast<const InPack*>(args.first)[i];
    b[u] = a[u];
    if constexpr (Op::kReadsSecond) b[u] = static_cast<const InPack*>(args.second)[i];
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t i = begin + u * kThreads;
    if (i >= packs) break;
    static_cast<OutPack*>(args.out)[i] = apply_pack<Op, VEC, UNIFORM>(args, i, a[u], b[u]);
  }
  if (VEC > 1 && blockIdx.x == gridDim.x - 1) apply_tail<Op>(args, packs * VEC);
}

template <typename Op, int VEC, bool UNIFORM>
cudaError_t launch(const Arguments& args, cudaStream_t stream) {
  const int64_t blocks = ceil_div(args.layout.numel() / VEC, kPacksPerBlock);
  const auto grid = static_cast<unsigned>(blocks > 0 ? blocks : 1);  // a tail alone needs a block too
  return start_kernel(elementwise_kernel<Op, VEC, UNIFORM>, grid, kThreads, 0, stream, args);
}

// 16-byte accesses where the addresses allow it, whatever the length.
template <typename Op>
cudaError_t run(const void* first, const void* second, void* out, ParamLayout layout, DeviceQParams qparams,
                QRange range, cudaStream_t stream) {
  if (layout.numel() == 0) return cudaSuccess;
  constexpr int kWide =
      16 / (sizeof(typename Op::In) > sizeof(typename Op::Out) ? sizeof(typename Op::In) : sizeof(typename Op::Out));
  const Arguments args{first, second, out, layout, qparams, range, layout.params() == 1};
  const bool aligned = is_aligned(first, kWide * sizeof(typename Op::In)) &&
                       is_aligned(out, kWide * sizeof(typename Op::Out)) &&
                       (!Op::kReadsSecond || is_aligned(second, kWide * sizeof(typename Op::In)));
  if (!aligned) return launch<Op, 1, true>(args, stream);
  const bool uniform = args.per_tensor || layout.uniform_run(kWide) == kWide;
  return uniform ? launch<Op, kWide, true>(args, stream) : launch<Op, kWide, false>(args, stream);
}

}  // namespace

cudaError_t fake_quantize(const void* x, void* y, FloatType type, ParamLayout layout, DeviceQParams p, QRange range,
                          cudaStream_t stream) {
  return dispatch_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    return run<FakeQuantize<T>>(x, nullptr, y, layout, p, range, stream);
  });
}

cudaError_t fake_quantize_backward(const void* grad, const void* x, void* grad_x, FloatType type, ParamLayout layout,
                                   DeviceQParams p, QRange range, cudaStream_t stream) {
  return dispatch_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    return run<Backward<T>>(x, grad, grad_x, layout, p, range, stream);
  });
}

cudaError_t quantize(const void* x, void* q, FloatType type, ParamLayout layout, DeviceQParams p, QRange range,
                     cudaStream_t stream) {
  return dispatch_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    return run<Quantize<T>>(x, nullptr, q, layout, p, range, stream);
  });
}

cudaError_t dequantize(const void* q, void* y, bool q_signed, FloatType type, ParamLayout layout, DeviceQParams p,
                       cudaStream_t stream) {
  // Zero points of codes lie inside the widest 8-bit range of their sign.
  const QRange range = q_signed ? QRange{-128.0f, 127.0f} : QRange{0.0f, 255.0f};
  return dispatch_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    return q_signed ? run<Dequantize<T, int8_t>>(q, nullptr, y, layout, p, range, stream)
                    : run<Dequantize<T, uint8_t>>(q, nullptr, y, layout, p, range, stream);
  });
}

}  // namespace torchquant::kernels::cuda
